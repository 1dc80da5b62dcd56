"""Signatures of what engines and memories offer each other; all seen from the client.

A memory port is synchronous: address and enable in one cycle, read data in the next. Ports to a
memory that is shared in slots look the same; their client must enable them only in its slot
(:mod:`twillcore.timing`; a reader's address counts whether it does or not), and takes read data
``SHARED_READ_CYCLES`` later. ``phase`` is the free-running frame counter.
"""

from amaranth.hdl import signed
from amaranth.lib import enum, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from twillcore.config import ADDRESS_BITS, FRAME_CYCLES, Config
from twillcore.hw.layouts import INDEX_BITS, ISSUED, activation_word

PHASE_BITS = (FRAME_CYCLES - 1).bit_length()
CAUSE_BITS = 4


class Activity(enum.Enum, shape=2):
    """What an engine does in a cycle, for the performance counters."""

    IDLE = 0  #: nothing accepted: waits for tokens or instructions
    BUSY = 1  #: useful work (GEMM: a step of its loop nest)
    BLOCKED = 2  #: LOAD, STORE: waits for the bus; a core: for the drain or its memory port
    ENDING = 3  #: would accept work, but has instructions that have not retired


def read_port(address_bits, shape):
    """Return a synchronous read port, seen from the client."""
    return wiring.Signature({
        "address": Out(address_bits), "enable": Out(1), "data": In(shape),
    })  # fmt: skip


def gather_port(config: Config):
    """Return the port of the activation memory for the GEMM cores, seen from them.

    With windows, memory lane b reads the word at ``second`` instead of the one at ``address`` if
    bit b of ``uses_second`` is set.
    """
    members = dict(read_port(ADDRESS_BITS, activation_word(config)).members)
    if config.tap_depth:
        members |= {"second": Out(ADDRESS_BITS), "uses_second": Out(config.lanes)}
    return wiring.Signature(members)


def window_port(config: Config):
    """Return the port through which a GEMM core reads activations, seen from the core.

    With windows, ``data`` is what :class:`twillcore.hw.gather.Gather` makes of two words. The
    addresses are of any size; of a word that the memory does not have padding is taken.
    """
    if not config.tap_depth:
        return gather_port(config)
    return wiring.Signature({
        "enable": Out(1),
        "address": Out(signed(20)),
        "second": Out(signed(20)),
        "uses_second": Out(config.lanes),  # by memory lane
        "rotate": Out(ceil_log2(config.lanes)),
        "strided": Out(1),  # every second lane counts
        "low": Out(1),  # padding is the smallest number, not 0
        "inside": Out(config.lanes),  # lanes that are not padding
        "data": In(activation_word(config)),
    })  # fmt: skip


def write_port(address_bits, shape, enable_bits=1):
    """Return a write port, seen from the client; enable bits cover equal parts of the data."""
    return wiring.Signature({
        "address": Out(address_bits), "enable": Out(enable_bits), "data": Out(shape),
    })  # fmt: skip


#: Raised for one cycle when an instruction cannot be executed; the machine stops.
ERROR = wiring.Signature({
    "valid": Out(1), "cause": Out(CAUSE_BITS), "index": Out(INDEX_BITS),
})  # fmt: skip


def engine_members():
    """Return the ports that every engine has.

    ``instruction`` delivers instructions whose tokens are taken, in order; the transfer is the
    instruction's start. ``retire`` is high for one cycle per instruction, in order: its end.
    """
    return {
        "phase": In(PHASE_BITS),
        "instruction": In(stream.Signature(ISSUED)),
        "retire": Out(1),
        "activity": Out(Activity),
        "error": Out(ERROR),
    }
