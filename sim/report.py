"""Where the cycles went: a result to shares of layers and to one JSON object.

All of it derives from the spans of a :class:`~twillcore.result.Result`, so it is the same for every
engine that knows time.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twillcore.cache import content_key
from twillcore.image import Image
from twillcore.isa import Engine, Instruction, Opcode
from twillcore.result import Result
from twillcore.sim.functional import decode_program
from twillcore.sim.timing_gemm import tile_shape
from twillcore.sim.transfer import run_bytes

#: Whose instruction a cycle is put down to, if several run: the first of these.
PRIORITY = (Engine.GEMM, Engine.LUT, Engine.VECTOR, Engine.MOVE, Engine.LOAD, Engine.STORE)

#: Why GEMM, the DSP core, issued no beat in a cycle that counts for a layer.
LOSSES = {
    "drain": "a tile waited for the drain, or the last one drained",
    "lut": "the LUT core worked, and the DSP core did not",
    "vector": "only the vector unit (or what follows in this list) worked",
    "move": "keys or values were moved",
    "load": "data were on their way from memory",
    "store": "data were on their way to memory",
    "idle": "instructions were fetched and issued",
}
_NOBODY = -1


@dataclass(frozen=True)
class LayerTime:
    """A layer's share of a run.

    Attributes
    ----------
    cycles : all cycles put down to it; those of all layers add up to the run's
    busy : cycles in which GEMM issued a beat, or read another half of a window for it
    lost : the other cycles, by :data:`LOSSES`
    bytes : moved over the memory port by its instructions, weights included
    useful_macs, lut_macs : of the DSP core and of the LUT core
    lut_work : bits of weights that the LUT core multiplied
    lut_busy : beats of the LUT core for this layer, whose cycles may be another layer's
    """

    name: str
    macs: int
    useful_macs: int
    cycles: int
    busy: int
    lost: Mapping[str, int]
    bytes: int
    lut_macs: int = 0
    lut_work: int = 0
    lut_busy: int = 0

    def utilisation(self, multipliers: int) -> float:
        """Return useful multiply-accumulates over what the multipliers could have done."""
        return self.useful_macs / (self.cycles * multipliers) if self.cycles else 0.0

    def lut_utilisation(self, bit_products: int) -> float:
        """Return useful products with one bit over what the LUT core could have done."""
        return self.lut_work / (self.cycles * bit_products) if self.cycles else 0.0


def layer_times(image: Image, result: Result) -> list[LayerTime]:
    """Partition the cycles of a run among its layers.

    A cycle belongs to the layer whose instruction runs on GEMM; if none does on LUT, VECTOR, MOVE,
    LOAD or STORE, in this order; if none runs at all, to the layer whose instruction starts next.
    An instruction gives way to its successor on the same engine as soon as that starts. So a layer
    is not charged for what runs beside another one's products.

    Returns an empty list if the engine knows no time.
    """
    if result.cycles is None:
        return []
    program = decode_program(image)
    layers, engines = owners(image, program, result)
    count = len(image.layers)
    lost = {name: np.zeros(count, np.int64) for name in LOSSES}
    for engine, cause in zip((*PRIORITY, _NOBODY), LOSSES, strict=True):
        lost[cause] = np.bincount(layers[engines == engine], minlength=count)
    busy, lut_busy, traffic = (np.zeros(count, np.int64) for _ in range(3))
    windows: dict[Engine, Mapping[str, int]] = {Engine.GEMM: {}, Engine.LUT: {}}
    for layer, i in zip(image.instruction_layers, program, strict=False):
        if i.opcode in (Opcode.WINDOW, Opcode.LUT_WINDOW):
            windows[i.engine] = i.operands
        elif i.opcode in (Opcode.GEMM, Opcode.LUT_GEMM):
            on_lut = i.engine is Engine.LUT
            shape = tile_shape(i.operands, windows[i.engine], refusable=on_lut)
            steps = i["row_tiles"] * i["column_tiles"] * shape.steps + shape.ahead
            (lut_busy if on_lut else busy)[layer] += steps
        elif i.opcode in (Opcode.LOAD, Opcode.STORE):
            traffic[layer] += run_bytes(i.operands, image.config) * i["runs"]
    lost["drain"] = lost["drain"] - busy
    return [
        LayerTime(
            name=layer.name,
            macs=layer.macs,
            useful_macs=layer.useful_macs,
            cycles=int(busy[n] + sum(cycles[n] for cycles in lost.values())),
            busy=int(busy[n]),
            lost={cause: int(cycles[n]) for cause, cycles in lost.items()},
            bytes=int(traffic[n]),
            lut_macs=layer.lut_macs,
            lut_work=layer.lut_work,
            lut_busy=int(lut_busy[n]),
        )
        for n, layer in enumerate(image.layers)
    ]


def owners(
    image: Image, program: list[Instruction], result: Result
) -> tuple[NDArray[np.int32], NDArray[np.int8]]:
    """Return for every cycle the layer that it belongs to, and the engine for which it does.

    The engine is -1 where no instruction runs.
    """
    layers = np.full(result.cycles, _NOBODY, np.int32)
    engines = np.full(result.cycles, _NOBODY, np.int8)
    for engine in reversed(PRIORITY):
        for span in result.spans:
            if program[span.index].engine is engine:
                running = slice(span.start + 1, span.end + 1)
                layers[running], engines[running] = image.instruction_layers[span.index], engine
    # A cycle without any belongs to what comes next; the last ones to the last layer that ran.
    cycles = np.arange(result.cycles)
    owned = layers != _NOBODY
    last = cycles[owned].max(initial=0)
    following = np.where(owned, cycles, last)[::-1]
    layers = np.maximum(layers[np.minimum.accumulate(following)[::-1]], 0)
    return layers, engines


def run_dict(image: Image, result: Result) -> dict[str, object]:
    """Return what ``--json`` prints of a run.

    ``useful_macs``, ``utilisation``, ``busy`` and ``stalls`` are the DSP core's: ``stalls`` are the
    causes for which it issued no beat; with ``busy`` they add up to ``cycles``. With a LUT core,
    ``lut`` has the same of it; it could make ``bit_products`` products with one bit of a weight
    per cycle, and ``utilisation`` is the share of these that were useful. ``schedule`` is a hash of
    the start and end cycle of every instruction: engines that agree have the same. Times are None
    if the engine knows none.
    """
    macs = sum(layer.macs for layer in image.layers)
    useful = sum(layer.useful_macs for layer in image.layers)
    stalls = dict(result.counters.get("gemm", {}))
    busy = stalls.pop("busy", None)
    cycles, multipliers = result.cycles, image.config.multipliers
    bit_products = image.config.bit_products
    lut = {"lut": _lut_dict(image, result)} if bit_products else {}
    return {
        "engine": result.engine,
        "config": image.config.name,
        "cycles": cycles,
        "schedule": content_key(str([(s.index, s.start, s.end) for s in result.spans]))
        if cycles
        else None,
        "macs": macs,
        "useful_macs": useful,
        "utilisation": useful / (cycles * multipliers) if cycles else None,
        "busy": busy,
        "stalls": stalls,
        **lut,
        "bytes_read": result.bytes_read,
        "bytes_written": result.bytes_written,
        "seconds": result.seconds,
        "simulated_cycles_per_second": cycles / result.seconds if cycles else None,
        "layers": [
            {
                "name": layer.name,
                "cycles": layer.cycles,
                "macs": layer.macs,
                "useful_macs": layer.useful_macs,
                "utilisation": layer.utilisation(multipliers),
                "busy": layer.busy,
                "lost": dict(layer.lost),
                "bytes": layer.bytes,
                **(_lut_share(layer, bit_products) if bit_products else {}),
            }
            for layer in layer_times(image, result)
        ],
    }


def _lut_dict(image: Image, result: Result) -> dict[str, object]:
    work = sum(layer.lut_work for layer in image.layers)
    stalls = dict(result.counters.get("lut", {}))
    busy = stalls.pop("busy", None)
    could = image.config.bit_products
    return {
        "macs": sum(layer.lut_macs for layer in image.layers),
        "bit_products": work,
        "utilisation": work / (result.cycles * could) if result.cycles else None,
        "busy": busy,
        "stalls": stalls,
    }


def _lut_share(layer: LayerTime, bit_products: int) -> dict[str, object]:
    return {
        "lut_macs": layer.lut_macs,
        "lut_work": layer.lut_work,
        "lut_utilisation": layer.lut_utilisation(bit_products),
        "lut_busy": layer.lut_busy,
    }
