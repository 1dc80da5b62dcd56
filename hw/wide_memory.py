"""The memory of 16-bit tensors: residual streams and logits."""

from amaranth.hdl import Module
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In

from twillcore.config import ADDRESS_BITS, Config
from twillcore.hw.layouts import wide_word
from twillcore.hw.ports import PHASE_BITS, read_port, write_port
from twillcore.timing import WideReadSlot, WideWriteSlot


class WideMemory(wiring.Component):
    """Simple dual-port block RAM, whose read port and write port are both shared in slots.

    A client accesses its port in its slot of the frame (:class:`twillcore.timing.WideReadSlot`,
    :class:`~twillcore.timing.WideWriteSlot`); outside it, its enable is ignored. Read data stands
    on a reader's port in the following cycle only. A read of the word that is written in the same
    cycle returns the old word. Address bits beyond the depth are ignored: engines check addresses.

    Members
    -------
    phase : In(PHASE_BITS)
    drain_read, vector_read_a, store_read, vector_read_b :
        In(read_port(ADDRESS_BITS, wide_word(config)))
    drain_write, load_write, vector_write : In(write_port(ADDRESS_BITS, wide_word(config)))
    """

    def __init__(self, config: Config):
        self._word = wide_word(config)
        self._depth = config.wide_depth
        reads = In(read_port(ADDRESS_BITS, self._word))
        writes = In(write_port(ADDRESS_BITS, self._word))
        super().__init__(
            {"phase": In(PHASE_BITS)}
            | {slot.name.lower(): reads for slot in WideReadSlot}
            | {slot.name.lower(): writes for slot in WideWriteSlot}
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.words = words = memory.Memory(shape=self._word, depth=self._depth, init=[])
        write, read = words.write_port(), words.read_port()
        with m.Switch(self.phase):
            for slot in WideWriteSlot:
                client = getattr(self, slot.name.lower())
                with m.Case(slot):
                    m.d.comb += [
                        write.addr.eq(client.address),
                        write.data.eq(client.data),
                        write.en.eq(client.enable),
                    ]
        with m.Switch(self.phase):
            for slot in WideReadSlot:
                client = getattr(self, slot.name.lower())
                with m.Case(slot):
                    m.d.comb += [read.addr.eq(client.address), read.en.eq(client.enable)]
        for slot in WideReadSlot:
            m.d.comb += getattr(self, slot.name.lower()).data.eq(read.data)
        return m
