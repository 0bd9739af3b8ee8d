"""Two files of results: what changed beyond noise."""

from pathlib import Path
from statistics import median

from attnkern.bench.results import Result, latest, read
from attnkern.bench.show import number
from attnkern.commands import CommandError

SAME = ("device", "threads", "torch")  # of both files, or peers tell nothing about the machine
FEWEST_PEERS = 8


def compare(before: Path, after: Path) -> int:
    """Prints the rows whose times moved so far that 20th to 80th percentiles do not overlap, largest change first."""
    one, other = (_results(path) for path in (before, after))
    for name, found in (("before", one), ("after", other)):
        places = dict.fromkeys(_place(result) for result in found.values())
        print(f"{name:<7} {'; '.join(places)}")
    if {result.machine.get("device") for result in one.values()} != {r.machine.get("device") for r in other.values()}:
        print("the devices differ: so will the times")
    pairs = {key: (one[key], other[key]) for key in one if key in other}
    machine = drift(list(pairs.values()))
    if machine != 1.0:
        print(f"peers took {number(machine)} times as long: the machine's own change, taken out of the changes below")
    changed = [key for key, pair in pairs.items() if differ(*pair, machine)]
    changed.sort(key=lambda key: _change(*pairs[key], machine), reverse=True)
    for key in changed:
        print(f"{key[0].name:<48} {key[1]:<22} {_told(*pairs[key], machine)}")
    alone = f"{len(one) - len(pairs)} only before, {len(other) - len(pairs)} only after"
    print(f"{len(changed)} changed, {len(pairs) - len(changed)} alike within noise, {alone}")
    return 0


def drift(pairs: list[tuple[Result, Result]]) -> float:
    """How many times as long peers took, in the median: they are the control group, as their code is the same.

    1 where it is not known: another device or torch, or too few peers.
    """
    peers = [(one, other) for one, other in pairs if one.role == other.role == "peer" and one.ms and other.ms]
    same = all(one.machine.get(name) == other.machine.get(name) for one, other in peers for name in SAME)
    if not same or len(peers) < FEWEST_PEERS:
        return 1.0
    return median(other.ms["median"] / one.ms["median"] for one, other in peers)


def differ(one: Result, other: Result, machine: float = 1.0) -> bool:
    """Whether the change beyond the machine's is more than noise; having no time and having one always differ."""
    if one.ms is None or other.ms is None:
        return (one.ms is None) != (other.ms is None)
    return machine * one.ms["p80"] < other.ms["p20"] or other.ms["p80"] < machine * one.ms["p20"]


def _results(path: Path) -> dict:
    """By row and implementation, each from its last run; every device of a file counts as the same."""
    found = {(result.row, result.impl): result for result in latest(load(path))}
    if not found:
        raise CommandError(f"there are no results in {path}")
    return found


def load(path: Path) -> list[Result]:
    """`read`, with a word on which files there are where this one is not."""
    try:
        return read(path)
    except OSError as error:
        here = sorted({*Path().glob("*.jsonl"), *path.parent.glob("*.jsonl"), *Path().glob("bench/results/*/*.jsonl")})
        there = f"there are {', '.join(map(str, here))}" if here else "'attnkern bench' makes one"
        raise CommandError(f"cannot read {path} ({error.strerror or error}): {there}") from None


def _change(one: Result, other: Result, machine: float) -> float:
    """How many times as long the slower one takes."""
    if one.ms is None or other.ms is None:
        return float("inf")
    ratio = other.ms["median"] / one.ms["median"] / machine
    return max(ratio, 1 / ratio)


def _told(one: Result, other: Result, machine: float) -> str:
    change = f", {100 * (other.ms['median'] / one.ms['median'] / machine - 1):+.1f}%" if one.ms and other.ms else ""
    return f"{_time(one)} -> {_time(other)}{change}"


def _time(result: Result) -> str:
    if result.ms is None:
        return result.error or "no time"
    median, p20, p80 = (number(result.ms[name]) for name in ("median", "p20", "p80"))
    return f"{median} ({p20}-{p80}) ms"


def _place(result: Result) -> str:
    known = (result.machine.get(name, f"unknown {name}") for name in ("device", "commit", "date"))
    return ", ".join(known)
