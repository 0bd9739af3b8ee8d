"""What a run prints: a block per row as it is done, progress with the time left, and how far ahead we are."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from attnkern.bench.results import Result

COLUMNS = f"  {'':<22}{'ms':>9}  {'p20 - p80':<17}{'MAC/s':>9}{'of roof':>9}{'useful':>8}{'memory':>10}{'time':>8}"


def progress(label: str) -> Callable[[Sequence], Iterator]:
    """A bar with the time left around a list, on a terminal where rich is installed."""
    if not sys.stderr.isatty() or find_spec("rich") is None:
        return iter
    from rich import progress as bars
    from rich.console import Console

    def track(items: Sequence) -> Iterator:
        columns = (*bars.Progress.get_default_columns(), bars.MofNCompleteColumn())
        console = Console(stderr=True)
        with bars.Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
            yield from bar.track(items, description=label)

    return track


def header(machine: dict[str, str]) -> None:
    place = f"{machine['device']}, torch {machine['torch']}, threads: {machine['threads']}, {machine['date']}"
    print(f"{place}, commit {machine['commit']}")
    print("of roof: least time for the useful work / time; useful: share of the MACs issued; time: in units of ours")
    print(COLUMNS, flush=True)


def row(results: list[Result]) -> None:
    """The row's name and floor, and a line for each implementation."""
    if not results:
        return
    roof = next((result.roof for result in results if result.roof), None)
    print(results[0].row.name + (f"  (at least {number(roof.ms)} ms: {roof.limit})" if roof else ""))
    fastest = fastest_of(results, "ours")
    for result in results:
        print(_line(result, fastest), flush=True)


def summary(results: list[Result], file: Path) -> None:
    """Of each kind, how many times as fast as the best peer we are, and where everything is."""
    ratios = {}
    for row in dict.fromkeys(result.row for result in results):
        group = [result for result in results if result.row == row]
        ours, peers = fastest_of(group, "ours"), fastest_of(group, "peer")
        if ours and peers:
            ratios.setdefault(row.kind, []).append(peers / ours)
    for kind, found in ratios.items():
        ahead = sum(ratio > 1 for ratio in found)
        print(f"{kind:<8} {min(found):.2f} to {max(found):.2f} times as fast as the best peer; ", end="")
        print(f"ahead in {ahead} of {len(found)} rows")
    failed = sum(result.error is not None for result in results)
    print(f"{len(results) - failed} results, {failed} without a time, in {file}")


def fastest_of(results: Iterable[Result], role: str) -> float | None:
    """Milliseconds."""
    return min((result.ms["median"] for result in results if result.ms and result.role == role), default=None)


def _line(result: Result, fastest: float | None) -> str:
    name = f"  {result.impl:<22}"
    if result.ms is None:
        return f"{name}{'-':>9}  {result.error}"
    spread = f"{number(result.ms['p20'])} - {number(result.ms['p80'])}"
    cells = (
        f"{scaled(result.macs_per_second):>9}",
        f"{percent(result.share_of_roof):>9}",
        f"{percent(result.useful_share):>8}",
        f"{size(result.memory):>10}",
        f"{result.ms['median'] / fastest:>8.2f}" if fastest else "",
    )
    return f"{name}{number(result.ms['median']):>9}  {spread:<17}" + "".join(cells)


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    digits = 0 if value >= 100 or value == 0 else 1 if value >= 10 else 2 if value >= 1 else 3 if value >= 0.1 else 4
    return f"{value:.{digits}f}"


def scaled(value: float | None) -> str:
    """With M, G or T."""
    if value is None:
        return ""
    unit, size = ("T", 1e12) if value >= 1e12 else ("G", 1e9) if value >= 1e9 else ("M", 1e6)
    return f"{number(value / size)} {unit}"


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f}%" if share >= 0.1 else f"{100 * share:.1f}%"


def size(count: int | None) -> str:
    """Bytes as people read them."""
    if count is None:
        return ""
    unit, power = ("GB", 1e9) if count >= 1e9 else ("MB", 1e6) if count >= 1e6 else ("kB", 1e3)
    return f"{number(count / power)} {unit}"
