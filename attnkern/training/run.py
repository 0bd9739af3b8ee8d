"""One training run in a folder: a progress bar, checkpoints, and the same numbers after a stop."""

import json
import os
import signal
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnkern.atomic import written

FILE = "checkpoint.safetensors"


class ResumeError(ValueError):
    """The folder's checkpoint is not of this run; the message says why."""


class Run:
    """A run that can be stopped at any time and goes on where its last checkpoint was.

        run = Run("runs/copy", steps=1000, model=model, optimizer=optimizer)
        for step in run:
            ...
            run.log(loss=loss)

    Iterating yields the numbers of the steps that are left. Whatever a step draws from torch's generator is drawn alike
    after a resumption, so an interrupted run ends with the same weights as one that was not. Ctrl-C, or a request
    to terminate, finishes the step, saves, and exits with a line that says how to go on; a kill loses at most
    `save_every` steps.

    Args:
        folder: made if need be; holds one file, `checkpoint.safetensors`, which is replaced, never half-written.
        steps: how many in all.
        save_every: steps between checkpoints; the last step always makes one.
        stateful: what the checkpoint holds, by name: anything with `state_dict` and `load_state_dict`.

    Attributes:
        step: steps done.
        history: what was logged, name by name: one number a call.

    Raises:
        ResumeError: the folder's checkpoint is damaged, or of something else.
    """

    def __init__(self, folder: str | os.PathLike, *, steps: int, save_every: int = 100, **stateful: Any):
        for name, number in (("steps", steps), ("save_every", save_every)):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} must be a positive int, got {number!r}")
        self.path = Path(folder) / FILE
        self.steps, self.save_every, self.stateful = steps, save_every, stateful
        self.step = 0
        self.history: dict[str, list[float]] = defaultdict(list)
        self._stop = False
        if self.path.exists():
            self._load()

    def __iter__(self) -> Iterator[int]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        with Progress(*columns) as progress, self._stops_between_steps():
            bar = progress.add_task("", total=self.steps, completed=self.step)
            while self.step < self.steps:
                yield self.step
                self.step += 1
                if self.step % self.save_every == 0 or self.step == self.steps or self._stop:
                    self.save()
                latest = (f"{name} {numbers[-1]:.4g}" for name, numbers in self.history.items())
                progress.update(bar, completed=self.step, description="  ".join(latest))
                if self._stop:
                    break
        if self._stop:
            raise SystemExit(f"stopped after step {self.step}; run the same command again to go on")

    def log(self, **numbers: float | Tensor) -> None:
        """Keeps them in `history` and shows them beside the bar."""
        for name, number in numbers.items():
            self.history[name].append(number.item() if isinstance(number, Tensor) else number)

    def save(self) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}
        parts = {name: part.state_dict() for name, part in self.stateful.items()}
        state = {"parts": parts, "step": self.step, "history": dict(self.history), "rng": torch.get_rng_state()}
        if torch.cuda.is_initialized():
            state["cuda_rng"] = torch.cuda.get_rng_state()
        metadata = {"state": json.dumps(_without_tensors(state, "", tensors, {}))}
        with written(self.path) as draft:
            try:
                save_file(tensors, draft, metadata)
            except SafetensorError as error:
                raise OSError(f"{self.path} cannot be written: {error}") from None

    def _load(self) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
                state = _with_tensors(json.loads(file.metadata()["state"]), tensors)
                parts = state["parts"]
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ResumeError(f"{self.path} is no checkpoint of a run: {error}") from None
        missing = [name for name in self.stateful if name not in parts]
        if missing:
            raise ResumeError(f"{self.path} has no {', '.join(missing)}: choose another folder")
        try:
            for name, part in self.stateful.items():
                part.load_state_dict(parts[name])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise ResumeError(f"{self.path} holds another {name}: choose another folder ({reason})") from None
        self.step = state["step"]
        self.history.update(state["history"])
        torch.set_rng_state(state["rng"])
        if "cuda_rng" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda_rng"])

    @contextmanager
    def _stops_between_steps(self) -> Iterator[None]:
        """A signal asks for a stop; the second one is obeyed at once. Only the main thread hears signals."""
        signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.getsignal(number) for number in signals}

        def stop(number, frame):
            self._stop = True
            signal.signal(number, before[number])

        for number in signals:
            signal.signal(number, stop)
        try:
            yield
        finally:
            for number in signals:
                signal.signal(number, before[number])


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor], names: dict[tuple, str]) -> Any:
    """As JSON can say it; tensors go to `tensors`, shared ones once."""
    if isinstance(value, Tensor):
        identity = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else name
        if identity not in names:
            names[identity] = name
            tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": names[identity]}
    if isinstance(value, dict):
        entries = (
            (key, _without_tensors(part, f"{name}.{key}".lstrip("."), tensors, names)) for key, part in value.items()
        )
        return {"dict": [[key, part] for key, part in entries]}
    if isinstance(value, (list, tuple)):
        return {"list": [_without_tensors(part, f"{name}.{place}", tensors, names) for place, part in enumerate(value)]}
    return value


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner].clone()
    if kind == "dict":
        return {key: _with_tensors(part, tensors) for key, part in inner}
    return [_with_tensors(part, tensors) for part in inner]
