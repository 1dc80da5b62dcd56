"""The end of layer norm and of elementwise operations: to int16, and on to int8."""

from amaranth.hdl import Module, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from twillcore.config import Config
from twillcore.hw.delay import delay, valid_chain
from twillcore.hw.round_shift import round_shift, round_shift_latency

INPUT_BITS = 47  # the product of three int16
SHIFT_BITS = 6
NARROW_BITS = 4


class Requantize(wiring.Component):
    """``wide = saturate(round_shift(t, shift), 16)``, ``narrow = narrow(wide, narrow_shift)``.

    As in :mod:`twillcore.numerics`. One channel of all lanes per cycle; both results are valid
    :attr:`LATENCY` cycles after ``t``, ``shift`` and ``narrow_shift``. No backpressure.

    Members
    -------
    valid : In(1)
    t : In(ArrayLayout(signed(INPUT_BITS), lanes))
    shift, narrow_shift : In
    y_valid : Out(1)
    wide : Out(ArrayLayout(signed(16), lanes))
    narrow : Out(ArrayLayout(signed(8), lanes))
    """

    WIDE_LATENCY = round_shift_latency(SHIFT_BITS)
    NARROW_LATENCY = round_shift_latency(NARROW_BITS)
    LATENCY = WIDE_LATENCY + NARROW_LATENCY

    def __init__(self, config: Config):
        self._lanes = config.lanes
        super().__init__({
            "valid": In(1),
            "t": In(data.ArrayLayout(signed(INPUT_BITS), config.lanes)),
            "shift": In(SHIFT_BITS),
            "narrow_shift": In(NARROW_BITS),
            "y_valid": Out(1),
            "wide": Out(data.ArrayLayout(signed(16), config.lanes)),
            "narrow": Out(data.ArrayLayout(signed(8), config.lanes)),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        lanes = range(self._lanes)
        valid = valid_chain(m, self.valid, self.LATENCY, "valid")
        narrow_shift = delay(
            m, self.narrow_shift, self.WIDE_LATENCY, enables=valid, name="narrow_shift"
        )
        wide = round_shift(
            m, valid, [self.t[lane] for lane in lanes], [self.shift], output_bits=16, name="wide"
        )
        late = valid[self.WIDE_LATENCY :]
        narrow = round_shift(m, late, wide, [narrow_shift], output_bits=8, name="narrow")
        m.d.comb += self.y_valid.eq(valid[-1])
        for lane in lanes:
            m.d.comb += [
                self.wide[lane].eq(
                    delay(m, wide[lane], self.NARROW_LATENCY, enables=late, name=f"wide_{lane}_d")
                ),
                self.narrow[lane].eq(narrow[lane]),
            ]
        return m
