"""The memory that all engines share: int8 activations, one block of every lane per word."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In

from twillcore.config import ADDRESS_BITS, FRAME_CYCLES, Config
from twillcore.hw.layouts import activation_word
from twillcore.hw.ports import gather_port, read_port, write_port
from twillcore.hw.select import in_slot
from twillcore.timing import ActivationSlot, lut_slots

WRITERS = (ActivationSlot.DRAIN_WRITE, ActivationSlot.LOAD_WRITE, ActivationSlot.VECTOR_WRITE)
READERS = (
    ActivationSlot.DRAIN_READ,
    ActivationSlot.MOVE_READ,
    ActivationSlot.VECTOR_READ_A,
    ActivationSlot.STORE_READ,
    ActivationSlot.VECTOR_READ_B,
)


class ActivationMemory(wiring.Component):
    """True dual-port block RAM: one port for the GEMM cores, one in slots for everybody else.

    The GEMM cores read a word in any cycle. Every other client accesses the shared port in its slot
    of the frame (:class:`twillcore.timing.ActivationSlot`); outside it, a writer's enable is
    ignored. A reader's is always: in its slot its address is read, whether it wants that or not, so
    that no engine's decision has to reach a memory on the other side of the chip within a cycle.
    Read data stands on a reader's port ``SHARED_READ_CYCLES`` after its slot, for one cycle; on the
    GEMM cores' in the cycle after their enable. A read of the word that is written in the same
    cycle returns the old word. Address bits beyond the depth are ignored: engines check addresses.

    Every lane is a memory of its own. With windows (``tap_depth``), a GEMM core gives two
    addresses, and which lanes read the second.

    With ``lut_slots``, the LUT core asks by itself, through ``lut_read``. Its reads go through the
    port of ``gemm_read`` in a cycle without one of these, else through the shared port: both may be
    enabled at once in these slots only. The engines whose slots they were have no members.

    Members
    -------
    slots : In(FRAME_CYCLES)
        Only the bit of the phase is 1.
    gemm_read, lut_read : In(gather_port(config))
    drain_write, load_write, vector_write : In(write_port(ADDRESS_BITS, activation_word(config)))
    drain_read, move_read, vector_read_a, store_read, vector_read_b :
        In(read_port(ADDRESS_BITS, activation_word(config)))
    """

    def __init__(self, config: Config):
        self._config = config
        word = activation_word(config)
        reads = In(read_port(ADDRESS_BITS, word))
        writes = In(write_port(ADDRESS_BITS, word))
        self._lut_slots = lut_slots(config)
        self._writers = [slot for slot in WRITERS if slot not in self._lut_slots]
        self._readers = [slot for slot in READERS if slot not in self._lut_slots]
        super().__init__(
            {"slots": In(FRAME_CYCLES), "gemm_read": In(gather_port(config))}
            | ({"lut_read": In(gather_port(config))} if self._lut_slots else {})
            | {slot.name.lower(): writes for slot in self._writers}
            | {slot.name.lower(): reads for slot in self._readers}
        )

    def elaborate(self, platform):
        m = Module()
        config = self._config

        # The shared port: one address, and a read or a write.
        address = Signal(ADDRESS_BITS)
        written = Signal(activation_word(config))
        write, read = Signal(), Signal()
        slots = (*self._writers, *self._readers)
        clients = {slot: getattr(self, slot.name.lower()) for slot in slots}
        m.d.comb += [
            address.eq(in_slot(self.slots, {s: client.address for s, client in clients.items()})),
            written.eq(in_slot(self.slots, {s: clients[s].data.as_value() for s in self._writers})),
            write.eq(Cat(self.slots[s] & clients[s].enable for s in self._writers).any()),
            read.eq(~Cat(self.slots[s] for s in self._writers).any()),
        ]

        beside = Signal()  # the LUT core's word is on the shared port: the other one was not free
        if self._lut_slots:
            m.d.sync += beside.eq(self.gemm_read.enable)

        for lane in range(config.lanes):
            self._bank(m, lane, address, written, write, read, beside)
        return m

    def _bank(self, m, lane, address, written, write, read, beside):
        """Add the memory of a lane.

        Not one memory of wide words: of a lane's 64 bits, Yosys makes block RAMs of the whole depth
        on ECP5, without a multiplexer behind them.
        """

        def own(port):
            """Return the address of this lane."""
            if not self._config.tap_depth:
                return port.address
            return Mux(port.uses_second[lane], port.second, port.address)

        config = self._config
        bits = config.block * 8
        name = f"lane_{lane}"
        m.submodules[name] = bank = memory.Memory(
            shape=bits, depth=config.activation_depth, init=[]
        )
        gemm = bank.read_port()
        # One address, and never both enables: synthesis makes one read-write port of the two.
        shared_write, shared_read = bank.write_port(), bank.read_port()
        gemm_address, gemm_enable = own(self.gemm_read), self.gemm_read.enable
        shared_address = Signal(ADDRESS_BITS, name=f"{name}_address")
        m.d.comb += shared_address.eq(address)
        if self._lut_slots:
            lut = self.lut_read
            gemm_address = Mux(gemm_enable, gemm_address, own(lut))
            gemm_enable = gemm_enable | lut.enable
            with m.If(Cat(self.slots[slot] for slot in self._lut_slots).any()):
                m.d.comb += shared_address.eq(own(lut))
            m.d.comb += lut.data[lane].as_value().eq(Mux(beside, shared_read.data, gemm.data))
        m.d.comb += [
            gemm.addr.eq(gemm_address),
            gemm.en.eq(gemm_enable),
            self.gemm_read.data[lane].as_value().eq(gemm.data),
            shared_write.addr.eq(shared_address),
            shared_write.data.eq(written[lane].as_value()),
            shared_write.en.eq(write),
            shared_read.addr.eq(shared_address),
            shared_read.en.eq(read),
        ]
        read_word = Signal(bits, name=f"{name}_read", reset_less=True)
        m.d.sync += read_word.eq(shared_read.data)
        for slot in self._readers:
            client = getattr(self, slot.name.lower())
            m.d.comb += client.data[lane].as_value().eq(read_word)
