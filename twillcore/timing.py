"""When the shared memory ports serve whom: fixed slots, so that engines never disturb each other.

Cycles are counted in frames of :data:`FRAME_CYCLES`, by one free-running counter (``phase``) that
is 0 in the first cycle after reset. Every client of a shared port owns one cycle (slot) of each
frame. A client presents address, enable and write data in the cycle whose phase is its slot; the
access happens at the end of that cycle, and read data stands on the port's output
:data:`SHARED_READ_CYCLES` later, for one cycle: it passes a register on its way from block RAM to
engines that may be on the other side of the chip.

So the time of an access depends on nothing but the phase, and the cycle model needs no arbiter.
The GEMM core's own activation read port is dedicated and has no slots.
"""

from enum import IntEnum

from twillcore.config import FRAME_CYCLES, Config

#: Cycles from a reader's slot to the cycle in which its data stand on the port.
SHARED_READ_CYCLES = 2


class ActivationSlot(IntEnum):
    """Slots of the activation memory's shared port (one access, read or write, per cycle)."""

    DRAIN_WRITE = 0
    LOAD_WRITE = 1
    VECTOR_WRITE = 2
    VECTOR_READ_A = 3
    STORE_READ = 4
    VECTOR_READ_B = 5
    DRAIN_READ = 6
    MOVE_READ = 7


class WideReadSlot(IntEnum):
    """Slots of the wide memory's read port."""

    VECTOR_READ_A = 3
    STORE_READ = 4
    VECTOR_READ_B = 5
    DRAIN_READ = 7


class WideWriteSlot(IntEnum):
    """Slots of the wide memory's write port."""

    DRAIN_WRITE = 0
    LOAD_WRITE = 1
    VECTOR_WRITE = 2


assert all(slot < FRAME_CYCLES for slots in (ActivationSlot, WideReadSlot, WideWriteSlot)
           for slot in slots)  # fmt: skip


def window_cycles(config: Config) -> int:
    """Cycles from a step of a GEMM core's loop nest to its beat; 0 without windows.

    A whole frame, so that the drain, which is told of a tile in the step of its last beat, starts
    in the same phase with and without windows.
    """
    return FRAME_CYCLES if config.tap_depth else 0
