"""Charts as inline SVG, small enough for a phone; colours are the page's, so that they follow its dark mode."""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 360, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 34  # margins of the plotted area
BAR, GAP = 15, 5
DASHES = ("", "6 3", "2 3", "8 3 2 3")


class Series(NamedTuple):
    """Points of one implementation: `(x, y, what to say of it)`; colour and dash are numbers."""

    name: str
    points: Sequence[tuple[float, float, str]]
    colour: int
    dash: int = 0


class Bar(NamedTuple):
    """One horizontal bar; `text` stands at its end."""

    name: str
    value: float
    text: str
    colour: int


def lines(series: Sequence[Series], unit: Callable[[float], str], x_ticks: dict[float, str], x_label: str) -> str:
    """Lines with markers; both axes logarithmic."""
    xs, ys = ([point[axis] for one in series for point in one.points] for axis in (0, 1))
    across, up = (
        _Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT, 0.06),
        _Scale(min(ys), max(ys), HEIGHT - BOTTOM, TOP, 0.08),
    )
    parts = [_axes(across, up, x_ticks, {tick: unit(tick) for tick in up.ticks()}, x_label)]
    for one in series:
        places = [(across(x), up(y), text) for x, y, text in sorted(one.points)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
        dash = f' stroke-dasharray="{DASHES[one.dash % len(DASHES)]}"' if one.dash else ""
        parts.append(f'<polyline class="line c{one.colour}" points="{path}"{dash}/>')
        parts += [_dot(x, y, one.colour, f"{one.name}: {text}") for x, y, text in places]
    return _svg(parts, HEIGHT)


def scatter(
    series: Sequence[Series],
    roofs: Sequence[tuple[str, Callable[[float], float]]],
    unit: Callable[[float], str],
    x_label: str,
) -> str:
    """Points under roofs, which are functions of x; both axes logarithmic."""
    xs, ys = ([point[axis] for one in series for point in one.points] for axis in (0, 1))
    ys += [min(roof(x) for _, roof in roofs) for x in (min(xs), max(xs))]
    height = HEIGHT + 40
    across, up = (
        _Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT, 0.06),
        _Scale(min(ys), max(ys), height - BOTTOM, TOP, 0.1),
    )
    x_ticks = {tick: f"{tick:g}" for tick in across.ticks()}
    parts = [_axes(across, up, x_ticks, {tick: unit(tick) for tick in up.ticks()}, x_label, height)]
    steps = [across.low * (across.high / across.low) ** (i / 100) for i in range(101)]
    path = " ".join(f"{across(x):.1f},{up(min(roof(x) for _, roof in roofs)):.1f}" for x in steps)
    parts.append(f'<polyline class="roof" points="{path}"/>')
    for one in series:
        parts += [_dot(across(x), up(y), one.colour, f"{one.name}: {text}") for x, y, text in one.points]
    return _svg(parts, height)


def bars(found: Sequence[Bar], label_width: int = 128, most: float | None = None) -> str:
    """Horizontal bars from 0 to `most`, one below the other, each with its name before it."""
    room = WIDTH - label_width - 74
    most = most or max(bar.value for bar in found)
    parts = []
    for number, bar in enumerate(found):
        y = number * (BAR + GAP)
        length = max(1.0, room * bar.value / most)
        place = f'x="{label_width}" y="{y}" width="{length:.1f}" height="{BAR}"'
        parts.append(_text("label", label_width - 6, y + 12, bar.name, "end"))
        parts.append(f'<rect class="bar c{bar.colour}" {place} rx="2"/>')
        parts.append(_text("label", label_width + length + 5, y + 12, bar.text))
    return _svg(parts, len(found) * (BAR + GAP))


class _Scale:
    """A logarithmic axis from data to pixels, with some room at both ends."""

    def __init__(self, low: float, high: float, begin: float, end: float, room: float):
        spread = max(math.log10(high / low), 0.3)
        middle = (math.log10(low) + math.log10(high)) / 2
        reach = spread * (0.5 + room)
        self.low, self.high = 10 ** (middle - reach), 10 ** (middle + reach)
        self.begin, self.end = begin, end

    def __call__(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Powers of ten; where those are few, others between them."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
            found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
            found = [tick for tick in found if self.low <= tick <= self.high]
            if len(found) >= 3:
                break
        return found[:: math.ceil(len(found) / 7)]


def _axes(across: _Scale, up: _Scale, x_ticks: dict[float, str], y_ticks: dict[float, str], label: str, height=HEIGHT):
    parts = []
    for tick, text in y_ticks.items():
        y = up(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text("tick", LEFT - 5, y + 4, text, "end"))
    for tick, text in x_ticks.items():
        x = across(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>')
        parts.append(_text("tick", x, height - BOTTOM + 14, text, "middle"))
    parts.append(_text("tick", (LEFT + WIDTH - RIGHT) / 2, height - 4, label, "middle"))
    return "".join(parts)


def _text(kind: str, x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _dot(x: float, y: float, colour: int, text: str) -> str:
    return f'<circle class="dot c{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{escape(text)}</title></circle>'


def _svg(parts: Sequence[str], height: int) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'
