"""The AXI4-Lite slave with control, status and performance counters."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from twillcore.hw.axi import Response
from twillcore.hw.axi_lite import axi4_lite
from twillcore.registers import ADDRESS_BITS, COUNTERS_STRIDE, REGISTER_BYTES, REGISTERS, Access


class Registers(wiring.Component):
    """Connect :data:`twillcore.registers.REGISTERS` to an AXI4-Lite bus.

    A write is taken when address and data are both there and no response is pending, and acts in
    that cycle; the response is offered in the next one. A read samples the register in the cycle in
    which it is taken; the data is offered two cycles later. There is room for two reads, the one on
    offer included. A response that is being taken is not pending: throughput is a write and a read
    per cycle. Accesses to
    other addresses, and writes to read-only registers, are answered with SLVERR and do nothing.

    Members
    -------
    bus : In(axi4_lite(ADDRESS_BITS))
    <register> : In(32) for what the bus reads, Out(32) for what it writes
        Writable bits of registers that act once are high in the cycle after the write only.
    """

    def __init__(self):
        directions = {Access.READ: In(32), Access.WRITE: Out(32)}
        super().__init__(
            {"bus": In(axi4_lite(ADDRESS_BITS))}
            | {
                register.name.lower(): directions[register.access]
                if register.access in directions
                else Out(32, init=register.init)
                for register in REGISTERS.values()
            }
        )

    def elaborate(self, platform):
        m = Module()
        self._write(m)
        self._read(m)
        return m

    def _write(self, m):
        bus = self.bus
        take = Signal()
        m.d.comb += [
            take.eq(bus.awvalid & bus.wvalid & (~bus.bvalid | bus.bready)),
            bus.awready.eq(take),
            bus.wready.eq(take),
        ]
        with m.If(bus.bready):
            m.d.sync += bus.bvalid.eq(0)
        with m.If(take):
            m.d.sync += [bus.bvalid.eq(1), bus.bresp.eq(Response.SLVERR)]

        strobed = Cat(bit.replicate(8) for bit in bus.wstrb)
        for register in REGISTERS.values():
            if register.access is Access.READ:
                continue
            value = getattr(self, register.name.lower())
            if register.access is Access.WRITE:
                m.d.sync += value.eq(0)
            with m.If(take & (bus.awaddr[_WORD_SHIFT:] == register.offset >> _WORD_SHIFT)):
                m.d.sync += bus.bresp.eq(Response.OKAY)
                if register.access is Access.WRITE:
                    m.d.sync += value.eq(bus.wdata & strobed)
                else:
                    m.d.sync += value.eq((value & ~strobed) | (bus.wdata & strobed))

    def _read(self, m):
        """Two multiplexers with registers behind them: registers of a group, and groups."""
        bus = self.bus
        groups: dict[int, list] = {}
        for register in REGISTERS.values():
            groups.setdefault(register.offset >> _GROUP_SHIFT, []).append(register)

        sampled = Signal()  # in `values`, not yet on the bus
        onward, take = Signal(), Signal()
        m.d.comb += [
            onward.eq(~bus.rvalid | bus.rready),
            take.eq(bus.arvalid & (~sampled | onward)),
            bus.arready.eq(take),
        ]
        with m.If(take):
            m.d.sync += sampled.eq(1)
        with m.Elif(onward):
            m.d.sync += sampled.eq(0)

        chosen = Signal(bus.araddr.shape().width - _GROUP_SHIFT)
        with m.If(take):
            m.d.sync += chosen.eq(bus.araddr[_GROUP_SHIFT:])
        with m.If(onward):
            m.d.sync += [
                bus.rvalid.eq(sampled),
                bus.rdata.eq(0),
                bus.rresp.eq(Response.SLVERR),
            ]
        for number, group in groups.items():
            value = Signal(8 * REGISTER_BYTES, name=f"value_{number:x}")
            known = Signal(name=f"known_{number:x}")
            with m.If(take):
                m.d.sync += [value.eq(0), known.eq(0)]
                with m.Switch(bus.araddr[_WORD_SHIFT:_GROUP_SHIFT]):
                    for register in group:
                        with m.Case((register.offset % (1 << _GROUP_SHIFT)) >> _WORD_SHIFT):
                            m.d.sync += known.eq(1)
                            if register.access is not Access.WRITE:
                                m.d.sync += value.eq(getattr(self, register.name.lower()))
            with m.If(onward & (chosen == number)):
                m.d.sync += bus.rdata.eq(value)
                with m.If(known):
                    m.d.sync += bus.rresp.eq(Response.OKAY)


_WORD_SHIFT = (
    REGISTER_BYTES.bit_length() - 1
)  # the bus counts bytes; their place in a word is WSTRB's
_GROUP_SHIFT = (COUNTERS_STRIDE - 1).bit_length()  # a group: the counters of an engine
