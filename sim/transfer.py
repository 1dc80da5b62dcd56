"""What LOAD and STORE move over the memory port: bytes of a run, and the bursts it is cut into."""

from collections.abc import Iterator, Mapping

from twillcore.config import Config
from twillcore.isa import PARAMETER_BYTES, Memory, WeightFormat
from twillcore.weights import encoded_rows, plane_row_bytes, weight_row_bytes

BOUNDARY_BYTES = 4096  # no burst crosses a multiple of this


def unit_bytes(memory: Memory, config: Config) -> int:
    """Return the bytes in DRAM of one unit of ``memory``; of weights, one stored row."""
    return {
        Memory.ACTIVATION: config.word_bytes,
        Memory.WIDE: 2 * config.word_bytes,
        Memory.WEIGHT: weight_row_bytes(config),
        Memory.LUT_WEIGHT: plane_row_bytes(config),
    }.get(memory, PARAMETER_BYTES)


def run_bytes(i: Mapping[str, int], config: Config) -> int:
    """Return the bytes of one run of a LOAD or STORE, whose operands ``i`` are."""
    memory, rows = Memory(i["memory"]), i["count"]
    if memory == Memory.WEIGHT:
        rows = encoded_rows(rows, i["beats"], WeightFormat(i["format"]), config)
    return rows * unit_bytes(memory, config)


def burst_lengths(i: Mapping[str, int], config: Config) -> Iterator[tuple[int, bool]]:
    """Yield (beats, is the last one) of the bursts of a LOAD or STORE (``hw/bursts.py``)."""
    run_beats = run_bytes(i, config) // config.axi_bytes
    for run in range(i["runs"]):
        address, left = i["dram"] + run * i["dram_stride"], run_beats
        while left:
            to_boundary = (BOUNDARY_BYTES - address % BOUNDARY_BYTES) // config.axi_bytes
            beats = min(left, to_boundary, config.axi_burst_beats)
            left -= beats
            address += beats * config.axi_bytes
            yield beats, left == 0 and run == i["runs"] - 1
