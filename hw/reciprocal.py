"""Bit-serial arithmetic of all lanes in parallel: reciprocals and square roots."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from twillcore.numerics import LANE_MULTIPLIER_BITS

DIVISOR_BITS = 28
QUOTIENT_BITS = LANE_MULTIPLIER_BITS
ROOT_BITS = 28


class Reciprocal(wiring.Component):
    """Divide one number by a normalised divisor per lane.

    This is the division of ``lane_scale`` and ``norm_statistics`` in :mod:`twillcore.numerics`:
    ``quotient = floor((remainder << 17) / (divisor << leading_zeros))``, where ``leading_zeros`` is
    what brings the leading one of ``divisor`` to bit 27. Needs ``remainder < 2**27`` (so that the
    quotient has 17 bits) and ``divisor > 0``.

    Latency is :attr:`LATENCY` cycles from ``start`` to ``done``, in which results are valid; they
    stay until the next start. A new start may come in the cycle of ``done``, not before. There is
    no backpressure. A divisor is normalised by steps of four and one, which costs one multiplexer
    per bit, then divided restoringly, one bit per cycle.

    Members
    -------
    start : In(1)
    divisor : In(ArrayLayout(28, lanes))
    remainder : In(27)
    done : Out(1)
    quotient : Out(ArrayLayout(17, lanes))
    leading_zeros : Out(ArrayLayout(5, lanes))
    """

    NORMALISE_CYCLES = 9  # 27 leading zeros: six steps of four, three of one
    LATENCY = 1 + NORMALISE_CYCLES + QUOTIENT_BITS

    def __init__(self, lanes):
        self._lanes = lanes
        super().__init__({
            "start": In(1),
            "divisor": In(data.ArrayLayout(unsigned(DIVISOR_BITS), lanes)),
            "remainder": In(DIVISOR_BITS - 1),
            "done": Out(1),
            "quotient": Out(data.ArrayLayout(unsigned(QUOTIENT_BITS), lanes)),
            "leading_zeros": Out(data.ArrayLayout(unsigned(5), lanes)),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        busy = Signal()
        step = Signal(range(self.LATENCY))
        normalising = Signal()
        m.d.comb += normalising.eq(step < self.NORMALISE_CYCLES)
        m.d.sync += self.done.eq(0)
        with m.If(self.start):
            m.d.sync += [busy.eq(1), step.eq(0)]
        with m.Elif(busy):
            m.d.sync += step.eq(step + 1)
            with m.If(step == self.LATENCY - 2):
                m.d.sync += [busy.eq(0), self.done.eq(1)]

        for lane in range(self._lanes):
            divisor = Signal(DIVISOR_BITS, reset_less=True, name=f"divisor_{lane}")
            remainder = Signal(DIVISOR_BITS, reset_less=True, name=f"remainder_{lane}")
            quotient = Signal(QUOTIENT_BITS, reset_less=True, name=f"quotient_{lane}")
            zeros = Signal(5, reset_less=True, name=f"zeros_{lane}")
            difference = Signal(signed(DIVISOR_BITS + 2), name=f"difference_{lane}")
            fits = ~difference[-1]
            m.d.comb += [
                difference.eq((remainder << 1) - divisor),
                self.quotient[lane].eq(quotient),
                self.leading_zeros[lane].eq(zeros),
            ]
            with m.If(self.start):
                m.d.sync += [
                    divisor.eq(self.divisor[lane]),
                    remainder.eq(self.remainder),
                    zeros.eq(0),
                ]
            with m.Elif(busy & normalising):
                with m.If(~divisor[-4:].any()):
                    m.d.sync += [divisor.eq(divisor << 4), zeros.eq(zeros + 4)]
                with m.Elif(~divisor[-1]):
                    m.d.sync += [divisor.eq(divisor << 1), zeros.eq(zeros + 1)]
            with m.Elif(busy):
                m.d.sync += [
                    remainder.eq(Mux(fits, difference, remainder << 1)),
                    quotient.eq(Cat(fits, quotient)),
                ]
        return m


class SquareRoot(wiring.Component):
    """Exact floor of the square root per lane: :func:`twillcore.numerics.isqrt`.

    Latency is :attr:`LATENCY` cycles from ``start`` to ``done``, in which the roots are valid; they
    stay until the next start, which may come in the cycle of ``done``, not before. There is no
    backpressure. One bit of the root per cycle.

    Members
    -------
    start : In(1)
    square : In(ArrayLayout(56, lanes))
    done : Out(1)
    root : Out(ArrayLayout(28, lanes))
    """

    LATENCY = 1 + ROOT_BITS

    def __init__(self, lanes):
        self._lanes = lanes
        super().__init__({
            "start": In(1),
            "square": In(data.ArrayLayout(unsigned(2 * ROOT_BITS), lanes)),
            "done": Out(1),
            "root": Out(data.ArrayLayout(unsigned(ROOT_BITS), lanes)),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        busy = Signal()
        step = Signal(range(ROOT_BITS))
        m.d.sync += self.done.eq(0)
        with m.If(self.start):
            m.d.sync += [busy.eq(1), step.eq(0)]
        with m.Elif(busy):
            m.d.sync += step.eq(step + 1)
            with m.If(step == ROOT_BITS - 1):
                m.d.sync += [busy.eq(0), self.done.eq(1)]

        for lane in range(self._lanes):
            square = Signal(2 * ROOT_BITS, reset_less=True, name=f"square_{lane}")
            remainder = Signal(
                ROOT_BITS + 1, reset_less=True, name=f"remainder_{lane}"
            )  # at most 2 * root
            root = Signal(ROOT_BITS, reset_less=True, name=f"root_{lane}")
            widened = Cat(square[-2:], remainder)
            difference = Signal(signed(ROOT_BITS + 4), name=f"difference_{lane}")
            fits = ~difference[-1]
            m.d.comb += [
                difference.eq(widened - Cat(Const(1, 2), root)),
                self.root[lane].eq(root),
            ]
            with m.If(self.start):
                m.d.sync += [square.eq(self.square[lane]), remainder.eq(0), root.eq(0)]
            with m.Elif(busy):
                m.d.sync += [
                    square.eq(square << 2),
                    remainder.eq(Mux(fits, difference, widened)),
                    root.eq(Cat(fits, root)),
                ]
        return m
