"""Scaled sum or product of two tensors, up to the final shift."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from twillcore.config import Config
from twillcore.hw.delay import delay, valid_chain
from twillcore.hw.multiplier import multiply, multiply_wide
from twillcore.hw.requantize import INPUT_BITS
from twillcore.isa import ElementwiseOp


class Elementwise(wiring.Component):
    """``a * a_multiplier + b * b_multiplier`` or ``a * b * a_multiplier``, exactly.

    The first steps of :func:`twillcore.numerics.elementwise_add` and ``elementwise_multiply``;
    :class:`twillcore.hw.requantize.Requantize` does the rest. One channel of all lanes per cycle,
    :attr:`LATENCY` cycles from ``b`` to ``t``, no backpressure. ``a`` comes :attr:`SKEW` cycles
    before ``b``, as the slots of their reads do.

    Members
    -------
    op, a_multiplier, b_multiplier : In
        Operands, as in the instruction; they stay until the end.
    a_valid, b_valid : In(1)
    a, b : In(ArrayLayout(signed(16), lanes))
    t_valid : Out(1)
    t : Out(ArrayLayout(signed(INPUT_BITS), lanes))
    """

    #: Four cycles are there only so that results are ready in their slot.
    LATENCY = 11
    SKEW = 2

    def __init__(self, config: Config):
        self._lanes = config.lanes
        super().__init__({
            "op": In(1),
            "a_multiplier": In(signed(16)),
            "b_multiplier": In(signed(16)),
            "a_valid": In(1),
            "b_valid": In(1),
            "a": In(data.ArrayLayout(signed(16), config.lanes)),
            "b": In(data.ArrayLayout(signed(16), config.lanes)),
            "t_valid": Out(1),
            "t": Out(data.ArrayLayout(signed(INPUT_BITS), config.lanes)),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        early = valid_chain(m, self.a_valid, self.SKEW + 4, "early")
        valid = valid_chain(m, self.b_valid, self.LATENCY, "valid")
        multiplying = self.op == ElementwiseOp.MULTIPLY
        a_multiplier, b_multiplier = self.a_multiplier, self.b_multiplier
        m.d.comb += self.t_valid.eq(valid[-1])
        for lane in range(self._lanes):
            a = delay(m, self.a[lane], self.SKEW + 4, enables=early, name=f"a_{lane}")
            b = delay(m, self.b[lane], 4, enables=valid, name=f"b_{lane}")
            # 4 -> 5: choose the second factor
            chosen = delay(
                m, Mux(multiplying, b, a_multiplier), 1, enables=valid[4:], name=f"chosen_{lane}"
            )
            a = delay(m, a, 1, enables=valid[4:], name=f"first_{lane}")
            b = delay(m, b, 1, enables=valid[4:], name=f"second_{lane}")
            # 5 -> 7: multiply
            a_near, b_near, chosen_near = (
                delay(m, value, 1, enables=valid[5:], name=f"{name}_near_{lane}")
                for value, name in ((a, "a"), (b, "b"), (chosen, "chosen"))
            )
            first = multiply(
                m, platform, (a, chosen), (a_near, chosen_near), valid[6], f"a_product_{lane}"
            )
            second = multiply(
                m, platform, (b, b_multiplier), (b_near, b_multiplier), valid[6],
                f"b_product_{lane}",
            )  # fmt: skip
            # 7 -> 10: add up, or multiply again
            total = delay(m, first + second, 3, enables=valid[7:], name=f"total_{lane}")
            first_near = delay(m, first, 1, enables=valid[7:], name=f"product_near_{lane}")
            product = multiply_wide(
                m, platform, (first, a_multiplier), (first_near, a_multiplier), valid[8:10],
                f"product_{lane}",
            )  # fmt: skip
            t = Signal(signed(INPUT_BITS), reset_less=True, name=f"t_{lane}")
            with m.If(valid[10]):
                m.d.sync += t.eq(Mux(multiplying, product, total))
            m.d.comb += self.t[lane].eq(t)
        return m
