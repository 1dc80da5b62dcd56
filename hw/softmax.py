"""Exponentials of logits, and what divides by their sum."""

from amaranth.hdl import Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from twillcore.config import Config
from twillcore.hw.delay import delay, valid_chain
from twillcore.hw.layouts import LANE_SCALE
from twillcore.hw.ports import read_port, write_port
from twillcore.hw.reciprocal import DIVISOR_BITS, QUOTIENT_BITS
from twillcore.hw.word_reader import WordReader
from twillcore.numerics import EXP_TABLE, INT16_MIN

LANE_BITS = 10  # of addresses of row maxima and lane scales
SUM_BITS = 24
_TABLE_BITS = 8
_E_BITS = 7


class Softmax(wiring.Component):
    """:func:`twillcore.numerics.exponential` of every channel, ``lane_scale`` of every row.

    ``e`` is valid :attr:`LATENCY` cycles after ``x``, one channel of all lanes per cycle. The sum
    of a row tile goes to the reciprocal :attr:`SUM_LATENCY` cycles after its last ``x``; the lane
    scale is written in the cycle in which the reciprocal is done. There is no backpressure: row
    tiles must open at least ``Reciprocal.LATENCY`` cycles apart.

    Members
    -------
    start : In(1)
        Takes ``maximum`` and ``lane``, the first addresses.
    maximum, lane, row_tiles, numerator, shift : In
        Operands, as in the instruction; ``row_tiles``, ``numerator`` and ``shift`` stay.
    opening : In(1)
        The first word of a row tile is being read: ``x`` will be valid 3 cycles later.
    valid, first, last : In(1)
    x : In(ArrayLayout(signed(16), lanes))
    e_valid : Out(1)
    e : Out(ArrayLayout(signed(8), lanes))
    row_maximum : Out(read_port)
    divide : Out(1)
        Start of the reciprocal.
    divisor, remainder : Out
    divided : In(1)
        The reciprocal of the last started division is done.
    quotient, leading_zeros : In
    lane_scale : Out(write_port)
    done : Out(1)
        The last lane scale is written in this cycle.
    out_of_range : Out(1)
    """

    LATENCY = 3
    SUM_LATENCY = LATENCY + 1

    def __init__(self, config: Config):
        self._config = config
        lanes = config.lanes
        super().__init__({
            "start": In(1),
            "maximum": In(LANE_BITS),
            "lane": In(LANE_BITS),
            "row_tiles": In(12),
            "numerator": In(16),
            "shift": In(6),
            "opening": In(1),
            "valid": In(1),
            "first": In(1),
            "last": In(1),
            "x": In(data.ArrayLayout(signed(16), lanes)),
            "e_valid": Out(1),
            "e": Out(data.ArrayLayout(signed(8), lanes)),
            "row_maximum": Out(read_port(LANE_BITS, data.ArrayLayout(signed(16), lanes))),
            "divide": Out(1),
            "divisor": Out(data.ArrayLayout(unsigned(DIVISOR_BITS), lanes)),
            "remainder": Out(DIVISOR_BITS - 1),
            "divided": In(1),
            "quotient": In(data.ArrayLayout(unsigned(QUOTIENT_BITS), lanes)),
            "leading_zeros": In(data.ArrayLayout(unsigned(5), lanes)),
            "lane_scale": Out(write_port(LANE_BITS, data.ArrayLayout(LANE_SCALE, lanes))),
            "done": Out(1),
            "out_of_range": Out(1),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        depth = self._config.lane_depth

        # Row maxima: on the port one cycle before the row tile's first channel needs them.
        maximum_address = Signal(LANE_BITS + 1)
        *_, opened, captured = valid_chain(m, self.opening, WordReader.READ_LATENCY - 1, "opened")
        maximum_fits = Signal()
        m.d.comb += [
            maximum_fits.eq(maximum_address < depth),
            self.row_maximum.address.eq(maximum_address),
            self.row_maximum.enable.eq(opened & maximum_fits),
        ]

        lane_address = Signal(LANE_BITS + 1)
        tiles_left = Signal(12)
        lane_fits = Signal()
        m.d.comb += [
            lane_fits.eq(lane_address < depth),
            self.lane_scale.address.eq(lane_address),
            self.lane_scale.enable.eq(self.divided & lane_fits),
            self.out_of_range.eq((opened & ~maximum_fits) | (self.divided & ~lane_fits)),
            self.done.eq(self.divided & lane_fits & (tiles_left == 1)),
            # numerator * 2**24 / total, in the reciprocal's 28 bits
            self.remainder.eq(self.numerator << (DIVISOR_BITS - QUOTIENT_BITS)),
        ]
        with m.If(self.start):
            m.d.sync += [
                maximum_address.eq(self.maximum),
                lane_address.eq(self.lane),
                tiles_left.eq(self.row_tiles),
            ]
        with m.Else():
            with m.If(opened):
                m.d.sync += maximum_address.eq(maximum_address + 1)
            with m.If(self.divided):
                m.d.sync += [lane_address.eq(lane_address + 1), tiles_left.eq(tiles_left - 1)]

        valid = valid_chain(m, self.valid, self.LATENCY, "valid")
        first = delay(m, self.first, self.LATENCY, name="first")
        last = valid_chain(m, self.last & self.valid, self.SUM_LATENCY, "last")
        m.d.comb += [self.e_valid.eq(valid[-1]), self.divide.eq(last[-1])]

        table = [int(e) for e in EXP_TABLE]
        for lane in range(self._config.lanes):
            maximum = Signal(signed(16), reset_less=True, name=f"maximum_{lane}")
            distance = Signal(signed(17), reset_less=True, name=f"distance_{lane}")
            masked = Signal(reset_less=True, name=f"masked_{lane}")
            entry = Signal(_TABLE_BITS, reset_less=True, name=f"entry_{lane}")
            total = Signal(SUM_BITS, reset_less=True, name=f"total_{lane}")
            with m.If(captured):
                m.d.sync += maximum.eq(self.row_maximum.data[lane])
            with m.If(valid[0]):
                m.d.sync += [
                    distance.eq(maximum - self.x[lane]),
                    masked.eq(self.x[lane] == INT16_MIN),
                ]
            with m.If(valid[1]):
                far = distance[_TABLE_BITS:].any() | masked  # the last entry is 0
                m.d.sync += entry.eq(Mux(far, len(table) - 1, distance))
            rom = memory.Memory(shape=unsigned(_E_BITS), depth=len(table), init=table)
            m.submodules[f"table_{lane}"] = rom
            read = rom.read_port()
            e = read.data
            m.d.comb += [read.addr.eq(entry), read.en.eq(valid[2])]
            with m.If(valid[3]):
                m.d.sync += total.eq(Mux(first, 0, total) + e)
            m.d.comb += [
                self.e[lane].eq(e),
                self.divisor[lane].eq(Mux(total == 0, 1, total)),
                self.lane_scale.data[lane].multiplier.eq(self.quotient[lane]),
                # leading zeros of total count in 24 bits
                self.lane_scale.data[lane].shift.eq(
                    self.shift + (DIVISOR_BITS - SUM_BITS) - self.leading_zeros[lane]
                ),
            ]
        return m
