"""One picture of the demo: time against length for each kind, and errors as shares of their budgets."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from attnkern.atomic import written
from attnkern.commands.demo.accuracy import Check
from attnkern.commands.demo.speed import NAIVE, OURS, PHASES, SDPA, SpeedRow

COLOURS = {OURS: "#d1495b", SDPA: "#30638e", NAIVE: "#8d99ae"}
LINES = dict(zip(PHASES, ("-", "--")))
MARKERS = (("o", "#d1495b"), ("s", "#30638e"), ("^", "#edae49"))  # of dtypes


def save(path: Path, title: str, speed: list[SpeedRow], checks: list[Check]) -> None:
    """Writes a PNG, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    kinds = list(dict.fromkeys(row.kind for row in speed))
    figure = Figure(figsize=(14, 4.8), layout="constrained")
    figure.suptitle(title)
    *panels, last = figure.subplots(1, len(kinds) + 1)
    for kind, panel in zip(kinds, panels):
        if panel is not panels[0]:
            panel.sharey(panels[0])
        _draw_times(panel, kind, [row for row in speed if row.kind == kind])
    panels[0].set_ylabel("milliseconds")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False)
    _draw_errors(last, checks)
    figure.legend(*last.get_legend_handles_labels(), loc="outside lower right", ncols=2, frameon=False)

    with written(path) as draft:
        figure.savefig(draft, format="png", dpi=150)


def _draw_times(panel, kind: str, rows: list[SpeedRow]) -> None:
    for name in COLOURS:
        for phase in PHASES:
            points = [(row.length, row.seconds[name]) for row in rows if row.phase == phase and row.seconds.get(name)]
            if points:
                lengths, seconds = zip(*points)
                times = [1000 * second for second in seconds]
                panel.plot(lengths, times, LINES[phase], color=COLOURS[name], marker=".", label=f"{name}, {phase}")
    lengths = sorted({row.length for row in rows})
    panel.set(title=kind, xlabel="length", xscale="log", yscale="log", xticks=lengths)
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.minorticks_off()
    panel.grid(alpha=0.3)


def _draw_errors(panel, checks: list[Check]) -> None:
    labels = list(dict.fromkeys(f"{check.kind}: {check.quantity}" for check in checks))
    for dtype, (marker, colour) in zip(dict.fromkeys(check.dtype for check in checks), MARKERS):
        chosen = [check for check in checks if check.dtype == dtype]
        rows = [labels.index(f"{check.kind}: {check.quantity}") for check in chosen]
        panel.plot([check.share for check in chosen], rows, marker, color=colour, label=dtype)
    panel.axvline(1, color="black", linestyle=":", label="budget")
    panel.set(title="error as a share of its budget", yticks=range(len(labels)))
    panel.set_yticklabels(labels, fontsize="small")
    panel.invert_yaxis()
    panel.grid(alpha=0.3)
