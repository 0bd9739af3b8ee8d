"""A profile as text."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnkern.mac.profiling import Profile, Row

COLUMNS = ("", "calls", "ms", "time", "GMAC", "GMAC/s", "of roof", "MB", "peak MB")
SHOWN = {"modules": 24, "operations": 12, "kernels": 12}  # rows
LEAST = 0.005  # share of the time that a row needs
NAME = 52  # characters


def text(profile: "Profile") -> str:
    """Tables of parts, modules, operations and kernels."""
    seconds = profile.total.seconds
    sections = [
        ("", [profile.total, *profile.parts]),
        (
            "modules, those alike together, with all inside them",
            _important(_alike(profile.modules), seconds, "modules"),
        ),
        ("operations", _important(profile.operations, seconds, "operations", by_time=True)),
    ]
    lines = [f"{profile.device}", f"{1e3 * profile.seconds:.3f} ms a call, without the profiler; below, with it"]
    for title, rows in sections:
        lines += ["", *_table(title, rows, seconds)]
    if profile.uncounted:
        names = ", ".join(f"{name} ({calls})" for name, calls in profile.uncounted.items())
        lines += ["", f"not in the MACs, for want of a formula (calls): {names}"]
    kernels = sorted(profile.total.kernels.items(), key=lambda entry: -entry[1])[: SHOWN["kernels"]]
    if kernels:
        lines += ["", f"{'kernels':<{NAME}} {'ms':>9} {'time':>6}"]
        lines += [f"{_cut(name):<{NAME}} {1e3 * t:>9.3f} {_percent(t, seconds):>6}" for name, t in kernels]
    return "\n".join(lines)


def _table(title: str, rows: list["Row"], total: float) -> list[str]:
    heads = (title, *COLUMNS[1:])
    cells = [heads] + [
        (
            _cut(row.name),
            str(row.calls),
            f"{1e3 * row.seconds:.3f}",
            _percent(row.seconds, total),
            f"{1e-9 * row.macs:.3f}" if row.macs else "",
            f"{1e-9 * row.rate:.1f}" if row.macs else "",
            _percent(row.roof_seconds, row.seconds) if row.macs else "",
            f"{1e-6 * row.bytes:.1f}",
            "" if row.peak_bytes is None else f"{1e-6 * row.peak_bytes:.1f}",
        )
        for row in rows
    ]
    return [(f"{first:<{NAME}} " + " ".join(f"{cell:>8}" for cell in rest)).rstrip() for first, *rest in cells]


def _alike(modules: list["Row"]) -> list["Row"]:
    """Layers of one kind as one row, `layer.*`; the largest memory of any."""
    found = {}
    for module in (module for module in modules if module.name):  # the model itself is the total
        name = re.sub(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.|$)", "*", module.name)
        entry = found.setdefault(
            (name, module.kind), type(module)(f"{name} ({module.kind})", module.kind, peak_bytes=0)
        )
        entry.add(module)
        entry.peak_bytes = max(entry.peak_bytes, module.peak_bytes or 0)
    return list(found.values())


def _important(rows: list["Row"], total: float, kind: str, by_time: bool = False) -> list["Row"]:
    """Those that take most of the time, in their own order or the order of their times."""
    longest = sorted(rows, key=lambda row: -row.seconds)[: SHOWN[kind]]
    longest = [row for row in longest if row.seconds >= LEAST * total]
    return longest if by_time else [row for row in rows if row in longest]


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}%" if whole else ""


def _cut(name: str) -> str:
    return name if len(name) <= NAME else name[: NAME - 3] + "..."
