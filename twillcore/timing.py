"""When the shared memory ports serve whom: fixed slots, so that engines never disturb each other.

Cycles are counted in frames of :data:`FRAME_CYCLES`, by one free-running counter (``phase``) that
is 0 in the first cycle after reset. Every client of a shared port owns one cycle (slot) of each
frame. A client presents address, enable and write data in the cycle whose phase is its slot; the
access happens at the end of that cycle, and read data stands on the port's output
:data:`SHARED_READ_CYCLES` later, for one cycle: it passes a register on its way from block RAM to
engines that may be on the other side of the chip.

So the time of an access depends on nothing but the phase, and the cycle model needs no arbiter.
The DSP core's own activation read port is dedicated and has no slots. The LUT core reads through it
when the DSP core does not; in slots of engines that a configuration lacks, it reads through the
shared port (:func:`lut_slots`), and has its data in the next cycle through either of them.
"""

from enum import IntEnum

from twillcore.config import FRAME_CYCLES, Config
from twillcore.isa import Engine

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


#: The engine of slots that not every configuration needs.
_OPTIONAL = {
    ActivationSlot.VECTOR_WRITE: Engine.VECTOR,
    ActivationSlot.MOVE_READ: Engine.MOVE,
    ActivationSlot.VECTOR_READ_A: Engine.VECTOR,
    ActivationSlot.VECTOR_READ_B: Engine.VECTOR,
}


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


def lut_slots(config: Config) -> tuple[ActivationSlot, ...]:
    """Return the slots of the shared port in which the LUT core reads; () if it never does.

    They are those of the vector engine and of MOVE where these are absent. Only windows of stride 2
    make the DSP core read so often that the LUT core needs them.
    """
    if not (config.lut_columns and config.tap_depth) or Engine.VECTOR in config.engines:
        return ()
    return tuple(slot for slot, engine in _OPTIONAL.items() if engine not in config.engines)


def lut_phases(config: Config) -> frozenset[int]:
    """Return the phases of steps of the LUT core whose reads come in :func:`lut_slots`."""
    to_read = window_cycles(config) // 2
    return frozenset((slot - to_read) % FRAME_CYCLES for slot in lut_slots(config))
