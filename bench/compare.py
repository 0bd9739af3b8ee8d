"""Two files of results: what changed beyond noise."""

from pathlib import Path

from attnkern.bench.results import Result, latest, read
from attnkern.bench.show import number
from attnkern.commands import CommandError


def compare(before: Path, after: Path) -> int:
    """Prints the rows whose times moved so far that 20th to 80th percentiles do not overlap, largest change first."""
    one, other = (_results(path) for path in (before, after))
    for name, found in (("before", one), ("after", other)):
        places = dict.fromkeys(_place(result) for result in found.values())
        print(f"{name:<7} {'; '.join(places)}")
    if {result.machine.get("device") for result in one.values()} != {r.machine.get("device") for r in other.values()}:
        print("the devices differ: so will the times")
    both = [key for key in one if key in other]
    changed = [key for key in both if differ(one[key], other[key])]
    changed.sort(key=lambda key: _change(one[key], other[key]), reverse=True)
    for key in changed:
        print(f"{key[0].name:<48} {key[1]:<22} {_told(one[key], other[key])}")
    alone = f"{len(one) - len(both)} only before, {len(other) - len(both)} only after"
    print(f"{len(changed)} changed, {len(both) - len(changed)} alike within noise, {alone}")
    return 0


def differ(one: Result, other: Result) -> bool:
    """Whether the change is more than noise; having no time and having one always differ."""
    if one.ms is None or other.ms is None:
        return (one.ms is None) != (other.ms is None)
    return one.ms["p80"] < other.ms["p20"] or other.ms["p80"] < one.ms["p20"]


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


def _change(one: Result, other: Result) -> float:
    """How many times as long the slower one takes."""
    if one.ms is None or other.ms is None:
        return float("inf")
    ratio = other.ms["median"] / one.ms["median"]
    return max(ratio, 1 / ratio)


def _told(one: Result, other: Result) -> str:
    change = f", {100 * (other.ms['median'] / one.ms['median'] - 1):+.1f}%" if one.ms and other.ms else ""
    return f"{_time(one)} -> {_time(other)}{change}"


def _time(result: Result) -> str:
    if result.ms is None:
        return result.error or "no time"
    median, p20, p80 = (number(result.ms[name]) for name in ("median", "p20", "p80"))
    return f"{median} ({p20}-{p80}) ms"


def _place(result: Result) -> str:
    known = (result.machine.get(name, f"unknown {name}") for name in ("device", "commit", "date"))
    return ", ".join(known)
