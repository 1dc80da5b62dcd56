"""The AXI4-Lite slave with control, status and performance counters."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from twillcore.hw.axi import Response
from twillcore.hw.axi_lite import axi4_lite
from twillcore.registers import ADDRESS_BITS, REGISTER_BYTES, REGISTERS, Access


class Registers(wiring.Component):
    """Connect :data:`twillcore.registers.REGISTERS` to an AXI4-Lite bus.

    A write is taken when address and data are both there and no response is pending, and acts in
    that cycle; the response is offered in the next one. A read is taken when no read data is
    pending, and samples the register in that cycle; the data is offered in the next one. A response
    that is being taken is not pending: throughput is a write and a read per cycle. Accesses to
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
        bus = self.bus
        take = Signal()
        m.d.comb += [take.eq(bus.arvalid & (~bus.rvalid | bus.rready)), bus.arready.eq(take)]
        with m.If(bus.rready):
            m.d.sync += bus.rvalid.eq(0)
        with m.If(take):
            m.d.sync += [bus.rvalid.eq(1), bus.rdata.eq(0), bus.rresp.eq(Response.SLVERR)]
            with m.Switch(bus.araddr[_WORD_SHIFT:]):
                for register in REGISTERS.values():
                    with m.Case(register.offset >> _WORD_SHIFT):
                        m.d.sync += bus.rresp.eq(Response.OKAY)
                        if register.access is not Access.WRITE:
                            m.d.sync += bus.rdata.eq(getattr(self, register.name.lower()))


_WORD_SHIFT = (
    REGISTER_BYTES.bit_length() - 1
)  # the bus counts bytes; their place in a word is WSTRB's
