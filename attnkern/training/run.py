"""One training run in a folder: progress, history, and checkpoints from which it goes on by itself."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

FILE = "checkpoint.safetensors"


class BadCheckpoint(ValueError):
    """A file that is no checkpoint, or one of another model."""


class Run:
    """The steps that a training still has to do; the checkpoint in its folder, if there is one, is loaded at once.

        run = Run("out/global", steps=1000, model=model, optimizer=optimizer, schedule=schedule)
        for step in run:
            loss = ...
            run.log(loss=loss)

    A run that was stopped gives the same losses as one that was not, if all its chance comes from torch's global
    generators: their states are saved too. Ctrl-C finishes the step, saves, and exits with a line that says so; a
    killed run loses the steps since the last checkpoint.

    Args:
        folder: made if missing; holds one file, `checkpoint.safetensors`, replaced as a whole.
        steps: of the whole training; more than last time goes on.
        save_every: steps between checkpoints; the last step is always saved.
        stateful: what has `state_dict()` and `load_state_dict()`: models, optimizers, schedules.

    Attributes:
        step: steps done.
        history: what was logged, `{name: [float, ...]}`.

    Raises:
        ValueError: steps or save_every is less than 1.
        BadCheckpoint: the folder's checkpoint cannot be read, or belongs to another model.
    """

    def __init__(self, folder: str | os.PathLike, *, steps: int, save_every: int = 100, **stateful):
        for name, number in (("steps", steps), ("save_every", save_every)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        self.folder, self.steps, self.save_every = Path(folder), steps, save_every
        self.step, self.history = 0, {}
        self._stateful, self._random = stateful, None
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / FILE).exists():
            self._load()

    def __iter__(self) -> Iterator[int]:
        """The numbers of the steps still to do."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        if self._random is not None:
            _set_random_state(self._random)
        with _interruptions() as interrupted, Progress(*columns, TextColumn("{task.fields[latest]}")) as progress:
            bar = progress.add_task(self.folder.name, total=self.steps, completed=self.step, latest="")
            while self.step < self.steps:
                yield self.step
                self.step += 1
                progress.update(bar, completed=self.step, latest=self._latest())
                if self.step % self.save_every == 0 or self.step == self.steps or interrupted:
                    self.save()
                if interrupted and self.step < self.steps:
                    progress.stop()
                    raise SystemExit(f"stopped after {self.step} of {self.steps} steps; the same command goes on")

    def log(self, **values: float | Tensor) -> None:
        """Adds numbers to the history, and shows them beside the bar."""
        for name, value in values.items():
            value = value.item() if isinstance(value, Tensor) else float(value)
            self.history.setdefault(name, []).append(value)

    def save(self) -> None:
        """Writes the checkpoint; a kill at any moment leaves this one or the one before."""
        from safetensors.torch import save_file

        tensors = {}
        states = {name: part.state_dict() for name, part in self._stateful.items()}
        whole = {"step": self.step, "history": self.history, "random": _random_state(), "stateful": states}
        draft = self.folder / f"{FILE}.tmp"
        save_file(tensors, draft, {"state": json.dumps(_pack(whole, "", tensors))})
        os.replace(draft, self.folder / FILE)

    def _load(self) -> None:
        from safetensors import SafetensorError, safe_open

        file = self.folder / FILE
        try:
            with safe_open(file, "pt") as opened:
                whole = _unpack(json.loads(opened.metadata()["state"]), opened)
        except (SafetensorError, TypeError, KeyError, ValueError) as error:
            raise BadCheckpoint(f"{file} is no checkpoint of a run: {error!r}") from None
        states = whole["stateful"]
        if states.keys() != self._stateful.keys():
            raise BadCheckpoint(f"{file} holds {', '.join(states)}, not {', '.join(self._stateful)}")
        for name, part in self._stateful.items():
            try:
                part.load_state_dict(states[name])
            except (RuntimeError, ValueError, KeyError) as error:
                reason = " ".join(str(error).split())
                raise BadCheckpoint(f"{file} is of another {name}; choose another folder ({reason})") from None
        self.step, self.history, self._random = whole["step"], whole["history"], whole["random"]

    def _latest(self) -> str:
        return "  ".join(f"{name} {values[-1]:.4g}" for name, values in self.history.items())


def _pack(value, path: str, tensors: dict[str, Tensor]):
    """The value for JSON: tensors go to `tensors` under their path, dictionaries keep the type of their keys."""
    if isinstance(value, Tensor):
        # a copy each: safetensors refuses tensors that share memory, as tied weights do
        tensors[path] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return {"tensor": path}
    if isinstance(value, dict):
        return {"items": [[key, _pack(each, f"{path}/{key}", tensors)] for key, each in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_pack(each, f"{path}/{place}", tensors) for place, each in enumerate(value)]
    return value


def _unpack(value, opened):
    if isinstance(value, list):
        return [_unpack(each, opened) for each in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return opened.get_tensor(value["tensor"])
    return {key: _unpack(each, opened) for key, each in value["items"]}


def _random_state() -> dict:
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}


def _set_random_state(state: dict) -> None:
    torch.set_rng_state(state["cpu"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def _interruptions():
    """A list that the first Ctrl-C fills: a step that has begun is finished. The second one interrupts at once."""
    caught = []
    if threading.current_thread() is not threading.main_thread():  # it alone can have handlers
        yield caught
        return

    def catch(number, frame):
        caught.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, catch)
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, before)
