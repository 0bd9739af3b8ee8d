"""Suites from end to end: choose the rows, measure them in rounds, append what came of it, and print it."""

import argparse
import gc
import math
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from attnkern import mac
from attnkern.backends.choose import PREFERENCE, load
from attnkern.bench import measure, others, results, show, timing
from attnkern.bench.problems import SUITES, Row
from attnkern.commands import CommandError, check_file

PEERS = ("naive", "sdpa", "flex", "mha", *others.NAMES)
# ours that are meant to be used there; on a CPU the kernels, if they are built
BACKENDS = {"cpu": ("blocked",) if isinstance(load("cpu"), str) else ("cpu",), "cuda": ("cuda", "triton")}


def run(options: argparse.Namespace) -> int:
    """Measures what the options ask for; see `attnkern bench --help`.

    Returns:
        0; 3 if the GPU's context was lost; 130 after Ctrl-C. What was measured by then is in the file.
    """
    device = _device(options.device)
    suites = names("suite", options.suite, SUITES) if options.suite is not None else list(SUITES)
    backends = (
        names("backend", options.backends, PREFERENCE) if options.backends is not None else list(BACKENDS[device])
    )
    rows = _matching(dict.fromkeys(row for suite in suites for row in SUITES[suite](device)), options.rows)
    peers = _peers(options.peers)
    _check_file(options.out)

    found, code = [], 0
    with options.out.open("a") as file, _undisturbed():
        try:
            limits = mac.roofs(device, fresh=True, progress=show.progress("what the device can do at best"))
            machine = results.machine(device)
            show.header(machine)
            new = partial(measure.Measurement, device=device, backends=backends, peers=peers)
            for measurement in _measured(rows, new, timing.ROUNDS[device], options.seconds):
                part = list(measurement.results(limits))
                for result in part:
                    result.machine.update(machine)
                    print(results.to_json(result), file=file, flush=True)
                show.row(part)
                found += part
        except measure.Broken as error:
            print(f"attnkern bench: {error}", file=sys.stderr)
            code = 3
        except KeyboardInterrupt:
            print("attnkern bench: interrupted", file=sys.stderr)
            code = 130
    show.summary(found, options.out)
    return code


def _measured(
    rows: list[Row], new: Callable[[Row], measure.Measurement], rounds: int, seconds: float | None
) -> Iterator[measure.Measurement]:
    """Each row once it is complete; after an interruption whatever there is, and then the interruption."""
    under_way, stopped = {}, None
    visits = rows * rounds
    try:
        for number, row in enumerate(_in_time(show.progress("measuring")(visits), len(rows), seconds)):
            if row not in under_way:
                under_way[row] = new(row)
            under_way[row].round()
            if number >= len(visits) - len(rows):
                yield under_way.pop(row)
    except KeyboardInterrupt as error:
        stopped = error
    except measure.Broken as error:
        stopped = measure.Broken(f"stopped at {row.name}: {error}")
    yield from under_way.values()
    if stopped:
        raise stopped


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A kill counts as Ctrl-C; garbage that `measure` does not look for is looked for again afterwards."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        gc.unfreeze()


def names(what: str, text: str, valid) -> list[str]:
    """The names in a list with commas, each of which must be valid."""
    chosen = [name.strip() for name in text.split(",") if name.strip()]
    for name in chosen:
        if name not in valid:
            raise CommandError(f"unknown {what} {name!r}: choose from {', '.join(valid)}")
    if not chosen and what != "peer":
        raise CommandError(f"no {what} is named in {text!r}: choose from {', '.join(valid)}")
    return chosen


def peers_here() -> list[str]:
    """Those that are installed."""
    return [name for name in PEERS if name not in others.NAMES or others.importable(name)]


def _peers(text: str | None) -> list[str]:
    """Those that are asked for, or all that are there."""
    if text is None:
        return peers_here()
    chosen = names("peer", text, PEERS)
    for name in chosen:
        if name not in peers_here():
            raise CommandError(f"peer {name!r} is not installed: choose from {', '.join(peers_here())}")
    return chosen


def _device(name: str | None) -> str:
    here = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if name is not None and name not in here:
        raise CommandError(f"unknown device {name!r}: choose from {', '.join(here)}, which this machine has")
    return name or here[-1]


def _matching(rows: dict[Row, None], pattern: str) -> list[Row]:
    try:
        chosen = [row for row in rows if re.search(pattern, row.name)]
    except re.error as error:
        raise CommandError(f"--rows {pattern!r} is not a regular expression: {error}") from None
    if not chosen:
        raise CommandError(f"no row matches --rows {pattern!r}: their names are such as {next(iter(rows)).name!r}")
    return chosen


def _check_file(path: Path) -> None:
    """Refuses early what could not be appended to, or is not ours to change."""
    if path.is_file() or not path.exists():
        check_file("--out", path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.stat().st_size and not results.read(path):
            raise CommandError(f"--out {path} holds something else than results: name another file")
        with path.open("ab") as file:  # a line that was cut off stays alone on its line; a device says if it is full
            if not path.is_file() or path.stat().st_size and not path.read_bytes().endswith(b"\n"):
                file.write(b"\n")
    except OSError as error:
        raise CommandError(f"--out {path}: {error.strerror or error}") from None


def _in_time(visits: Iterator[Row], rows: int, seconds: float | None) -> Iterator[Row]:
    """Those that begin before the time is over; each of so many rows is visited once a round."""
    end = time.perf_counter() + (math.inf if seconds is None else seconds)
    for number, row in enumerate(visits):
        if time.perf_counter() > end:
            lost = f"skipped, from {row.name} on" if number < rows else f"timed in {number // rows} rounds only"
            print(f"{seconds:g} s are over: the last rows are {lost}", file=sys.stderr)
            return
        yield row
