"""First pass of layer norm: mean and variance of every row, exactly."""

from amaranth.hdl import Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from twillcore.config import Config
from twillcore.hw.delay import delay, valid_chain
from twillcore.hw.multiplier import multiply
from twillcore.hw.reciprocal import DIVISOR_BITS, QUOTIENT_BITS, ROOT_BITS, Reciprocal, SquareRoot

SUM_BITS = 28  # signed: 4095 channels of int16
SQUARES_BITS = 42
RIGHT_BITS = 5
_MAGNITUDE_BITS = SUM_BITS - 1
_VARIANCE_BITS = 57  # signed, with room for what is still to be subtracted


class NormStatistics(wiring.Component):
    """:func:`twillcore.numerics.norm_statistics` of every lane.

    Takes one channel of all lanes per cycle. Results are valid :attr:`LATENCY` cycles after the
    last channel of a row tile, and stay until those of the next one. There is no backpressure: the
    last channels of two row tiles must be at least :attr:`SPACING` cycles apart.

    What happens once per row is bit-serial: ``C * sum(q**2) - sum(q)**2`` by shift and add, 27
    cycles, then root and reciprocal. That costs adders where multipliers of 54 bits would idle.

    Members
    -------
    channels, epsilon : In
        Operands, as in the instruction; they stay until the end.
    valid, first, last : In(1)
    x : In(ArrayLayout(signed(16), lanes))
    divide : Out(1)
        Start of the reciprocal.
    divisor : Out(ArrayLayout(28, lanes))
    divided : In(1)
    quotient, leading_zeros : In
    ready : Out(1)
        Results are new: one cycle.
    total : Out(ArrayLayout(signed(28), lanes))
    multiplier : Out(ArrayLayout(17, lanes))
    right : Out(ArrayLayout(5, lanes))
    """

    DIVIDEND = 1 << 43 - QUOTIENT_BITS  # 2**43, as the reciprocal's remainder
    SUM_LATENCY = 3  # last channel to sums
    SERIAL_CYCLES = 1 + _MAGNITUDE_BITS  # load, shift and add
    SPACING = SERIAL_CYCLES + SquareRoot.LATENCY + Reciprocal.LATENCY
    LATENCY = SUM_LATENCY + SPACING + 1

    def __init__(self, config: Config):
        self._lanes = config.lanes
        lanes = config.lanes
        super().__init__({
            "channels": In(12),
            "epsilon": In(32),
            "valid": In(1),
            "first": In(1),
            "last": In(1),
            "x": In(data.ArrayLayout(signed(16), lanes)),
            "divide": Out(1),
            "divisor": Out(data.ArrayLayout(unsigned(DIVISOR_BITS), lanes)),
            "divided": In(1),
            "quotient": In(data.ArrayLayout(unsigned(QUOTIENT_BITS), lanes)),
            "leading_zeros": In(data.ArrayLayout(unsigned(5), lanes)),
            "ready": Out(1),
            "total": Out(data.ArrayLayout(signed(SUM_BITS), lanes)),
            "multiplier": Out(data.ArrayLayout(unsigned(QUOTIENT_BITS), lanes)),
            "right": Out(data.ArrayLayout(unsigned(RIGHT_BITS), lanes)),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        m.submodules.square_root = square_root = SquareRoot(self._lanes)
        valid = valid_chain(m, self.valid, 2, "valid")
        first = delay(m, self.first, 2, name="first")
        load = valid_chain(m, self.last & self.valid, self.SUM_LATENCY, "last")[-1]

        # Multiplication from the highest bit down: the bit of C is common to all lanes.
        busy = Signal()
        step = Signal(range(_MAGNITUDE_BITS))
        count = Signal(_MAGNITUDE_BITS)
        summed = Signal()
        m.d.sync += summed.eq(0)
        with m.If(load):
            m.d.sync += [busy.eq(1), step.eq(0), count.eq(self.channels)]
        with m.Elif(busy):
            m.d.sync += [step.eq(step + 1), count.eq(count << 1)]
            with m.If(step == _MAGNITUDE_BITS - 1):
                m.d.sync += [busy.eq(0), summed.eq(1)]
        m.d.comb += [square_root.start.eq(summed), self.divide.eq(square_root.done)]
        m.d.sync += self.ready.eq(self.divided)

        for lane in range(self._lanes):
            near = delay(m, self.x[lane], 1, enables=valid, name=f"near_{lane}")
            x = delay(m, near, 1, enables=valid[1:], name=f"x_{lane}")
            square = multiply(
                m, platform, [self.x[lane]] * 2, [near] * 2, valid[1], f"square_{lane}"
            )[:31]
            total = Signal(signed(SUM_BITS), reset_less=True, name=f"total_{lane}")
            squares = Signal(SQUARES_BITS, reset_less=True, name=f"squares_{lane}")
            with m.If(valid[2]):
                m.d.sync += [
                    total.eq(Mux(first, 0, total) + x),
                    squares.eq(Mux(first, 0, squares) + square),
                ]

            final_total = Signal(signed(SUM_BITS), reset_less=True, name=f"final_total_{lane}")
            final_squares = Signal(SQUARES_BITS, reset_less=True, name=f"final_squares_{lane}")
            magnitude = Signal(_MAGNITUDE_BITS, reset_less=True, name=f"magnitude_{lane}")
            bits = Signal(_MAGNITUDE_BITS, reset_less=True, name=f"bits_{lane}")
            variance = Signal(signed(_VARIANCE_BITS), reset_less=True, name=f"variance_{lane}")
            absolute = Mux(total < 0, -total, total)
            with m.If(load):
                m.d.sync += [
                    final_total.eq(total),
                    final_squares.eq(squares),
                    magnitude.eq(absolute),
                    bits.eq(absolute),
                    variance.eq(0),
                ]
            with m.Elif(busy):
                m.d.sync += [
                    bits.eq(bits << 1),
                    variance.eq(
                        (variance << 1)
                        + Mux(count[-1], final_squares, 0)
                        - Mux(bits[-1], magnitude, 0)
                    ),
                ]
            root = square_root.root[lane]
            m.d.comb += [
                square_root.square[lane].eq(variance + self.epsilon),
                self.divisor[lane].eq(Mux(root == 0, 1, root)),
            ]
            result_total = Signal(signed(SUM_BITS), reset_less=True, name=f"result_total_{lane}")
            multiplier = Signal(QUOTIENT_BITS, reset_less=True, name=f"multiplier_{lane}")
            right = Signal(RIGHT_BITS, reset_less=True, name=f"right_{lane}")
            with m.If(self.divided):
                m.d.sync += [
                    result_total.eq(final_total),
                    multiplier.eq(self.quotient[lane]),
                    right.eq(ROOT_BITS + 1 - self.leading_zeros[lane]),
                ]
            m.d.comb += [
                self.total[lane].eq(result_total),
                self.multiplier[lane].eq(multiplier),
                self.right[lane].eq(right),
            ]
        return m
