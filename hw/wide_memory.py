"""The memory of 16-bit tensors: residual streams and logits."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In

from twillcore.config import ADDRESS_BITS, FRAME_CYCLES, Config
from twillcore.hw.layouts import wide_word
from twillcore.hw.ports import read_port, write_port
from twillcore.hw.select import in_slot
from twillcore.timing import WideReadSlot, WideWriteSlot


class WideMemory(wiring.Component):
    """Simple dual-port block RAM, whose read port and write port are both shared in slots.

    A client accesses its port in its slot of the frame (:class:`twillcore.timing.WideReadSlot`,
    :class:`~twillcore.timing.WideWriteSlot`); outside it, a writer's enable is ignored, and a
    reader's always: see :class:`~twillcore.hw.activation_memory.ActivationMemory`. Read data stands
    on a reader's port ``SHARED_READ_CYCLES`` after its slot, for one cycle. A read of the word that
    is written in the same cycle returns the old word. Address bits beyond the depth are ignored:
    engines check addresses.

    Members
    -------
    slots : In(FRAME_CYCLES)
        Only the bit of the phase is 1.
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
            {"slots": In(FRAME_CYCLES)}
            | {slot.name.lower(): reads for slot in WideReadSlot}
            | {slot.name.lower(): writes for slot in WideWriteSlot}
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.words = words = memory.Memory(shape=self._word, depth=self._depth, init=[])
        write, read = words.write_port(), words.read_port()
        writers, readers = (
            {slot: getattr(self, slot.name.lower()) for slot in slots}
            for slots in (WideWriteSlot, WideReadSlot)
        )
        read_word = Signal(self._word, reset_less=True)
        m.d.sync += read_word.eq(read.data)
        m.d.comb += [
            write.addr.eq(in_slot(self.slots, {s: port.address for s, port in writers.items()})),
            write.data.eq(in_slot(self.slots, {s: p.data.as_value() for s, p in writers.items()})),
            write.en.eq(Cat(self.slots[s] & port.enable for s, port in writers.items()).any()),
            read.addr.eq(in_slot(self.slots, {s: port.address for s, port in readers.items()})),
            read.en.eq(Cat(self.slots[s] for s in readers).any()),
            *(port.data.eq(read_word) for port in readers.values()),
        ]
        return m
