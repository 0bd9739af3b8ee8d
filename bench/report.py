"""One self-contained page from results: speed against length, rooflines, useful MACs, memory, and a table to sort."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from html import escape
from pathlib import Path
from string import Template

from attnkern.atomic import written
from attnkern.bench.charts import DASHES, Bar, Series, bars, lines, scatter
from attnkern.bench.problems import Row
from attnkern.bench.results import Result, latest
from attnkern.bench.show import number, percent, scaled, size

FAMILIES = (
    "attnkern", "global", "SDPA", "FlexAttention", "naive", "nn.MultiheadAttention", "flash-attn", "flash-attn-4",
    "xformers", "natten", "local-attention",
)  # fmt: skip
COLOURS = range(len(FAMILIES))  # page.html has so many
COLUMNS = ("row", "implementation", "ms", "p20", "p80", "MAC/s", "of roof", "useful", "memory", "no time because")


def write(path: Path, results: list[Result]) -> None:
    """Writes the page, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    template = Template(Path(__file__).with_name("page.html").read_text())
    styles = (f".dot.c{n}, .bar.c{n} {{ fill: var(--c{n}); }} .line.c{n} {{ stroke: var(--c{n}); }}" for n in COLOURS)
    text = template.substitute(colours="\n".join(styles), sections="\n".join(_sections(latest(results))))
    with written(path) as draft:
        draft.write_text(text)


def family(impl: str) -> int:
    """Number of the family, which has one colour: `attnkern[cuda]` and `SDPA flash` are of attnkern and SDPA."""
    name = impl.split("[")[0] if "[" in impl else impl if impl in FAMILIES else impl.split(" ")[0]
    return FAMILIES.index(name) if name in FAMILIES else FAMILIES.index("naive")


def dashes(results: Iterable[Result]) -> dict[str, int]:
    """How the line of each implementation is drawn, so that those of a family differ."""
    found, used = {}, {}
    for impl in sorted({result.impl for result in results}):
        found[impl] = used[family(impl)] = used.get(family(impl), -1) + 1
    return found


def panels(results: Iterable[Result]) -> dict[Row, list[Result]]:
    """Results that differ in implementation and length alone, by what they share."""
    found = {}
    for result in results:
        shared = replace(result.row, batch=1, len_q=1, len_k=1)
        found.setdefault(shared, []).append(result)
    return found


def length(row: Row) -> int:
    return max(row.len_q, row.len_k)


def short(row: Row) -> str:
    """The row's name without kind, batch and heads."""
    return " ".join(word for word in row.name.split()[1:] if word[0] not in "BH")


def title(shared: Row) -> str:
    """Of a panel: the row's name without its length."""
    return " ".join(word for word in shared.name.split() if word not in ("1", "B1"))


def _sections(results: list[Result]) -> Iterable[str]:
    for place, device in enumerate(dict.fromkeys(result.machine.get("device", "unknown") for result in results)):
        here = [result for result in results if result.machine.get("device", "unknown") == device]
        attention = [result for result in here if result.row.kind not in ("matmul", "copy")]
        yield f"<h2>{escape(device)}</h2><p>{escape(provenance(here))}</p>"
        yield _legend(attention)
        yield "<h3>Speed against length</h3><p>Useful MACs a second; higher is better.</p>"
        yield _panels(attention, lambda result: result.macs_per_second, scaled)
        yield from _roofline(attention)
        yield from _useful(attention)
        if any(result.memory for result in attention):
            yield "<h3>Memory</h3><p>What one call takes at its peak, results included; lower is better.</p>"
            yield _panels(attention, lambda result: result.memory, size)
        yield _table(here, f"table{place}")


def provenance(results: Iterable[Result]) -> str:
    """Versions, commits and dates, each once."""
    texts = []
    for name in ("torch", "driver", "threads", "commit", "date"):
        values = dict.fromkeys(r.machine[name] for r in results if r.machine.get(name) not in (None, "none", "unknown"))
        if values:
            texts.append(f"{name} {', '.join(values)}")
    return "; ".join(texts)


def _legend(results: list[Result]) -> str:
    items = []
    for impl, dash in dashes(results).items():
        style = f' stroke-dasharray="{DASHES[dash % len(DASHES)]}"' if dash else ""
        colour = family(impl)
        sign = f'<svg viewBox="0 0 28 12"><polyline class="line c{colour}" points="0,6 28,6"{style}/>'
        items.append(f'<li>{sign}<circle class="dot c{colour}" cx="14" cy="6" r="3.5"/></svg>{escape(impl)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def _panels(results: list[Result], value: Callable[[Result], float | None], unit: Callable[[float], str]) -> str:
    """A panel per kind, sizes and pass: lines, or bars where there is one length only."""
    dash = dashes(results)
    figures = {"lines": [], "bars": []}
    for shared, group in panels(result for result in results if value(result)).items():
        lengths = sorted({length(result.row) for result in group})
        if len(lengths) > 1:
            series = [
                Series(
                    impl,
                    [(length(r.row), value(r), f"{r.row.name}, {unit(value(r))}") for r in group if r.impl == impl],
                    family(impl),
                    dash[impl],
                )
                for impl in dict.fromkeys(result.impl for result in group)
            ]
            chart = lines(series, lambda tick: _tick(unit(tick)), {one: _length(one) for one in lengths}, "length")
            figures["lines"].append(_figure(title(shared), chart))
        else:
            chart = bars([Bar(r.impl, value(r), unit(value(r)), family(r.impl)) for r in group])
            figures["bars"].append(_figure(group[0].row.name, chart))
    return "".join(f'<div class="panels">{"".join(found)}</div>' for found in figures.values())


def _figure(caption: str, chart: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{chart}</figure>"


def _tick(text: str) -> str:
    """A round number without the zeros that stand for its precision."""
    value, _, unit = text.partition(" ")
    return f"{float(value):g} {unit}"


def _roofline(results: list[Result]) -> Iterable[str]:
    """A chart per dtype, of what was measured beside the roofs."""
    known = [result for result in results if result.roof and result.macs_per_second and result.bytes]
    for dtype in dict.fromkeys(result.row.dtype for result in known):
        group = [result for result in known if result.row.dtype == dtype]
        roof = group[-1].roof
        series = [
            Series(impl, [_under_roof(result) for result in group if result.impl == impl], family(impl))
            for impl in dict.fromkeys(result.impl for result in group)
        ]
        limits = [("matrix", lambda x, roof=roof: roof.macs), ("memory", lambda x, roof=roof: roof.bytes * x)]
        chart = scatter(series, limits, lambda tick: _tick(scaled(tick)), "useful MACs for each byte moved at least")
        yield f"<h3>Roofline, {escape(dtype)}</h3><p>Measured on this device: {scaled(roof.macs)}MAC/s of a large "
        yield f"product, {scaled(roof.bytes)}B/s of a copy, {scaled(roof.exps)} exponentials a second (at times the "
        yield f'lower roof).</p><figure class="wide">{chart}</figure>'


def _under_roof(result: Result) -> tuple[float, float, str]:
    text = f"{result.row.name}, {percent(result.share_of_roof)} of its roof"
    return result.useful_macs / result.bytes, result.macs_per_second, text


def _useful(results: list[Result]) -> Iterable[str]:
    known = [result for result in results if result.useful_share and result.role == "ours"]
    if not known:
        return
    yield "<h3>Useful against issued MACs</h3><p>What share of the multiply-accumulates that attnkern's kernels do is "
    yield "asked for: the rest is padding, hidden parts of tiles, and products computed again.</p>"
    figures = []
    for impl, kind in dict.fromkeys((result.impl, result.row.kind) for result in known):
        group = [result for result in known if (result.impl, result.row.kind) == (impl, kind)]
        found = [Bar(short(r.row), r.useful_share, percent(r.useful_share), 0) for r in group]
        figures.append(_figure(f"{impl}, {kind}", bars(found, label_width=200, most=1.0)))
    yield f'<div class="panels">{"".join(figures)}</div>'


def _table(results: list[Result], name: str) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in COLUMNS)
    body = []
    for r in results:
        ms = r.ms or {}
        numbers = [(ms.get(key), number) for key in ("median", "p20", "p80")]
        numbers += [(r.macs_per_second, scaled), (r.share_of_roof, percent), (r.useful_share, percent)]
        numbers.append((r.memory, size))
        cells = "".join(
            "<td></td>" if value is None else f'<td data-value="{value:.6g}">{escape(text(value))}</td>'
            for value, text in numbers
        )
        error = f'<td class="error">{escape(r.error or "")}</td>'
        body.append(f'<tr class="{r.role}"><td>{escape(r.row.name)}</td><td>{escape(r.impl)}</td>{cells}{error}</tr>')
    search = f'<input type="search" placeholder="words to look for" aria-label="filter" data-table="{name}">'
    table = f'<table id="{name}"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    return f'<h3>All rows</h3><p>Click a heading to sort.</p>{search}<div class="scroll">{table}</div>'


def _length(length: int) -> str:
    return f"{length // 1024}k" if length % 1024 == 0 else f"{length}"
