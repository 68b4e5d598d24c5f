"""Line and dot plots as SVG text: no script, no dependency, colours from the page's style sheet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Axis", "Series", "dot_plot", "line_plot"]

WIDTH, HEIGHT = 640, 340
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 14, 46
LEGEND_LINE = 18
DOT_LINE = 26
LETTER = 6.4
"""Pixels of a letter, about: names of rows stand to the left of their dots."""
TEXT_PER_LEGEND_ROW = 92


@dataclass(frozen=True)
class Series:
    """One curve: its name in the legend and its points, in order of x."""

    name: str
    points: Sequence[tuple[float, float]]
    is_dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """What an axis measures, with its unit; logarithmic or linear."""

    label: str
    is_log: bool = False


@dataclass(frozen=True)
class _Scale:
    """Data to pixels along one axis."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.is_log else v for v in (self.low, self.high, value))
        return self.start + (at - low) / ((high - low) or 1.0) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers within the scale: decades, or four to eight equal steps."""
        if self.is_log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if len(decades) <= 3 else (1,)
            values = [step * 10.0**decade for decade in decades for step in steps]
        else:
            step = _round_step((self.high - self.low) / 5)
            values = [n * step for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        slack = 1e-9 * abs(self.high)
        return [value for value in values if self.low - slack <= value <= self.high + slack]


def line_plot(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """An <svg> of all curves over common axes; points that are not finite, or not positive on a log axis, are left out.

    Raises ValueError if no point is left.
    """
    kept = [Series(one.name, [p for p in one.points if _fits(p, x, y)], one.is_dashed) for one in series]
    kept = [one for one in kept if one.points]
    if not kept:
        raise ValueError(f"nothing to draw in {title!r}: no series has a point that fits the axes")
    rows = _legend_rows([one.name for one in kept])
    bottom = HEIGHT - BOTTOM
    across = _Scale(*_range([p[0] for one in kept for p in one.points], x, 0.0), LEFT, WIDTH - RIGHT, x.is_log)
    up = _Scale(*_range([p[1] for one in kept for p in one.points], y, 0.05), bottom, TOP, y.is_log)
    body = _grid(across, up, x, y)
    for index, one in enumerate(kept):
        corners = " ".join(f"{across(px):.1f},{up(py):.1f}" for px, py in one.points)
        dash = ' stroke-dasharray="6 4"' if one.is_dashed else ""
        radius = 2.5 if len(one.points) > 1 else 5
        body.append(f'<polyline class="c{index % 8}" points="{corners}"{dash}/>')
        body += [
            f'<circle class="c{index % 8}" cx="{across(px):.1f}" cy="{up(py):.1f}" r="{radius}">'
            f"<title>{escape(one.name)}: {_text(px)}, {_text(py)}</title></circle>"
            for px, py in one.points
        ]
    body += _legend(rows, kept)
    return _svg(title, WIDTH, HEIGHT + LEGEND_LINE * len(rows), body)


def dot_plot(
    title: str, x: Axis, rows: Sequence[tuple[str, float, float, Sequence[float]]], limit: float | None
) -> str:
    """One line for each (name, mean, error, single values): mean with its error, values, zero and perhaps a limit.

    An error that is NaN is not drawn, nor is a row whose mean is. Raises ValueError if no row is left.
    """
    kept = [row for row in rows if math.isfinite(row[1])]
    if not kept:
        raise ValueError(f"nothing to draw in {title!r}: no row has a mean")
    errors = [0.0 if math.isnan(error) else error for _, _, error, _ in kept]
    edges = [0.0, *(() if limit is None else (limit,)), *(value for row in kept for value in row[3])]
    edges += [mean + sign * error for (_, mean, _, _), error in zip(kept, errors, strict=True) for sign in (-1, 1)]
    bottom = TOP + DOT_LINE * len(kept)
    left = 20 + LETTER * max(len(row[0]) for row in kept)
    across = _Scale(*_range(edges, x, 0.05), left, WIDTH - RIGHT, is_log=False)
    body = [_vertical(across(tick), bottom, "grid") for tick in across.ticks()]
    body += [_tick(across(tick), bottom + 16, _text(tick), "middle") for tick in across.ticks()]
    body.append(_vertical(across(0.0), bottom, "zero"))
    if limit is not None:
        body.append(_vertical(across(limit), bottom, "limit"))
    for index, ((name, mean, _, values), error) in enumerate(zip(kept, errors, strict=True)):
        height = TOP + DOT_LINE * (index + 0.5)
        body.append(_tick(left - 10, height + 4, name, "end"))
        body += [f'<circle class="single" cx="{across(value):.1f}" cy="{height:.1f}" r="3"/>' for value in values]
        low, high = across(mean - error), across(mean + error)
        body.append(f'<line class="c0" x1="{low:.1f}" x2="{high:.1f}" y1="{height:.1f}" y2="{height:.1f}"/>')
        body.append(
            f'<circle class="c0" cx="{across(mean):.1f}" cy="{height:.1f}" r="4.5">'
            f"<title>{escape(name)}: {mean:+.2f}</title></circle>"
        )
    body.append(_tick((left + WIDTH - RIGHT) / 2, bottom + 36, x.label, "middle"))
    return _svg(title, WIDTH, bottom + BOTTOM, body)


def _fits(point: tuple[float, float], x: Axis, y: Axis) -> bool:
    return all(math.isfinite(v) and (v > 0 or not axis.is_log) for v, axis in zip(point, (x, y), strict=True))


def _range(values: Sequence[float], axis: Axis, margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if axis.is_log:
        return low * 0.9, high * 1.1
    pad = margin * ((high - low) or abs(high) or 1.0)
    return low - pad, high + pad


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(nice * power for nice in (1.0, 2.0, 2.5, 5.0, 10.0) if nice * power >= step * (1 - 1e-9))


def _text(value: float) -> str:
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.3g}"


def _grid(across: _Scale, up: _Scale, x: Axis, y: Axis) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    body = []
    for tick in across.ticks():
        body += [_vertical(across(tick), bottom, "grid"), _tick(across(tick), bottom + 16, _text(tick), "middle")]
    for tick in up.ticks():
        height = up(tick)
        body.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{height:.1f}" y2="{height:.1f}"/>')
        body.append(_tick(LEFT - 6, height + 4, _text(tick), "end"))
    body.append(_tick((LEFT + right) / 2, bottom + 36, x.label, "middle"))
    middle = (TOP + bottom) / 2
    body.append(
        f'<text x="14" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 14 {middle:.0f})">'
        f"{escape(y.label)}</text>"
    )
    return body


def _vertical(at: float, bottom: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>'


def _tick(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _legend_rows(names: Sequence[str]) -> list[list[str]]:
    """Names in as many rows as their lengths need."""
    rows: list[list[str]] = [[]]
    for name in names:
        if rows[-1] and sum(len(other) + 6 for other in rows[-1]) + len(name) > TEXT_PER_LEGEND_ROW:
            rows.append([])
        rows[-1].append(name)
    return rows


def _legend(rows: Sequence[Sequence[str]], series: Sequence[Series]) -> list[str]:
    body, index = [], 0
    for number, row in enumerate(rows):
        x, y = float(LEFT), HEIGHT + LEGEND_LINE * number + 6
        for name in row:
            dash = ' stroke-dasharray="6 4"' if series[index].is_dashed else ""
            body.append(f'<line class="c{index % 8}" x1="{x:.0f}" x2="{x + 22:.0f}" y1="{y}" y2="{y}"{dash}/>')
            body.append(_tick(x + 27, y + 4, name, "start"))
            x += 6.2 * len(name) + 44
            index += 1
    return body


def _svg(title: str, width: int, height: float, body: Sequence[str]) -> str:
    inside = "\n".join(body)
    return (
        f'<svg role="img" viewBox="0 0 {width} {height:.0f}" xmlns="http://www.w3.org/2000/svg">\n'
        f"<title>{escape(title)}</title>\n{inside}\n</svg>"
    )
