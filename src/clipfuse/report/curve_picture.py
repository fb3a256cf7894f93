"""How a training went, as an SVG: loss over steps and accuracy on val, readable on light and dark pages."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from clipfuse.svg import clean, shortened, text

WIDTH, PANEL_TOP, PANEL_HEIGHT = 720, 68, 178
LEFT, RIGHT, GAP, ROW = 52, 24, 60, 17
"""Margins of the panels and between them, px, with room for the figures of the axes; a row of the legend."""
INK = "#757b83"
"""4 : 1 against white and against black, so that no page's theme has to be known."""
COLOURS = ("#2f81d6", "#d9660f", "#2a9d5c", "#b352c9", "#c2871a", "#d6457a", "#1a9ba8", "#8a6d5b")
DASHES = ("", "6 3", "2 3")
"""Tasks take the colours in turn, then again in the next dashes."""
CHARACTER = 6.2
"""Width of one in the small text, px, generously."""
LARGEST = 1e300
"""What is not below is drawn as if it were not finite: not at all."""
MANY = 30
"""From so many points on, a line of losses gets a moving mean, and other lines have markers at their ends only."""
WINDOWS = 20
"""The moving mean is over this part of all points, a twentieth, but no fewer than five."""
MOST = 400
"""Points of a line; a pixel holds no more."""

Line = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Panel:
    """A place on the picture, px, and the values at its edges."""

    left: float
    width: float
    last_step: int
    low: float
    high: float

    @property
    def right(self) -> float:
        return self.left + self.width

    def at(self, step: float, value: float) -> tuple[float, float]:
        height = (value - self.low) / (self.high - self.low)
        return self.left + self.width * step / self.last_step, PANEL_TOP + PANEL_HEIGHT * (1 - height)


def curve_picture(title: str, losses: Line, accuracies: Mapping[str, Line] | None = None) -> str:
    """An SVG with a panel for training loss and one for accuracy on val; one without points is left out.

    The same arguments give the same text. Values that are not finite are not drawn; the losses among them are counted.

    Args:
        title: Above the panels.
        losses: Steps, and the mean loss of those since the entry before, nats.
        accuracies: Task → steps and shares of images that are right, in [0, 1]; the one at step 0 is that before
            training.
    """
    lines = {task: line for task, line in (accuracies or {}).items() if line}
    steps = [step for line in (losses, *lines.values()) for step, _ in line]
    last_step = max(1, *steps) if steps else 1
    count = bool(losses) + bool(lines)
    width = (WIDTH - LEFT - RIGHT - GAP * (count - 1)) / max(count, 1)
    parts = [text(16, 24, shortened(title, 90), size=14, weight=600)]
    if not count:
        parts.append(text(16, PANEL_TOP, "nothing was logged"))
    if losses:
        parts += loss_panel(losses, LEFT, width, last_step)
    rows = 0
    if lines:
        found, rows = accuracy_panel(lines, WIDTH - RIGHT - width, width, last_step)
        parts += found
    height = PANEL_TOP + PANEL_HEIGHT + 54 + ROW * rows
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" font-family="system-ui, -apple-system, \'Segoe UI\', Helvetica, Arial, sans-serif" font-size="11" '
        f'fill="{INK}">\n<title>{clean(title)}</title>\n{body}\n</svg>\n'
    )


def loss_panel(losses: Line, left: float, width: float, last_step: int) -> list[str]:
    points = [(step, loss) for step, loss in losses if abs(loss) < LARGEST]
    values = [loss for _, loss in points]
    ticks = round_ticks(min(0.0, *values), max(values)) if values else [0.0, 1.0]
    panel = Panel(left, width, last_step, ticks[0], ticks[-1])
    said, parts = [], []
    if len(points) >= MANY:
        drawn = thinned(points)
        window = max(5, len(drawn) // WINDOWS | 1)
        parts += [polyline(panel, drawn, COLOURS[0], width=1, opacity=0.5)]
        parts += [polyline(panel, smoothed(drawn, window), COLOURS[0], width=2)]
        said.append(f"bold: mean of {window * ceil(len(points) / MOST):,} points")
    elif points:
        parts += [polyline(panel, points, COLOURS[0], width=1.6), *markers(panel, points, COLOURS[0])]
    if missing := len(losses) - len(points):
        said.append(f"{missing} not finite")
    return [*axes(panel, ticks, "training loss, nats", " · ".join(said)), *parts]


def accuracy_panel(lines: Mapping[str, Line], left: float, width: float, last_step: int) -> tuple[list[str], int]:
    """The panel, and how many rows its legend has."""
    drawn = {
        task: [(step, 100 * share) for step, share in line if abs(share) < LARGEST] for task, line in lines.items()
    }
    values = [value for points in drawn.values() for _, value in points] or [0.0, 100.0]
    room = max(2.0, 0.08 * (max(values) - min(values)))  # below the first point, for its figure
    ticks = round_ticks(max(0.0, min(values) - room), min(100.0, max(values) + room))
    panel = Panel(left, width, last_step, ticks[0], ticks[-1])
    began = any(points and points[0][0] == 0 for points in drawn.values())
    parts = axes(panel, ticks, "accuracy on val, %", "step 0: before training" if began else "")
    for number, points in enumerate(drawn.values()):
        colour, dash = look(number)
        parts += [polyline(panel, thinned(points), colour, width=1.8, dash=dash)] if points else []
        parts += markers(panel, points, colour)
    if len(drawn) == 1:
        return parts + figures(panel, next(iter(drawn.values()))), 0
    entries, rows = legend(list(drawn), panel)
    return parts + entries, rows


def axes(panel: Panel, ticks: Sequence[float], heading: str, caption: str) -> list[str]:
    bottom = PANEL_TOP + PANEL_HEIGHT
    parts = [text(panel.left, PANEL_TOP - 14, heading, size=12, weight=600)]
    parts += [text(panel.right, PANEL_TOP - 14, caption, "end", size=10)] if caption else []
    for tick in ticks:
        _, y = panel.at(0, tick)
        parts.append(rule(panel.left, y, panel.right, y, 0.9 if tick == ticks[0] else 0.25))
        parts.append(text(panel.left - 7, y + 4, f"{tick:.6g}", "end"))
    for tick in step_ticks(panel.last_step):
        x, _ = panel.at(tick, panel.low)
        parts.append(rule(x, bottom, x, bottom + 4, 0.9))
        parts.append(text(x, bottom + 17, f"{tick:,}", "middle"))
    return [*parts, text(panel.left + panel.width / 2, bottom + 35, "steps", "middle")]


def figures(panel: Panel, points: Line) -> list[str]:
    """The first and the last accuracy in figures, where the line leaves room for them."""
    if not points:
        return []
    (step, first), (_, last) = points[0], points[-1]
    parts = []
    if len(points) > 1:
        x, y = panel.at(step, first)
        below = points[1][1] >= first and y + 16 < PANEL_TOP + PANEL_HEIGHT
        parts.append(text(x + 6, y + 14 if below else y - 7, f"{first:.1f}"))
    x, y = panel.at(*points[-1])
    above = y - 20 > PANEL_TOP and last >= first
    x, anchor = (x, "end") if x > panel.left + 40 else (x + 6, "start")
    return [*parts, text(x, y - 8 if above else y + 17, f"{last:.1f}", anchor, weight=600)]


def legend(tasks: Sequence[str], panel: Panel) -> tuple[list[str], int]:
    """Entries below the panel, and how many rows they take."""
    names = [shortened(task, 40) for task in tasks]
    column = max(map(len, names)) * CHARACTER + 34
    columns = max(1, min(len(names), floor((panel.width + 12) / column)))
    parts = []
    for number, name in enumerate(names):
        x = panel.left + number % columns * column
        y = PANEL_TOP + PANEL_HEIGHT + 54 + ROW * (number // columns)
        colour, dash = look(number)
        parts.append(rule(x, y, x + 20, y, 1, colour, 2, dash))
        parts.append(text(x + 25, y + 4, name))
    return parts, ceil(len(names) / columns)


def look(number: int) -> tuple[str, str]:
    """Colour and dashes of a task's line."""
    return COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]


def round_ticks(low: float, high: float) -> list[float]:
    """About five round values, the first not above `low` and the last not below `high`."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    step = round_step((high - low) / 4)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [tick * step for tick in range(first, last + 1)]


def step_ticks(last: int) -> list[int]:
    """About five round steps from 0 on, none above `last`."""
    return list(range(0, last + 1, max(1, round(round_step(last / 4)))))


def round_step(about: float) -> float:
    """The round number next to a distance: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** floor(log10(about))
    return next(power * digit for digit in (1, 2, 5, 10) if about <= power * digit * 1.4)


def smoothed(points: Line, window: int) -> Line:
    """Means over `window` points around each; at the ends over those that there are."""
    half = window // 2
    found = []
    for place, (step, _) in enumerate(points):
        near = [value for _, value in points[max(0, place - half) : place + half + 1]]
        found.append((step, sum(near) / len(near)))
    return found


def thinned(points: Line) -> Line:
    """At most `MOST` points, each of them the mean of its neighbours' values."""
    size = ceil(len(points) / MOST)
    groups = [points[place : place + size] for place in range(0, len(points), size or 1)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def polyline(panel: Panel, points: Line, colour: str, width: float, opacity: float = 1, dash: str = "") -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in (panel.at(*point) for point in points))
    look = f' opacity="{opacity}"' if opacity < 1 else ""
    look += f' stroke-dasharray="{dash}"' if dash else ""
    stroke = f'stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"'
    return f'<polyline points="{places}" fill="none" {stroke}{look}/>'


def markers(panel: Panel, points: Line, colour: str) -> Iterable[str]:
    shown = points if len(points) < MANY else (points[0], points[-1])
    for x, y in (panel.at(*point) for point in shown):
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>'


def rule(
    x1: float, y1: float, x2: float, y2: float, opacity: float, colour: str = INK, width: float = 1, dash: str = ""
) -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}" '
        f'opacity="{opacity}"{dashes}/>'
    )
