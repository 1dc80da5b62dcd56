"""A memory with one writer and one reader."""

from amaranth.hdl import Module
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In

from twillcore.hw.ports import read_port, write_port


class TwoPortMemory(wiring.Component):
    """Simple dual-port block RAM of ``depth`` rows.

    A read and a write per cycle; read data stands on the port in the following cycle, and holds
    until the next read. A read of the row that is written in the same cycle returns the old row.
    Address bits beyond the depth are ignored: engines check addresses.

    Weight, operand and lane memories are of this kind; activations, wide words and parameters have
    memories of their own.

    Parameters
    ----------
    address_bits : width of the ports' addresses
    row : an ``ArrayLayout`` if ``enable_bits`` > 1, else any shape
    depth : rows
    enable_bits : write enables; each covers an equal share of the elements of a row

    Members
    -------
    write : In(write_port(address_bits, row, enable_bits))
    read : In(read_port(address_bits, row))
    """

    def __init__(self, address_bits: int, row, depth: int, enable_bits: int = 1):
        self._row, self._depth, self._enable_bits = row, depth, enable_bits
        super().__init__({
            "write": In(write_port(address_bits, row, enable_bits)),
            "read": In(read_port(address_bits, row)),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        m.submodules.rows = rows = memory.Memory(shape=self._row, depth=self._depth, init=[])
        granularity = None if self._enable_bits == 1 else self._row.length // self._enable_bits
        write = rows.write_port(granularity=granularity)
        read = rows.read_port()
        m.d.comb += [
            write.addr.eq(self.write.address),
            write.data.eq(self.write.data),
            write.en.eq(self.write.enable),
            read.addr.eq(self.read.address),
            read.en.eq(self.read.enable),
            self.read.data.eq(read.data),
        ]
        return m
