"""Curves and bars as SVG, drawn by hand: no library, no scripts, colours from the style sheet they come with."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlhf_kit.escaping import html

Points = list[tuple[float, float]]

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 280, 46, 14, 28, 44
MOST_POINTS = 240  # of a curve: more make the page heavy and show nothing
NOISY_FROM = 15  # points of a curve from which its moving average is drawn
HUGE = 1e100  # float32 ends at 3e38; what is larger would overflow where its square is summed up
# After Okabe and Ito's palette, which the colour-blind can tell apart.
LIGHT = "--grey:#7c828a;--blue:#0072b2;--red:#d55e00;--green:#009e73;--ochre:#b98500;--purple:#b8588f"
DARK = "--grey:#a2a9b3;--blue:#56b4e9;--red:#ff8a3d;--green:#2fc79a;--ochre:#e9b93a;--purple:#e08fbe"
# By class, not by `style`: a page that forbids styles of its own shows them too.
SHAPES = (
    "".join(f".{name}{{--c:var(--{name})}}" for name in "ink grey blue red green ochre purple".split())
    + """
figure svg{display:block;width:100%;max-width:580px;height:auto;margin:.3rem auto 0}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1rem;list-style:none;margin:.2rem 0 0;padding:0;font-size:.82rem}
.legend i{display:inline-block;width:1.5em;border-top:3px solid var(--c);margin-right:.4em;vertical-align:.25em}
.legend .dashed{border-top-style:dashed}
svg text{fill:var(--soft);font-size:12px;font-variant-numeric:tabular-nums}
svg .name{fill:var(--ink)}.grid-line{stroke:var(--rule)}.level{stroke:var(--ink);stroke-width:1.5;stroke-dasharray:4 4}
.curve{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round;stroke-linecap:round}.raw{stroke-width:1;opacity:.35}
svg .dashed{stroke-dasharray:5 4}.bar{fill:var(--c)}.dot{fill:transparent}.seen{fill:var(--c);opacity:.3}
.dot:hover{fill:var(--c);opacity:1}
"""
)
STYLE = f"""
:root{{color-scheme:light dark;--page:#f7f6f2;--card:#fff;--ink:#1d2126;--soft:#5f6670;--rule:#e3e1da;{LIGHT}}}
@media(prefers-color-scheme:dark){{:root{{--page:#14171b;--card:#1d2126;--ink:#eceae4;--soft:#a2a9b3;--rule:#343a42;
{DARK}}}}}
{SHAPES}"""


@dataclass(frozen=True)
class Line:
    """One curve: its name in the legend, its colour in the style sheet, its points."""

    label: str
    colour: str
    points: Points
    dashed: bool = False
    bars: tuple[tuple[float, float], ...] = ()  # of each point the interval of its y


def is_number(value: object) -> bool:
    """Finite, and such that means and squares of some are so too."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < HUGE


def figure(
    name: str, lines: list[Line], y_name: str, x_name="step 訓練步數", levels=(), scatter=False, logarithmic=False
) -> str:
    """A picture with its title and legend; nothing when no line has a point."""
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    levels = tuple((label, value) for label, value in levels if is_number(value))
    keys = [(line.label, line.colour, line.dashed) for line in lines] + [(label, "ink", True) for label, _ in levels]
    legend = "".join(
        f'<li><i class="{colour}{" dashed" * dashed}"></i>{html(label)}</li>' for label, colour, dashed in keys
    )
    picture = svg_lines(name, lines, x_name, y_name, levels, scatter, logarithmic)
    return f'<figure><h3>{html(name)}</h3><ul class="legend">{legend}</ul>{picture}</figure>'


def ticks(lo: float, hi: float, whole: bool = False) -> list[float]:
    """Three to seven round numbers within [lo, hi], a step of 1, 2 or 5 times a power of ten apart."""
    if not lo < hi:
        return [lo]
    power = 10.0 ** math.floor(math.log10((hi - lo) / 6))
    step = next(power * factor for factor in (1, 2, 5, 10) if (hi - lo) / (power * factor) <= 6 * (1 + 1e-9))
    step = max(step, 1) if whole else step
    first, last = math.ceil(lo / step - 1e-9), math.floor(hi / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def powers(lo: float, hi: float) -> list[float]:
    """Powers of ten within [lo, hi], with twos and fives of them where they are few."""
    exponents = range(math.floor(math.log10(lo)), math.ceil(math.log10(hi)) + 1)
    for digits in ((1,), (1, 2, 5)):
        values = [digit * 10.0**exponent for exponent in exponents for digit in digits]
        values = [value for value in values if lo <= value * (1 + 1e-9) and value <= hi * (1 + 1e-9)]
        if len(values) >= 3:
            break
    return values


def thin(points: Points) -> Points:
    """At most MOST_POINTS points: the means of neighbours."""
    size = math.ceil(len(points) / MOST_POINTS)
    return [_mean(points[start : start + size]) for start in range(0, len(points), size)] if size > 1 else points


def smooth(points: Points) -> Points:
    """Centred moving average over about a tenth of the points, of x and y alike."""
    last, most = len(points) - 1, max(1, len(points) // 20)
    halves = (min(most, i, last - i) for i in range(len(points)))  # even at the ends, or the curve would bend there
    return [_mean(points[i - half : i + half + 1]) for i, half in enumerate(halves)]


def path(points: Points) -> str:
    """The `d` of an SVG path through the points, in the picture's own units."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def svg_lines(
    name: str, lines: list[Line], x_name: str, y_name: str, levels: tuple = (), scatter=False, logarithmic=False
) -> str:
    """Curves over common axes; `levels`: (name, y) of dashed horizontals; `scatter`: dots with their moving mean;
    `logarithmic`: the x axis, all of whose values are above 0."""
    at = math.log10 if logarithmic else float
    xs = [at(x) for line in lines for x, _ in line.points] + [0.0] * scatter
    ys = [y for line in lines for _, y in line.points] + [y for _, y in levels]
    ys += [y for line in lines for bar in line.bars for y in bar]
    has_bars = any(line.bars for line in lines)
    (x_lo, x_hi), (y_lo, y_hi) = _widened(xs, 0.04 * has_bars), _widened(ys, 0.06)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        right = LEFT + (at(point[0]) - x_lo) / (x_hi - x_lo) * (WIDTH - LEFT - RIGHT)
        return right, HEIGHT - BOTTOM - (point[1] - y_lo) / (y_hi - y_lo) * (HEIGHT - TOP - BOTTOM)

    whole = not has_bars and all(float(x).is_integer() for x in xs)
    floor, parts = HEIGHT - BOTTOM, []
    first = 10**x_lo if logarithmic else x_lo
    for tick in ticks(y_lo, y_hi):
        y = place((first, tick))[1]
        parts.append(f'<path class="grid-line" d="{path([(LEFT, y), (WIDTH - RIGHT, y)])}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{_tick(tick)}</text>')
    for tick in powers(10**x_lo, 10**x_hi) if logarithmic else ticks(x_lo, x_hi, whole):
        x = place((tick, y_lo))[0]
        parts.append(f'<path class="grid-line" d="{path([(x, floor), (x, floor + 4)])}"/>')
        shown = _power(tick) if logarithmic else _tick(tick)
        parts.append(f'<text x="{x:.1f}" y="{floor + 18}" text-anchor="middle">{shown}</text>')
    parts.append(f'<text class="name" x="2" y="14">{html(y_name)}</text>')
    parts.append(f'<text class="name" x="{WIDTH - RIGHT}" y="{HEIGHT - 7}" text-anchor="end">{html(x_name)}</text>')
    for line in lines:
        parts += _curve(line, place, x_name, scatter)
    for label, level in levels:
        y = place((first, level))[1]
        tip = f"<title>{html(label)}: {level:.4g}</title>"
        parts.append(f'<path class="level" d="{path([(LEFT, y), (WIDTH - RIGHT, y)])}">{tip}</path>')
    return _svg(name, HEIGHT, parts)


def svg_bars(name: str, bars: list[tuple[str, float, str]], unit: str) -> str:
    """Horizontal bars of (label, value, colour), the values written after them."""
    start, room, parts = 130, WIDTH - 130 - 70, []
    low, high = (edge(0, *(value for _, value, _ in bars)) for edge in (min, max))
    scale = room / (high - low or 1)
    for number, (label, value, colour) in enumerate(bars):
        y, length, at = 6 + 30 * number, max(1.5, abs(value) * scale), start + (min(value, 0) - low) * scale
        parts.append(f'<text class="name" x="{start - 10}" y="{y + 15}" text-anchor="end">{html(label)}</text>')
        tip = f"<title>{html(label)}: {value:.1f} {html(unit)}</title>"
        box = f'x="{at:.1f}" y="{y}" width="{length:.1f}" height="20" rx="3"'
        parts.append(f'<rect class="bar {colour}" {box}>{tip}</rect>')
        parts.append(f'<text x="{at + length + 8:.1f}" y="{y + 15}">{value:.1f} {html(unit)}</text>')
    return _svg(name, 8 + 30 * len(bars), parts)


def _curve(line: Line, place, x_name: str, scatter: bool) -> list[str]:
    """A noisy line is drawn faintly under its moving average; every point tells its numbers when pointed at."""
    points, dashed = thin(line.points), " dashed" if line.dashed else ""
    noisy = len(points) >= NOISY_FROM
    parts = [f'<g class="{line.colour}">']
    if noisy and not scatter:
        parts.append(f'<path class="curve raw" d="{path([place(point) for point in points])}"/>')
    main = smooth(points) if noisy or scatter else points
    parts.append(f'<path class="curve{dashed}" d="{path([place(point) for point in main])}"/>')
    for (x, _), bar in zip(line.points, line.bars, strict=False):
        parts.append(f'<path class="curve" d="{path([place((x, y)) for y in bar])}"/>')
    for point in points:
        x, y = place(point)
        tip = html(f"{line.label}: {point[1]:.4g} ({x_name} {point[0]:.4g})")
        seen = len(points) == 1 or line.bars
        kind, size = ("dot seen", 3) if scatter else ("bar", 4) if seen else ("dot", 5)
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{size}"><title>{tip}</title></circle>')
    return [*parts, "</g>"]


def _svg(name: str, height: int, parts: list[str]) -> str:
    # No xmlns: HTML does not need it, and so the page holds no address at all.
    return f'<svg role="img" aria-label="{html(name)}" viewBox="0 0 {WIDTH} {height}">{"".join(parts)}</svg>'


def _mean(points: Points) -> tuple[float, float]:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def _widened(values: list[float], share: float) -> tuple[float, float]:
    lo, hi = min(values), max(values)
    margin = (hi - lo) * share if hi > lo else max(abs(lo) * 0.1, 0.5)
    return lo - margin, hi + margin


def _tick(value: float) -> str:
    return (f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}").replace("-", "−")


def _power(value: float) -> str:
    """ "2·10¹²": a tick of a logarithmic axis."""
    exponent = math.floor(math.log10(value) + 1e-9)
    digit = round(value / 10.0**exponent)
    power = "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if digit == 1 else f"{digit}·{power}"
