"""The memory that all engines share: int8 activations, one block of every lane per word."""

from amaranth.hdl import Module
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In

from twillcore.config import ADDRESS_BITS, Config
from twillcore.hw.layouts import activation_word
from twillcore.hw.ports import PHASE_BITS, read_port, write_port
from twillcore.timing import ActivationSlot

WRITERS = (ActivationSlot.DRAIN_WRITE, ActivationSlot.LOAD_WRITE, ActivationSlot.VECTOR_WRITE)
READERS = (
    ActivationSlot.MOVE_READ,
    ActivationSlot.VECTOR_READ_A,
    ActivationSlot.STORE_READ,
    ActivationSlot.VECTOR_READ_B,
)


class ActivationMemory(wiring.Component):
    """True dual-port block RAM: one port for the GEMM core, one in slots for everybody else.

    The GEMM core reads a word in any cycle. Every other client accesses the shared port in its slot
    of the frame (:class:`twillcore.timing.ActivationSlot`); outside it, its enable is ignored. Read
    data stands on a reader's port in the following cycle only. A read of the word that is written
    in the same cycle returns the old word. Address bits beyond the depth are ignored: engines check
    addresses.

    Members
    -------
    phase : In(PHASE_BITS)
    gemm_read : In(read_port(ADDRESS_BITS, activation_word(config)))
    drain_write, load_write, vector_write : In(write_port(ADDRESS_BITS, activation_word(config)))
    move_read, vector_read_a, store_read, vector_read_b : as ``gemm_read``
    """

    def __init__(self, config: Config):
        self._word = activation_word(config)
        self._depth = config.activation_depth
        reads = In(read_port(ADDRESS_BITS, self._word))
        writes = In(write_port(ADDRESS_BITS, self._word))
        super().__init__(
            {"phase": In(PHASE_BITS), "gemm_read": reads}
            | {slot.name.lower(): writes for slot in WRITERS}
            | {slot.name.lower(): reads for slot in READERS}
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.words = words = memory.Memory(shape=self._word, depth=self._depth, init=[])
        gemm = words.read_port()
        m.d.comb += [
            gemm.addr.eq(self.gemm_read.address),
            gemm.en.eq(self.gemm_read.enable),
            self.gemm_read.data.eq(gemm.data),
        ]

        # One address, and never both enables: synthesis makes one read-write port of the two.
        write, read = words.write_port(), words.read_port()
        m.d.comb += read.addr.eq(write.addr)
        with m.Switch(self.phase):
            for slot in WRITERS:
                client = getattr(self, slot.name.lower())
                with m.Case(slot):
                    m.d.comb += [
                        write.addr.eq(client.address),
                        write.data.eq(client.data),
                        write.en.eq(client.enable),
                    ]
            for slot in READERS:
                client = getattr(self, slot.name.lower())
                with m.Case(slot):
                    m.d.comb += [write.addr.eq(client.address), read.en.eq(client.enable)]
        for slot in READERS:
            m.d.comb += getattr(self, slot.name.lower()).data.eq(read.data)
        return m
