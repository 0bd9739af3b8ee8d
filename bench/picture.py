"""One picture of results, for a README: useful MACs a second of everyone on every row, with device and date."""

from pathlib import Path

from matplotlib.figure import Figure

from attnkern.atomic import written
from attnkern.bench.problems import PHASES, Row
from attnkern.bench.report import FAMILIES, family, provenance
from attnkern.bench.results import Result, latest
from attnkern.commands import CommandError

COLOURS = (
    "#cf3648", "#e28a12", "#1f6fb2", "#1f8f5f", "#7b8794", "#8053b0", "#0e9aa7", "#b5497f", "#8a6d1d", "#4f5bd5",
    "#5d7a1a",
)  # fmt: skip
SHADES = (1.0, 0.6, 0.35, 0.2)  # of a family's members


def write(path: Path, results: list[Result]) -> None:
    """Writes a PNG, whole or not at all: a block for each device, a column for each pass.

    Raises:
        OSError: it cannot be written.
        CommandError: there is nothing to draw.
    """
    timed = [r for r in latest(results) if r.macs_per_second and r.row.kind not in ("matmul", "copy")]
    if not timed:
        raise CommandError("none of these results has a time to draw: a page shows why")
    devices = {}
    for result in timed:
        devices.setdefault(result.machine.get("device", "unknown"), []).append(result)
    phases = [phase for phase in PHASES if any(result.row.phase == phase for result in timed)]
    heights = [0.25 * len(group) / len(phases) + 1.2 for group in devices.values()]
    figure = Figure(figsize=(5.5 * len(phases) + 1, sum(heights)), layout="constrained")
    blocks = figure.subfigures(len(devices), 1, squeeze=False, height_ratios=heights)[:, 0]
    for block, (device, group) in zip(blocks, devices.items()):
        dtypes = ", ".join(sorted({result.row.dtype for result in group}))
        block.suptitle(f"{device}, {dtypes}; {provenance(group)}", fontsize="medium")
        panels = block.subplots(1, len(phases), squeeze=False)[0]
        shades = _shades(group)
        for panel, phase in zip(panels, phases):
            _draw(panel, phase, [result for result in group if result.row.phase == phase], shades)
        signs = {label: sign for panel in panels for sign, label in zip(*panel.get_legend_handles_labels())}
        block.legend(signs.values(), signs, loc="outside lower center", ncols=6, frameon=False)
    with written(path) as draft:
        figure.savefig(draft, format="png", dpi=110)


def _draw(panel, phase: str, results: list[Result], shades: dict[str, float]) -> None:
    """Bars from top to bottom, one group for each row."""
    place, ticks, unit, name = 0.0, {}, *_unit(results)
    for row in dict.fromkeys(result.row for result in results):
        group = [result for result in results if result.row == row]
        ticks[_words(row)] = place + (len(group) - 1) / 2
        for result in group:
            rate, colour = result.macs_per_second / unit, COLOURS[family(result.impl)]
            panel.barh(place, rate, 0.9, color=colour, alpha=shades[result.impl], label=result.impl)
            panel.text(rate, place, f" {rate:.3g}", va="center", fontsize="small")
            place += 1
        place += 0.6
    panel.set(title=phase, xlabel=f"useful {name}MAC/s", yticks=list(ticks.values()), yticklabels=list(ticks))
    panel.invert_yaxis()
    panel.margins(x=0.1)
    panel.spines[["top", "right"]].set_visible(False)


def _words(row: Row) -> str:
    return row.name.removesuffix(row.phase).strip()


def _unit(results: list[Result]) -> tuple[float, str]:
    most = max((result.macs_per_second for result in results), default=0.0)
    return (1e12, "T") if most >= 1e12 else (1e9, "G")


def _shades(results: list[Result]) -> dict[str, float]:
    found, used = {}, dict.fromkeys(range(len(FAMILIES)), 0)
    for impl in dict.fromkeys(result.impl for result in results):
        found[impl] = SHADES[min(used[family(impl)], len(SHADES) - 1)]
        used[family(impl)] += 1
    return found
