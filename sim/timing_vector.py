"""When VECTOR and MOVE instructions end: closed formulas, the same as the hardware's.

Everything these engines do goes by the slots of :mod:`twillcore.timing`, so an end depends on the
operands and on the phase of the start, on nothing else. ``start`` is the cycle in which the engine
takes the instruction (``instruction.valid`` and ``ready``), the result the cycle of ``retire``,
which is that of the instruction's last write. The engine can take its next instruction in that very
cycle (:func:`next_start`), and is BUSY from ``start + 1`` to the end. Legal instructions only.
"""

from twillcore.config import FRAME_CYCLES, Config
from twillcore.hw import move, vector
from twillcore.hw.norm_statistics import NormStatistics
from twillcore.hw.reciprocal import Reciprocal
from twillcore.hw.softmax import Softmax
from twillcore.hw.word_reader import WordReader
from twillcore.isa import Instruction, MoveMode, Opcode
from twillcore.timing import ActivationSlot

#: Cycles from taking an instruction to the first cycle in which it may read: check, then start.
START_CYCLES = 3


def next_in_slot(cycle: int, slot: int) -> int:
    """Return the first cycle from ``cycle`` on whose phase is ``slot``."""
    return cycle + (slot - cycle) % FRAME_CYCLES


def next_start(end: int) -> int:
    """Return the first cycle in which an engine whose instruction ends in ``end`` takes another."""
    return end


def vector_end(instruction: Instruction, start: int, config: Config) -> int:
    """Return the cycle in which a VECTOR instruction that is taken in cycle ``start`` retires."""
    row_tiles = instruction["row_tiles"]
    tile = instruction["words"] * config.block  # one channel per cycle
    slot_a, slot_b = ActivationSlot.VECTOR_READ_A, ActivationSlot.VECTOR_READ_B
    first = start + START_CYCLES
    if instruction.opcode is Opcode.SOFTMAX:
        period = max(tile, vector.SOFTMAX_FRAMES * FRAME_CYCLES)
        opening = next_in_slot(first, slot_a) + (row_tiles - 1) * period
        last_x = opening + WordReader.READ_LATENCY + tile - 1
        return last_x + Softmax.SUM_LATENCY + Reciprocal.LATENCY
    if instruction.opcode is Opcode.LAYER_NORM:
        period = max(tile, vector.STATISTICS_FRAMES * FRAME_CYCLES)
        last_x = next_in_slot(first, slot_b) + WordReader.READ_LATENCY + tile - 1
        second_pass = next_in_slot(last_x + NormStatistics.LATENCY + 1, slot_a)
        opening = second_pass + (row_tiles - 1) * period
        return opening + tile + vector.NORM_WORD_CYCLES
    if instruction.opcode is Opcode.ELEMENTWISE:
        opening = next_in_slot(first, slot_a) + (slot_b - slot_a)
        return opening + row_tiles * tile + vector.ELEMENTWISE_WORD_CYCLES
    raise ValueError(f"VECTOR does not execute {instruction.opcode.name}")


def move_end(instruction: Instruction, start: int, config: Config) -> int:
    """Return the cycle in which a MOVE that is taken in cycle ``start`` retires."""
    if instruction["mode"] == MoveMode.KEYS:
        items, words, rows = instruction["row_tiles"] * instruction["blocks"], 1, config.block
        frames = config.block // FRAME_CYCLES
    else:
        words, rows = config.words_per_tile, config.lanes
        items = instruction["blocks"] // words * instruction["row_tiles"]
        frames = words + move.values_pause(config)
    first = next_in_slot(start + START_CYCLES, ActivationSlot.MOVE_READ)
    last_read = first + ((items - 1) * frames + words - 1) * FRAME_CYCLES
    return last_read + move.MoveEngine.ROW_LATENCY + rows - 1
