"""What the demo prints: rich tables and progress; nothing is computed here."""

from collections.abc import Callable, Iterable
from datetime import date

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from attnkern.commands.demo.accuracy import Check, dtype_name
from attnkern.commands.demo.bert import BertResult
from attnkern.commands.demo.sentences import SENTENCES
from attnkern.commands.demo.speed import DTYPE, HEAD_DIM, HEADS, NAIVE, NAIVE_BYTES, OURS, PHASES, SDPA, SpeedRow

console = Console(highlight=False)
NEIGHBOURS_SHOWN = 4
SENTENCE_SHOWN = 68  # characters


def title(device: str) -> str:
    """Device, version and date, for the picture."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"a CPU, threads: {torch.get_num_threads()}"
    return f"attnkern on {name}, torch {torch.__version__}, {date.today()}"


def lines(heading: str, pairs: Iterable[tuple[str, str]]) -> None:
    """A heading and `(name, text)` lines under it."""
    console.print(f"[bold]{heading}[/]")
    for name, text in pairs:
        note(f"{name:<18} {text}")


def note(*parts: str | Text) -> None:
    """A line, as long as it is."""
    console.print(Text.assemble("  ", *parts), soft_wrap=True)


def verdict(passed: bool) -> Text:
    return Text("pass", "green") if passed else Text("FAIL", "bold red")


def working(label: str, function: Callable, *arguments):
    """The function's result, with a spinner while it works."""
    with console.status(label):
        return function(*arguments)


def progress(label: str, rows: Iterable[SpeedRow], total: int) -> list[SpeedRow]:
    """The rows as a list, with a bar while they are made."""
    return list(track(rows, label, total=total, console=console, transient=True))


def bert(result: BertResult) -> None:
    shortest, longest = result.tokens
    table = _table(
        f"{result.model}: {len(SENTENCES)} sentences, {shortest} to {longest} tokens",
        ("attention", "error against float64", "lowest cosine", "milliseconds"),
    )
    for row in result.rows:
        table.add_row(row.name, f"{row.error:.1e}", f"{row.cosine:.7f}", _milliseconds(row.seconds))
    console.print(table)
    note(f"{OURS} differs from eager and sdpa by {result.difference:.1e} at most: ", verdict(result.passed))
    note(f"budget: {result.budget:.1e}, twice the error of eager, and the same nearest sentences, such as")
    for similarity, *pair in result.neighbours[:NEIGHBOURS_SHOWN]:
        for label, sentence in zip((f"{similarity:.2f}", "    "), pair):
            note(f"{label}  {sentence if len(sentence) <= SENTENCE_SHOWN else sentence[:SENTENCE_SHOWN] + '...'}")


def checks(rows: list[Check]) -> None:
    """One line per kind and dtype: of its results and of its gradients, the one nearest to its budget."""
    table = _table(
        "Errors against the float64 reference, root mean square",
        ("kind", "dtype", "results", "budget", "gradients", "budget", ""),
    )
    for kind, dtype in dict.fromkeys((row.kind, row.dtype) for row in rows):
        group = [row for row in rows if (row.kind, row.dtype) == (kind, dtype)]
        cells = []
        for of_gradients in (False, True):
            worst = max((row for row in group if row.is_gradient == of_gradients), key=lambda row: row.share)
            cells += [f"{worst.error:.1e}", f"{worst.budget:.1e}"]
        table.add_row(kind, dtype, *cells, verdict(all(row.passed for row in group)))
    console.print(table)
    note("budget: twice the error of naive torch in the same precision, plus one rounding")


def speed(rows: list[SpeedRow], device: str) -> None:
    longest = max(row.length for row in rows)
    for phase in PHASES:
        table = _table(
            f"Milliseconds {phase}: {HEADS[device]} heads of {HEAD_DIM}, {dtype_name(DTYPE[device])}",
            ("kind", "length", OURS, SDPA, NAIVE),
        )
        for row in (row for row in rows if row.phase == phase):
            table.add_row(row.kind, str(row.length), *_times(row), end_section=row.length == longest)
        console.print(table)
    note(f"{SDPA}: torch's own attention, with a band mask for local; there is none for hard")
    if any(None in row.seconds.values() for row in rows):
        note(f"skipped: naive torch would need more than {NAIVE_BYTES[device] / 2**30:g} GiB")


def _times(row: SpeedRow) -> list[str | Text]:
    if not row.agrees:
        return [verdict(False)]
    return ["" if name not in row.seconds else _milliseconds(row.seconds[name]) for name in (OURS, SDPA, NAIVE)]


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "skipped"
    return f"{1000 * seconds:.{0 if seconds >= 0.1 else 1 if seconds >= 0.01 else 2}f}"


def _table(heading: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=heading, title_justify="left", title_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
    return table
