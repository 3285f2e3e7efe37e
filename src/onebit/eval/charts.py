"""Small pictures as inline SVG: a line chart, stacked shares, stacked bars, plain bars, a front.

Hand-written SVG instead of a plotting library keeps the report one small file that opens without a network, follows the
reader's light or dark setting (colours are CSS variables of the page) and stays sharp on a phone. Each picture is drawn
480 units wide, so that its 13-unit text is still readable at the width of a phone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Bar", "Line", "Segment", "ShareRow", "Spot", "bars", "front", "line_chart", "share_rows", "stacked_bars"]

WIDTH = 480


@dataclass(frozen=True, slots=True)
class Line:
    """One curve; `style` is a CSS class of the page (faint, strong, dotted)."""

    label: str
    points: Sequence[tuple[float, float]]
    style: str


@dataclass(frozen=True, slots=True)
class ShareRow:
    """Shares of the codes -1, 0, +1 in one tensor; they sum to 1."""

    label: str
    minus: float
    zero: float
    plus: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a stacked bar; `style` is a CSS class of the page."""

    label: str
    value: float
    style: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar with its value written out, and how far it may be off either way."""

    label: str
    value: float
    text: str
    spread: float = 0.0


@dataclass(frozen=True, slots=True)
class Spot:
    """A point with its name."""

    label: str
    x: float
    y: float


def _svg(height: float, title: str, body: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(body)}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "start", style: str = "label") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}">{escape(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, style: str, tip: str = "") -> str:
    title = f"<title>{escape(tip)}</title>" if tip else ""
    return (
        f'<rect x="{x:.2f}" y="{y:.1f}" width="{max(width, 0.0):.2f}" height="{height:.1f}" class="{style}">'
        f"{title}</rect>"
    )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from low to high, about so many: steps of 1, 2 or 5 times a power of ten."""
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= about)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:.3g}"


def line_chart(lines: Sequence[Line], *, x_label: str, title: str) -> str:
    """Curves over a common x axis; y runs from just below the lowest point to just above the highest."""
    points = [point for line in lines for point in line.points]
    if not points:
        return f"<p>{escape(title)}: nothing was logged.</p>"
    left, right, top, bottom = 44.0, 470.0, 28.0, 232.0
    x_high = max(max(x for x, _ in points), 1.0)
    y_low, y_high = min(y for _, y in points), max(y for _, y in points)
    margin = 0.05 * max(y_high - y_low, 1e-3)
    y_low, y_high = y_low - margin, y_high + margin

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * x / x_high, bottom - (bottom - top) * (y - y_low) / (y_high - y_low)

    body = []
    for value in ticks(y_low, y_high):
        _, y = place(0, value)
        body += [f'<path d="M{left} {y:.1f}H{right}" class="grid"/>', _text(left - 6, y + 4, _number(value), "end")]
    for value in ticks(0, x_high):
        x, _ = place(value, y_low)
        body.append(_text(x, bottom + 18, _number(value), "middle" if x < right - 12 else "end"))
    for line in lines:
        placed = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line.points))
        body.append(f'<polyline points="{placed}" class="line {line.style}"/>')
        if line.style == "dotted":
            ends = [place(*point) for point in line.points]
            body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="dot"/>' for x, y in ends]
    body += _legend([(line.label, f"key {line.style}") for line in lines], left, 14)
    body.append(_text(right, bottom + 36, x_label, "end"))
    return _svg(bottom + 44, title, body)


def _legend(entries: Sequence[tuple[str, str]], x: float, y: float) -> list[str]:
    body = []
    for label, style in entries:
        body += [_rect(x, y - 9, 12, 9, style), _text(x + 17, y, label)]
        x += 17 + 6.9 * len(label) + 16  # 6.9: the mean width of a character at 13 units
    return body


def share_rows(groups: Sequence[tuple[str, Sequence[ShareRow]]], *, title: str) -> str:
    """One thin bar per tensor, from -1 on the left to +1 on the right, grouped under a heading."""
    left, right, y = 96.0, 470.0, 34.0
    body = _legend([("\u22121", "minus"), ("0", "zero"), ("+1", "plus")], left, 14)
    for heading, rows in groups:
        body.append(_text(0, y + 9, heading, style="label strong-label"))
        for row in rows:
            x = left
            body.append(_text(left - 6, y + 9, row.label, "end"))
            for share, style in ((row.minus, "minus"), (row.zero, "zero"), (row.plus, "plus")):
                tip = f"{heading} {row.label}: {row.minus:.1%} \u22121, {row.zero:.1%} 0, {row.plus:.1%} +1"
                body.append(_rect(x, y, (right - left) * share, 11, style, tip))
                x += (right - left) * share
            y += 16
        y += 8
    return _svg(y, title, body)


def stacked_bars(rows: Sequence[tuple[str, Sequence[Segment]]], *, unit: str, title: str) -> str:
    """One bar per row, its parts beside each other, the total written above it; all to one scale."""
    right, y = 470.0, 34.0
    longest = max(sum(part.value for part in parts) for _, parts in rows)
    seen: dict[str, str] = {part.label: part.style for _, parts in rows for part in parts if part.value > 0}
    body = _legend(list(seen.items()), 0, 14)
    for label, parts in rows:
        total = sum(part.value for part in parts)
        body += [_text(0, y + 10, label), _text(right, y + 10, f"{total:.2f} {unit}", "end", "label strong-label")]
        x = 0.0
        for part in parts:
            width = right * part.value / longest
            body.append(_rect(x, y + 17, width, 22, part.style, f"{part.label}: {part.value:.3f} {unit}"))
            x += width
        y += 58
    return _svg(y, title, body)


def bars(rows: Sequence[Bar], *, title: str) -> str:
    """Horizontal bars to one scale that starts at zero."""
    right, y = 470.0, 8.0
    longest = max((row.value + row.spread for row in rows), default=1.0) or 1.0
    body = []
    for row in rows:
        body += [_text(0, y + 10, row.label), _text(right, y + 10, row.text, "end", "label strong-label")]
        body += [_rect(0, y + 17, right, 14, "track"), _rect(0, y + 17, right * row.value / longest, 14, "accent")]
        if row.spread:
            low, high = (right * max(value, 0) / longest for value in (row.value - row.spread, row.value + row.spread))
            body.append(
                f'<path d="M{low:.1f} {y + 24}H{high:.1f}M{low:.1f} {y + 20}v8M{high:.1f} {y + 20}v8" class="whisker"/>'
            )
        y += 48
    return _svg(y, title, body)


def front(spots: Sequence[Spot], *, x_label: str, y_label: str, title: str) -> str:
    """Points, less is better both ways, and the line through those that no other beats in both. x > 0, logarithmic."""
    left, right, top, bottom = 44.0, 470.0, 28.0, 232.0
    x_low, x_high = min(spot.x for spot in spots) / 1.5, max(spot.x for spot in spots) * 1.5
    y_low, y_high = min(spot.y for spot in spots), max(spot.y for spot in spots)
    margin = 0.15 * max(y_high - y_low, 1e-3)
    y_low, y_high = y_low - margin, y_high + margin

    def place(x: float, y: float) -> tuple[float, float]:
        share = math.log(x / x_low) / math.log(x_high / x_low)
        return left + (right - left) * share, bottom - (bottom - top) * (y - y_low) / (y_high - y_low)

    body = [_text(0, 14, y_label)]
    for value in ticks(y_low, y_high):
        _, y = place(x_low, value)
        body += [f'<path d="M{left} {y:.1f}H{right}" class="grid"/>', _text(left - 6, y + 4, _number(value), "end")]
    for value in _log_ticks(x_low, x_high):
        x, _ = place(value, y_low)
        body.append(_text(x, bottom + 18, _number(value), "middle" if x < right - 12 else "end"))
    kept: list[Spot] = []
    for spot in sorted(spots, key=lambda spot: (spot.x, spot.y)):
        if not kept or spot.y < kept[-1].y:
            kept.append(spot)
    steps = [place(kept[0].x, kept[0].y)]
    for before, after in itertools.pairwise(kept):
        steps += [place(after.x, before.y), place(after.x, after.y)]
    body.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in steps)}" class="line strong"/>')
    taken: list[tuple[float, float, float]] = []
    for spot in spots:
        x, y = place(spot.x, spot.y)
        body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" class="{"accent" if spot in kept else "dot"}"/>')
        begin, line = _free_place(x, y, 7.0 * len(spot.label), right, taken)
        taken.append((begin, begin + 7.0 * len(spot.label), line))
        body.append(_text(begin, line, spot.label))
    body.append(_text(right, bottom + 36, x_label, "end"))
    return _svg(bottom + 44, title, body)


def _free_place(
    x: float, y: float, width: float, right: float, taken: Sequence[tuple[float, float, float]]
) -> tuple[float, float]:
    """(begin, line) of a label of a spot: above it, else below, else as far away as other labels make it go."""
    begin = x + 8 if x + 8 + width <= right else x - 8 - width
    lines = [y - 7, y + 17, *(y + sign * (7 + 14 * n) for n in range(1, 8) for sign in (-1, 1))]
    for line in lines:
        if all(begin > end or begin + width < start or abs(line - other) >= 13 for start, end, other in taken):
            return begin, line
    return begin, lines[0]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade between; the ones alone where that is many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
    inside = [value for value in values if low <= value <= high]
    return inside if len(inside) <= 8 else [10.0**decade for decade in decades if low <= 10.0**decade <= high]
