"""A run as a picture: who worked when, which layer took how long and why, and what bounds it."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from twillcore.errors import TwillcoreError
from twillcore.image import Image
from twillcore.isa import Engine, Instruction
from twillcore.result import Result, Span
from twillcore.sim.functional import decode_program
from twillcore.sim.report import LOSSES, PRIORITY, LayerTime, layer_times, owners

ROWS = (Engine.LOAD, Engine.MOVE, Engine.GEMM, Engine.LUT, Engine.VECTOR, Engine.STORE)
BUSY_COLOUR = "#4477aa"
LOSS_COLOURS = dict(
    zip(
        LOSSES,
        ("#ccbb44", "#997700", "#228833", "#66ccee", "#ee6677", "#aa3377", "#bbbbbb"),
        strict=True,
    )
)
_LOSS_NAMES = {
    "drain": "waits for the drain",
    "lut": "waits for LUT",
    "vector": "waits for VECTOR",
    "move": "waits for MOVE",
    "load": "waits for LOAD",
    "store": "waits for STORE",
    "idle": "waits for instructions",
}
LAYER_COLOURS = matplotlib.colormaps["tab20"].colors
MOST_LAYERS = 48  # bars; the layers with the fewest cycles beyond that are put together
MOST_NAMES = 6  # layers named in the roofline
ZOOM_SHARE = 1 / 200  # of all cycles, in the second timeline
WORTH_A_ZOOM = 0.02  # of the window's cycles are lost; else it shows the start
SHORTEST_ZOOM = 3000  # cycles; a run that is not much longer has no second timeline


def profile_picture(
    image: Image, result: Result, path: str | Path, *, beat_cycles: int = 1
) -> None:
    """Draw a run and save it as ``path`` (PNG, or what the suffix says).

    Timelines show each instruction from start to end in the colour of its layer, and below the
    cycles in which GEMM issued no beat, by cause. In the roofline the slanted ceiling is the
    memory port with a beat every ``beat_cycles`` cycles.

    Raises
    ------
    TwillcoreError
        If the engine knows no time, or the file cannot be written.
    """
    if result.cycles is None:
        raise TwillcoreError(f"engine {result.engine!r} knows no time: profile 'cycle' or 'rtl'")
    program = decode_program(image)
    times = layer_times(image, result)
    bars = _bars(times)
    zoom = _zoom_window(image, program, result)

    heights = [3.2] * (2 if zoom else 1) + [max(4.5, 0.8 + 0.19 * len(bars))]
    figure = Figure(figsize=(15, sum(heights) + 1.2), layout="constrained", dpi=110)
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights, width_ratios=(3, 2))
    figure.suptitle(_title(image, result), fontsize=12, x=0.01, ha="left")

    whole = figure.add_subplot(grid[0, :])
    _timeline(whole, image, program, result, (0, result.cycles))
    whole.set_title("Engines over time, coloured by layer", loc="left", fontsize=10)
    if zoom:
        for edge in zoom:
            whole.axvline(edge, color="black", linewidth=0.6, linestyle=":")
        seam = figure.add_subplot(grid[1, :])
        _timeline(seam, image, program, result, zoom)
        what = "The start" if zoom[0] == 0 else "Where most cycles are lost on the way"
        seam.set_title(f"{what} (dotted above)", loc="left", fontsize=10)
    causes = _layers(figure.add_subplot(grid[-1, 0]), bars, result.cycles)
    roofline = figure.add_subplot(grid[-1, 1], anchor="NW", box_aspect=0.8)
    _roofline(roofline, image, times, beat_cycles)
    roofline.legend(handles=causes, fontsize=9, loc="upper left", bbox_to_anchor=(0, -0.14),
                    title="Cycles in which GEMM", title_fontsize=9, alignment="left", ncols=2,
                    frameon=False)  # fmt: skip
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:  # ValueError: a suffix that matplotlib cannot write
        raise TwillcoreError(f"{path}: cannot be written: {error}") from None


def _title(image: Image, result: Result) -> str:
    useful = sum(layer.useful_macs for layer in image.layers)
    utilisation = useful / (result.cycles * image.config.multipliers)
    lut = ""
    if could := image.config.bit_products:
        work = sum(layer.lut_work for layer in image.layers)
        lut = f" {work / (result.cycles * could):.1%} of the LUT core,"
    return (
        f"{image.config.name}, {result.engine}: {result.cycles:,} cycles,"
        f" {utilisation:.1%} of {image.config.multipliers} multipliers,{lut}"
        f" {(result.bytes_read + result.bytes_written) / 1e6:,.2f} MB"
    )


def _colour(layer: int) -> tuple[float, float, float]:
    return LAYER_COLOURS[layer % len(LAYER_COLOURS)]


def _zoom_window(
    image: Image, program: list[Instruction], result: Result
) -> tuple[int, int] | None:
    """Return the window with the most cycles without GEMM; None for a short run."""
    width = max(SHORTEST_ZOOM, int(result.cycles * ZOOM_SHARE))
    if result.cycles < 3 * width:
        return None
    _, engines = owners(image, program, result)
    # Not the run's first and last window: what is lost there, every run loses.
    lost = np.concatenate(([0], np.cumsum(engines != Engine.GEMM)))
    inside = lost[2 * width : -width] - lost[width : -2 * width]
    first = 0
    if inside.max(initial=0) > WORTH_A_ZOOM * width:
        first = width + int(inside.argmax())
    return first, first + width


def _timeline(
    axes: Axes,
    image: Image,
    program: list[Instruction],
    result: Result,
    window: tuple[int, int],
) -> None:
    first, last = window
    seen = [span for span in result.spans if span.end > first and span.start < last]
    rows = [engine for engine in ROWS if engine in image.config.engines]
    for row, engine in enumerate(rows):
        spans = [span for span in seen if program[span.index].engine is engine]
        axes.broken_barh(
            _clipped(spans, window),
            (row - 0.4, 0.8),
            facecolors=[_colour(image.instruction_layers[span.index]) for span in spans],
            edgecolors="white",
            linewidth=0.0 if len(seen) > 400 else 0.5,
        )
    _, engines = owners(image, program, result)
    for engine, cause in list(zip((*PRIORITY, -1), LOSSES, strict=True))[1:]:
        axes.broken_barh(
            _stretches(engines[first:last] == engine, first),
            (len(rows) - 0.4, 0.5),
            facecolors=LOSS_COLOURS[cause],
        )
    axes.set_yticks(range(len(rows) + 1), [*(engine.name for engine in rows), "no GEMM"])
    axes.invert_yaxis()
    axes.set_xlim(window)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("cycle", fontsize=9)
    axes.tick_params(labelsize=9)
    axes.grid(axis="x", color="#dddddd", linewidth=0.5)
    axes.set_axisbelow(True)


def _clipped(spans: Iterable[Span], window: tuple[int, int]) -> list[tuple[int, int]]:
    """Return (first cycle, cycles) of spans inside the window, each up to the next one's start."""
    spans = list(spans)
    stretches = []
    for number, span in enumerate(spans):
        first = max(span.start + 1, window[0])
        last = min(
            [span.end, window[1], *(after.start for after in spans[number + 1 : number + 2])]
        )
        stretches.append((first, max(last - first + 1, 0)))
    return stretches


def _stretches(chosen: np.ndarray, offset: int) -> list[tuple[int, int]]:
    """Return (first cycle, cycles) of the stretches in which ``chosen`` is true."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], chosen.astype(np.int8), [0]))))
    return [
        (int(first) + offset, int(last - first))
        for first, last in zip(edges[::2], edges[1::2], strict=True)
    ]


def _bars(times: list[LayerTime]) -> list[LayerTime]:
    """Return the layers that took any time, in order; the shortest as one if there are many."""
    times = [layer for layer in times if layer.cycles]
    if len(times) <= MOST_LAYERS:
        return times
    limit = sorted(layer.cycles for layer in times)[-(MOST_LAYERS - 1)]
    shown = [layer for layer in times if layer.cycles >= limit][: MOST_LAYERS - 1]
    rest = [layer for layer in times if layer not in shown]
    others = LayerTime(
        name=f"{len(rest)} others",
        macs=sum(layer.macs for layer in rest),
        useful_macs=sum(layer.useful_macs for layer in rest),
        cycles=sum(layer.cycles for layer in rest),
        busy=sum(layer.busy for layer in rest),
        lost={cause: sum(layer.lost[cause] for layer in rest) for cause in LOSSES},
        bytes=sum(layer.bytes for layer in rest),
        lut_macs=sum(layer.lut_macs for layer in rest),
        lut_work=sum(layer.lut_work for layer in rest),
        lut_busy=sum(layer.lut_busy for layer in rest),
    )
    return [*shown, others]


def _layers(axes: Axes, bars: list[LayerTime], cycles: int) -> list[Patch]:
    """Draw cycles per layer: busy, then what was lost; returns the legend."""
    left = np.zeros(len(bars))
    parts = [("works", BUSY_COLOUR, [layer.busy for layer in bars])]
    parts += [
        (_LOSS_NAMES[cause], LOSS_COLOURS[cause], [layer.lost[cause] for layer in bars])
        for cause in LOSSES
    ]
    shown = []
    for name, colour, values in parts:
        if any(values):
            axes.barh(range(len(bars)), values, left=left, color=colour, height=0.8)
            left = left + values
            shown.append(Patch(color=colour, label=f"{name}: {sum(values) / cycles:.2%}"))
    for row, layer in enumerate(bars):
        lost = (layer.cycles - layer.busy) / layer.cycles
        text = f" {layer.cycles:,}" + (f" ({lost:.0%} lost)" if lost >= 0.005 else "")
        axes.text(left[row], row, text, va="center", fontsize=7)
    size = 8 if len(bars) <= 30 else 7
    axes.set_yticks(range(len(bars)), [layer.name for layer in bars], fontsize=size)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, max(left, default=1) * 1.18)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_title("Cycles by layer; why GEMM issued no beat", loc="left", fontsize=10)
    axes.tick_params(axis="x", labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return shown


def _roofline(axes: Axes, image: Image, times: list[LayerTime], beat_cycles: int) -> None:
    """Draw useful MACs per cycle over useful MACs per byte, and the two ceilings.

    The LUT core raises the one ceiling by what it does at the average bits of its weights here.
    """
    config = image.config
    bandwidth = config.axi_bytes / beat_cycles
    work = sum(layer.lut_work for layer in times)
    lut_macs = sum(layer.lut_macs for layer in times)
    ceiling = config.multipliers
    if work:
        ceiling += round(config.bit_products * lut_macs / work)
    points = []
    for number, layer in enumerate(times):
        macs = layer.useful_macs + layer.lut_macs
        if macs and layer.bytes and layer.cycles:
            points.append((number, macs / layer.bytes, macs / layer.cycles, layer))
    ridge = ceiling / bandwidth
    intensities = [x for _, x, _, _ in points] + [ridge]
    low, high = min(intensities) / 4, max(intensities) * 8
    axes.plot([low, ridge], [low * bandwidth, ceiling], color="black", linewidth=1)
    axes.plot([ridge, high], [ceiling] * 2, color="black", linewidth=1)
    axes.annotate(
        f"{ceiling} MAC/cycle", (high, ceiling), (0, 4),
        textcoords="offset points", ha="right", fontsize=8,
    )  # fmt: skip
    axes.annotate(
        f"{bandwidth:g} B/cycle", (low, low * bandwidth), (4, 10),
        textcoords="offset points", fontsize=8,
    )  # fmt: skip
    longest = max((layer.cycles for *_, layer in points), default=1)
    for number, x, y, layer in points:
        axes.scatter(
            x, y, s=12 + 90 * layer.cycles / longest, color=_colour(number), edgecolor="black",
            linewidth=0.4, zorder=3,
        )  # fmt: skip
    _name_points(axes, points)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    bottom = min([y for _, _, y, _ in points] + [ceiling / 8])
    axes.set_ylim(bottom / 2, ceiling * 2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(base=2, numticks=14))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel("useful MACs per byte on the memory port", fontsize=9)
    axes.set_ylabel("useful MACs per cycle", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="#dddddd", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_title("Roofline, a point per layer, larger the longer it takes", loc="left",
                   fontsize=10)  # fmt: skip


def _name_points(axes: Axes, points: list[tuple[int, float, float, LayerTime]]) -> None:
    """Name the longest layers; of those that lie together only the longest."""
    named: list[tuple[float, float]] = []
    for _, x, y, layer in sorted(points, key=lambda point: -point[3].cycles):
        apart = all(abs(np.log2(x / a)) + 2 * abs(np.log2(y / b)) > 0.6 for a, b in named)
        if apart and len(named) < MOST_NAMES:
            axes.annotate(layer.name, (x, y), (0, -14), textcoords="offset points", fontsize=7,
                          ha="center")  # fmt: skip
            named.append((x, y))
