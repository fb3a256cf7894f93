"""Learned merging coefficients as an SVG, readable on light and dark pages: by depth for each expert, or a bar each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from clipfuse.fusion.coefficients import ALL, Coefficients, place
from clipfuse.svg import clean, shortened, text

WIDTH, TOP, LEFT, RIGHT = 720, 72, 52, 24
"""Of the picture and its margins, px."""
COLUMNS, GAP = 4, 18
"""Most panels beside each other, and the room between them, px."""
BAR = 22
"""Height of an expert's row, px, where each has one number."""
INK, COLOUR = "#757b83", "#2f81d6"
"""Both read on white and on black, so that no page's theme has to be known."""
CHARACTER = 7.4
"""Width of one in the names, px, generously."""

Number = float | int
Stage = tuple[int, int]
"""Before the layers (0, 0), a layer (1, its number), after the layers (2, 0); these sort by depth."""
Spread = tuple[float, float, float]
"""Least, mean and greatest of some numbers."""


@dataclass(frozen=True)
class Axis:
    """From values to px: `low` lies at `start`, `high` at `end`."""

    low: Number
    high: Number
    start: Number
    end: Number

    def __call__(self, value: Number) -> float:
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)


def coefficients_svg(coefficients: Coefficients, title: str) -> str:
    """An SVG of λ: a panel for each expert with the depth from left to right, or a bar for each where one λ is for all.

    A line is the mean over the parameters of a layer, its band goes from the least to the greatest, and the dashed
    line is the mean over all experts. All panels have the same axes. The same arguments give the same text.
    """
    by_task = coefficients.grain == "task"
    parts, height = bars(coefficients) if by_task else panels(coefficients)
    body = "\n".join([text(16, 24, shortened(title, 90), size=14, weight=600), *parts])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" font-family="system-ui, -apple-system, \'Segoe UI\', Helvetica, Arial, sans-serif" font-size="11" '
        f'fill="{INK}">\n<title>{clean(title)}</title>\n{body}\n</svg>\n'
    )


def panels(coefficients: Coefficients) -> tuple[list[str], int]:
    """One for each expert, and the picture's height."""
    experts = coefficients.experts
    spreads = [by_stage(coefficients.rows, expert) for expert in range(len(experts))]
    stages = list(spreads[0])
    means = [sum(spread[stage][1] for spread in spreads) / len(spreads) for stage in stages]
    values = [0.0, *(value for spread in spreads for found in spread.values() for value in found)]
    room = 0.04 * (max(values) - min(values)) or 1.0
    low, high = min(values) - room, max(values) + room
    ticks = [tick for tick in round_ticks(low, high) if low < tick < high]
    rows = ceil(len(experts) / COLUMNS)
    columns = ceil(len(experts) / rows)
    width = (WIDTH - LEFT - RIGHT - GAP * (columns - 1)) / columns
    tall = 150 if rows == 1 else 96
    said = "λ from embeddings to post_layernorm · line: mean, band: range of a layer's parameters"
    parts = [text(16, 42, said + (" · dashed: mean of all experts" if columns > 1 else ""), size=10)]
    for number, (expert, spread) in enumerate(zip(experts, spreads, strict=True)):
        row, column = divmod(number, columns)
        left, top = LEFT + column * (width + GAP), TOP + row * (tall + 48)
        across = Axis(0, len(stages) - 1, left, left + width) if len(stages) > 1 else Axis(-1, 1, left, left + width)
        up = Axis(low, high, top + tall, top)
        parts.append(text(left, top - 9, elided(expert, floor(width / CHARACTER)), weight=600))
        parts += [line(left, up(tick), left + width, up(tick), 0.25 if tick else 0.9) for tick in ticks]
        parts += [] if column else [text(left - 7, up(tick) + 4, f"{tick:.6g}", "end") for tick in ticks]
        parts += depth_labels(stages, across, top + tall + 14)
        places = [(across(at), up(value)) for at, value in enumerate(means)]
        parts += [polyline(places, INK, 1.2, "3 3")] if len(experts) > 1 else []
        parts += curve(list(spread.values()), across, up)
    return parts, TOP + rows * (tall + 48) - 14


def by_stage(rows: Mapping[str, Sequence[float]], expert: int) -> dict[Stage, Spread]:
    """An expert's numbers of each stage, from the first to the last."""
    found: dict[Stage, list[float]] = {}
    for name in sorted(rows, key=place):
        found.setdefault(place(name)[:2], []).append(rows[name][expert])
    return {stage: (min(values), sum(values) / len(values), max(values)) for stage, values in found.items()}


def curve(spreads: Sequence[Spread], across: Axis, up: Axis) -> Iterator[str]:
    """An expert's band and line; where there is one stage only, a stroke and a dot."""
    low, mean, high = (
        [(across(at), up(value)) for at, value in enumerate(part)] for part in zip(*spreads, strict=True)
    )
    band = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*high, *reversed(low)])
    yield f'<polygon points="{band}" fill="{COLOUR}" fill-opacity="0.25" stroke="{COLOUR}" stroke-opacity="0.25"/>'
    yield polyline(mean, COLOUR, 2)
    if len(mean) == 1:
        yield f'<circle cx="{mean[0][0]:.1f}" cy="{mean[0][1]:.1f}" r="2.6" fill="{COLOUR}"/>'


def depth_labels(stages: Sequence[Stage], across: Axis, y: Number) -> Iterator[str]:
    """The ends in words and about every fourth part of the layers in numbers, where they are clear of the words."""
    layers = [stage for stage in stages if stage[0] == 1]
    step = ceil(len(layers) / 4)
    for at, (kind, number) in enumerate(stages):
        x = across(at)
        if kind == 0:
            yield text(x, y, "emb", "start" if x == across.start else "middle", size=10)
        elif kind == 2:
            yield text(x, y, "post", "end" if x == across.end else "middle", size=10)
        elif number % step == 0 and not (0 < x - across.start < 40 or 0 < across.end - x < 34):
            yield text(x, y, str(number), "middle", size=10)


def bars(coefficients: Coefficients) -> tuple[list[str], int]:
    """One for each expert with its number, and the picture's height."""
    row = coefficients.rows[ALL]
    names = [elided(expert, 40) for expert in coefficients.experts]
    left = 16 + CHARACTER * max(map(len, names)) + 8
    ticks = round_ticks(min(row), max(row))
    across = Axis(ticks[0], ticks[-1], left + 64 * (min(row) < 0), WIDTH - RIGHT - 64)
    bottom = TOP - 10 + BAR * len(row)
    parts = [text(16, 42, "λ of all parameters", size=10)]
    parts += [line(across(tick), TOP - 14, across(tick), bottom, 0.25 if tick else 0.9) for tick in ticks]
    parts += [text(across(tick), bottom + 16, f"{tick:.6g}", "middle") for tick in ticks]
    for number, (name, value) in enumerate(zip(names, row, strict=True)):
        y = TOP - 10 + BAR * number
        start, end = sorted((across(0), across(value)))
        parts.append(text(left - 8, y + 13, name, "end"))
        parts.append(
            f'<rect x="{start:.1f}" y="{y + 2}" width="{end - start:.1f}" height="{BAR - 7}" fill="{COLOUR}"/>'
        )
        beside = (start - 5, "end") if value < 0 else (end + 5, "start")
        parts.append(text(beside[0], y + 13, f"{value:.3g}", beside[1], weight=600))
    return parts, bottom + 32


def round_ticks(low: Number, high: Number) -> list[float]:
    """About five round values around 0 and all between `low` and `high`."""
    low, high = min(0.0, low), max(0.0, high)
    about = (high - low) / 4 or 0.25
    power = 10.0 ** floor(log10(about))
    step = next(power * digit for digit in (1, 2, 5, 10) if about <= power * digit * 1.4)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [tick * step for tick in range(first, max(first + 1, last) + 1)]


def polyline(places: Sequence[tuple[float, float]], colour: str, width: Number, dash: str = "") -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    look = f'stroke-width="{width}" stroke-linejoin="round"' + (f' stroke-dasharray="{dash}"' if dash else "")
    return f'<polyline points="{points}" fill="none" stroke="{colour}" {look}/>'


def line(x1: Number, y1: Number, x2: Number, y2: Number, opacity: Number) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{INK}" opacity="{opacity}"/>'


def elided(name: str, most: int) -> str:
    """A name without its middle if it is long: experts' names often begin alike."""
    return name if len(name) <= most else f"{name[: (most - 1) // 3]}…{name[-(most - 1 - (most - 1) // 3) :]}"
