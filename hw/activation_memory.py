"""The memory that all engines share: int8 activations, one block of every lane per word."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In

from twillcore.config import ADDRESS_BITS, FRAME_CYCLES, Config
from twillcore.hw.layouts import activation_word
from twillcore.hw.ports import gather_port, read_port, write_port
from twillcore.hw.select import in_slot
from twillcore.timing import ActivationSlot

WRITERS = (ActivationSlot.DRAIN_WRITE, ActivationSlot.LOAD_WRITE, ActivationSlot.VECTOR_WRITE)
READERS = (
    ActivationSlot.DRAIN_READ,
    ActivationSlot.MOVE_READ,
    ActivationSlot.VECTOR_READ_A,
    ActivationSlot.STORE_READ,
    ActivationSlot.VECTOR_READ_B,
)


class ActivationMemory(wiring.Component):
    """True dual-port block RAM: one port for the GEMM core, one in slots for everybody else.

    The GEMM core reads a word in any cycle. Every other client accesses the shared port in its slot
    of the frame (:class:`twillcore.timing.ActivationSlot`); outside it, a writer's enable is
    ignored. A reader's is always: in its slot its address is read, whether it wants that or not, so
    that no engine's decision has to reach a memory on the other side of the chip within a cycle.
    Read data stands on a reader's port ``SHARED_READ_CYCLES`` after its slot, for one cycle; on the
    GEMM core's in the cycle after its enable. A read of the word that is written in the same cycle
    returns the old word. Address bits beyond the depth are ignored: engines check addresses.

    With windows (``tap_depth``), every lane is a memory of its own: the GEMM core gives two
    addresses, and which lanes read the second.

    Members
    -------
    slots : In(FRAME_CYCLES)
        Only the bit of the phase is 1.
    gemm_read : In(gather_port(config))
    drain_write, load_write, vector_write : In(write_port(ADDRESS_BITS, activation_word(config)))
    drain_read, move_read, vector_read_a, store_read, vector_read_b :
        In(read_port(ADDRESS_BITS, activation_word(config)))
    """

    def __init__(self, config: Config):
        self._config = config
        word = activation_word(config)
        reads = In(read_port(ADDRESS_BITS, word))
        writes = In(write_port(ADDRESS_BITS, word))
        super().__init__(
            {"slots": In(FRAME_CYCLES), "gemm_read": In(gather_port(config))}
            | {slot.name.lower(): writes for slot in WRITERS}
            | {slot.name.lower(): reads for slot in READERS}
        )

    def elaborate(self, platform):
        m = Module()
        config = self._config

        # The shared port: one address, and a read or a write.
        address = Signal(ADDRESS_BITS)
        written = Signal(activation_word(config))
        write, read = Signal(), Signal()
        clients = {slot: getattr(self, slot.name.lower()) for slot in ActivationSlot}
        m.d.comb += [
            address.eq(in_slot(self.slots, {s: client.address for s, client in clients.items()})),
            written.eq(in_slot(self.slots, {s: clients[s].data.as_value() for s in WRITERS})),
            write.eq(Cat(self.slots[s] & clients[s].enable for s in WRITERS).any()),
            read.eq(~Cat(self.slots[s] for s in WRITERS).any()),
        ]

        if config.tap_depth:
            banks = [(f"lane_{lane}", [lane]) for lane in range(config.lanes)]
        else:
            banks = [("words", range(config.lanes))]
        for name, lanes in banks:
            gemm = self.gemm_read
            gemm_address = gemm.address
            if config.tap_depth:
                gemm_address = Mux(gemm.uses_second[lanes[0]], gemm.second, gemm.address)
            self._bank(m, name, lanes, gemm_address, address, written, write, read)
        return m

    def _bank(self, m, name, lanes, gemm_address, address, written, write, read):
        """Add the memory of some lanes."""

        def part(word):
            return Cat(word[lane].as_value() for lane in lanes)

        config = self._config
        bits = config.block * 8 * len(lanes)
        m.submodules[name] = bank = memory.Memory(
            shape=bits, depth=config.activation_depth, init=[]
        )
        gemm = bank.read_port()
        # One address, and never both enables: synthesis makes one read-write port of the two.
        shared_write, shared_read = bank.write_port(), bank.read_port()
        m.d.comb += [
            gemm.addr.eq(gemm_address),
            gemm.en.eq(self.gemm_read.enable),
            part(self.gemm_read.data).eq(gemm.data),
            shared_write.addr.eq(address),
            shared_write.data.eq(part(written)),
            shared_write.en.eq(write),
            shared_read.addr.eq(address),
            shared_read.en.eq(read),
        ]
        read_word = Signal(bits, name=f"{name}_read", reset_less=True)
        m.d.sync += read_word.eq(shared_read.data)
        for slot in READERS:
            client = getattr(self, slot.name.lower())
            m.d.comb += part(client.data).eq(read_word)
