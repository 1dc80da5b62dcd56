"""Two neighbouring layers at the same time, band by band.

Where the map between two layers is in DRAM, the layers may need different resources: one is bound
by the memory port, the other one by a core. So the second one's bands are put between those of the
first one, :data:`LAG` bands behind, which is time enough for the map to go to DRAM and back.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from twillcore.compiler.steps import Buffer, Region, Space, Step
from twillcore.config import Config
from twillcore.isa import Engine, Opcode

LAG = 2  #: bands
WINDOWS = (Opcode.WINDOW, Opcode.LUT_WINDOW)
PRODUCTS = (Opcode.GEMM, Opcode.LUT_GEMM)


@dataclass(frozen=True)
class Load:
    """Cycles for which steps keep the cores, the drain, and both directions of the memory port."""

    dsp: int = 0
    lut: int = 0
    drain: int = 0
    read: int = 0
    write: int = 0

    @property
    def bound(self) -> int:
        """Cycles if everything overlaps."""
        return max(getattr(self, field.name) for field in fields(self))

    def __add__(self, other: "Load") -> "Load":
        return Load(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def load_of(steps: Sequence[Step], config: Config) -> Load:
    """Return for how long ``steps`` keep everything busy."""
    total, windows = Load(), {}
    for step in steps:
        o = step.operands
        if step.opcode in WINDOWS:
            windows[step.engine] = o
        elif step.opcode in PRODUCTS:
            window = windows.get(step.engine) if o["windowed"] else None
            taps, stride = (window["taps"], window["stride"]) if window else (1, 1)
            lut = step.engine == Engine.LUT
            tiles = o["row_tiles"] * o["column_tiles"]
            beats = max(o["beats"], stride)
            columns = (config.lut_columns if lut else config.dsp_columns) // config.block
            drain = 0 if o["hold"] else tiles * (o["words"] or columns) * config.block
            busy = max(tiles * taps * o["blocks"] * beats, drain)
            total += Load(drain=drain, **{"lut" if lut else "dsp": busy})
        elif step.opcode == Opcode.LOAD:
            total += Load(read=_bytes(step, step.reads) // config.axi_bytes)
        elif step.opcode == Opcode.STORE:
            total += Load(write=_bytes(step, step.writes) // config.axi_bytes)
    return total


def _bytes(step: Step, outside: Sequence[Region]) -> int:
    if outside:
        return sum(region.length * region.runs for region in outside)
    return len(step.operands["dram"].buffer.data)


def interleave(first: Sequence[Step], second: Sequence[Step], config: Config) -> list[Step]:
    """Return the steps of two layers in one valid order; each layer's own order stays."""
    ends = [n for n, step in enumerate(first) if step.opcode == Opcode.STORE]
    after = np.searchsorted(ends, np.arange(len(first)), side="left")  # the band that a step ends
    needs = _needs(first, second, config)
    places = [len(first)] * len(second)
    place = 0
    for n, need in enumerate(needs):
        if need >= 0:
            band = int(after[need]) + LAG
            place = max(place, ends[band] + 1 if band < len(ends) else len(first))
        places[n] = place
    for n in reversed(range(len(second) - 1)):  # what needs nothing comes with what follows
        if needs[n] < 0 and second[n].opcode not in PRODUCTS:
            places[n] = places[n + 1]
    order: list[tuple[int, Step]] = []
    done = 0
    for n in range(len(first) + 1):
        while done < len(second) and places[done] <= n:
            order.append((1, second[done]))
            done += 1
        if n < len(first):
            order.append((0, first[n]))
    return _with_windows(order)


def _needs(first: Sequence[Step], second: Sequence[Step], config: Config) -> list[int]:
    """Return for every step of ``second`` the last one of ``first`` that it must follow, or -1."""
    shared = {r.buffer for s in first for r in (*s.reads, *s.writes)} & {
        r.buffer for s in second for r in (*s.reads, *s.writes)
    }
    read: dict[Buffer, np.ndarray] = {}
    written: dict[Buffer, np.ndarray] = {}

    def units(region: Region) -> np.ndarray:
        return region.units(0, config.axi_bytes if region.buffer.space == Space.DRAM else 1)

    def table(tables: dict[Buffer, np.ndarray], buffer: Buffer) -> np.ndarray:
        return tables.setdefault(buffer, np.full(buffer.size, -1, np.int32))

    for n, step in enumerate(first):
        for regions, tables in ((step.reads, read), (step.writes, written)):
            for region in regions:
                if region.buffer in shared:
                    table(tables, region.buffer)[units(region)] = n
    needs = []
    for step in second:
        need = -1
        for regions, several in ((step.reads, (written,)), (step.writes, (read, written))):
            for region in regions:
                if region.buffer in shared:
                    for tables in several:
                        last = table(tables, region.buffer)[units(region)]
                        need = max(need, int(last.max(initial=-1)))
        needs.append(need)
    return needs


def _with_windows(order: Sequence[tuple[int, Step]]) -> list[Step]:
    """Set the window of a core anew wherever the other layer has changed it."""
    wanted: dict[tuple[int, Engine], Step] = {}
    there: dict[Engine, Step] = {}
    steps = []
    for layer, step in order:
        if step.opcode in WINDOWS:
            wanted[layer, step.engine] = step
            continue
        if step.opcode in PRODUCTS and step.operands["windowed"]:
            window = wanted[layer, step.engine]
            if there.get(step.engine) is not window:
                there[step.engine] = window
                steps.append(window)
        steps.append(step)
    return steps
