"""64-bit entries that are written by the row and read one by one: parameters, taps."""

from amaranth.hdl import Module, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In
from amaranth.utils import exact_log2

from twillcore.config import ADDRESS_BITS
from twillcore.hw.layouts import PARAMETER_LAYOUT
from twillcore.hw.ports import read_port, write_port


class ParameterMemory(wiring.Component):
    """Simple dual-port block RAM of ``depth`` entries, with a write port of ``entries_per_row``.

    A row is written and an entry is read per cycle; read data stands on the port in the following
    cycle, and holds until the next read. A read of a row that is written in the same cycle returns
    the old entry. Address bits beyond the depth are ignored: engines check addresses.

    Parameters
    ----------
    depth : entries
    entries_per_row : a power of two
    entry : layout of an entry, 64 bits

    Members
    -------
    write : In(write_port(ADDRESS_BITS, ArrayLayout(64, entries_per_row)))
        Addresses count rows.
    read : In(read_port(ADDRESS_BITS, entry))
        Addresses count entries.
    """

    def __init__(self, depth: int, entries_per_row: int, entry=PARAMETER_LAYOUT):
        self._select_bits = exact_log2(entries_per_row)
        self._rows = -(-depth // entries_per_row)
        self._row = data.ArrayLayout(64, entries_per_row)
        super().__init__({
            "write": In(write_port(ADDRESS_BITS, self._row)),
            "read": In(read_port(ADDRESS_BITS, entry)),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        m.submodules.rows = rows = memory.Memory(shape=self._row, depth=self._rows, init=[])
        write, read = rows.write_port(), rows.read_port()
        select = Signal(self._select_bits)
        with m.If(self.read.enable):
            m.d.sync += select.eq(self.read.address)
        m.d.comb += [
            write.addr.eq(self.write.address),
            write.data.eq(self.write.data),
            write.en.eq(self.write.enable),
            read.addr.eq(self.read.address[self._select_bits :]),
            read.en.eq(self.read.enable),
            self.read.data.eq(read.data[select]),
        ]
        return m
