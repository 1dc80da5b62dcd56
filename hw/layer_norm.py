"""Second pass of layer norm: normalise, scale and shift."""

from amaranth.hdl import Module, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from twillcore.config import ADDRESS_BITS, Config
from twillcore.hw.delay import delay, valid_chain
from twillcore.hw.layouts import PARAMETER_LAYOUT
from twillcore.hw.multiplier import multiply, multiply_parts, multiply_wide
from twillcore.hw.norm_statistics import RIGHT_BITS, SUM_BITS
from twillcore.hw.ports import read_port
from twillcore.hw.reciprocal import QUOTIENT_BITS
from twillcore.hw.requantize import INPUT_BITS
from twillcore.hw.round_shift import round_shift, round_shift_latency
from twillcore.hw.word_reader import WordReader
from twillcore.numerics import NORM_FRACTION_BITS

_Z_BITS = 22
_Y_BITS = 29  # C * q - S
assert NORM_FRACTION_BITS == 14, "RIGHT_BITS and the reciprocal's dividend are made for 14"


class LayerNorm(wiring.Component):
    """``z * gamma + beta`` of :func:`twillcore.numerics.layer_norm`, before the last shift.

    :class:`twillcore.hw.norm_statistics.NormStatistics` is the pass before this one,
    :class:`twillcore.hw.requantize.Requantize` the step after it. One channel of all lanes per
    cycle, :attr:`LATENCY` cycles from ``x`` to ``t``, no backpressure. Statistics are taken over
    from :attr:`FIRST_CAPTURE` to :attr:`LAST_CAPTURE` cycles after ``opening``, each by the stage
    that needs it, so row tiles follow each other without a gap.

    Members
    -------
    channels : In(12)
        Operand; stays until the end.
    parameter : In(16)
        Norm parameter of channel 0; stays until the end.
    opening : In(1)
        The first word of a row tile is being read: ``x`` will be valid
        ``WordReader.READ_LATENCY`` cycles later.
    total, multiplier, right : In
        Statistics of the row tile.
    valid, first : In(1)
    x : In(ArrayLayout(signed(16), lanes))
    norm : Out(read_port)
        One parameter per channel; the whole memory belongs to this component.
    t_valid : Out(1)
    t : Out(ArrayLayout(signed(INPUT_BITS), lanes))
    shift, narrow_shift : Out
        Those of ``t``'s channel.
    out_of_range : Out(1)
    """

    # Stages, counted in cycles after x:
    _Y = 3  # C * q in two, minus S
    _NORMALISED = _Y + 3  # y * m, a product of 46 bits
    _Z = _NORMALISED + round_shift_latency(RIGHT_BITS)
    LATENCY = _Z + 3  # z * gamma in two, plus beta
    FIRST_CAPTURE = WordReader.READ_LATENCY + _Y - 2
    LAST_CAPTURE = WordReader.READ_LATENCY + _NORMALISED - 1

    def __init__(self, config: Config):
        self._config = config
        lanes = config.lanes
        super().__init__({
            "channels": In(12),
            "parameter": In(ADDRESS_BITS),
            "opening": In(1),
            "total": In(data.ArrayLayout(signed(SUM_BITS), lanes)),
            "multiplier": In(data.ArrayLayout(unsigned(QUOTIENT_BITS), lanes)),
            "right": In(data.ArrayLayout(unsigned(RIGHT_BITS), lanes)),
            "valid": In(1),
            "first": In(1),
            "x": In(data.ArrayLayout(signed(16), lanes)),
            "norm": Out(read_port(ADDRESS_BITS, PARAMETER_LAYOUT)),
            "t_valid": Out(1),
            "t": Out(data.ArrayLayout(signed(INPUT_BITS), lanes)),
            "shift": Out(6),
            "narrow_shift": Out(4),
            "out_of_range": Out(1),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        valid = valid_chain(m, self.valid, self.LATENCY, "valid")
        opened = valid_chain(m, self.opening, self.LAST_CAPTURE, "opened")
        m.d.comb += self.t_valid.eq(valid[-1])

        # The parameter of a channel is registered when the channel's z is.
        ask = self._Z - 2
        asked_first = delay(m, self.first, ask, name="first")
        next_address = Signal(ADDRESS_BITS + 1)
        address = Signal(ADDRESS_BITS + 1)
        fits = Signal()
        with m.If(asked_first):
            m.d.comb += address.eq(self.parameter)
        with m.Else():
            m.d.comb += address.eq(next_address)
        m.d.comb += [
            fits.eq(address < self._config.norm_depth),
            self.norm.address.eq(address),
            self.norm.enable.eq(valid[ask] & fits),
            self.out_of_range.eq(valid[ask] & ~fits),
        ]
        gamma = Signal(signed(16))
        beta = Signal(signed(32))
        shift = Signal(6)
        narrow_shift = Signal(4)
        with m.If(valid[ask]):
            m.d.sync += next_address.eq(address + 1)
        with m.If(valid[self._Z - 1]):
            m.d.sync += [
                gamma.eq(self.norm.data.multiplier),
                beta.eq(self.norm.data.bias),
                shift.eq(self.norm.data.shift),
                narrow_shift.eq(self.norm.data.narrow_shift),
            ]
        late = valid[self._Z :]
        late_beta = delay(m, beta, 2, enables=late, name="beta")
        gamma_near = delay(m, gamma, 1, enables=late, name="gamma")
        m.d.comb += [
            self.shift.eq(delay(m, shift, 3, enables=late, name="shift")),
            self.narrow_shift.eq(delay(m, narrow_shift, 3, enables=late, name="narrow_shift")),
        ]

        channels = Signal(signed(13))
        m.d.comb += channels.eq(self.channels)
        normalised, rights = [], []
        for lane in range(self._config.lanes):
            x = self.x[lane]
            total = Signal(signed(SUM_BITS), reset_less=True, name=f"total_{lane}")
            multiplier = Signal(QUOTIENT_BITS, reset_less=True, name=f"multiplier_{lane}")
            right = Signal(RIGHT_BITS, reset_less=True, name=f"right_{lane}")
            factor = Signal(signed(QUOTIENT_BITS + 1), name=f"factor_{lane}")
            m.d.comb += factor.eq(multiplier)
            y = Signal(signed(_Y_BITS), reset_less=True, name=f"y_{lane}")
            with m.If(opened[self.FIRST_CAPTURE]):
                m.d.sync += total.eq(self.total[lane])
            with m.If(opened[self.FIRST_CAPTURE + 1]):
                m.d.sync += multiplier.eq(self.multiplier[lane])
            with m.If(opened[self.LAST_CAPTURE]):
                m.d.sync += right.eq(self.right[lane])
            x_near = delay(m, x, 1, enables=valid, name=f"x_{lane}")
            scaled = multiply(
                m, platform, (x, channels), (x_near, channels), valid[1], f"scaled_{lane}"
            )
            with m.If(valid[2]):
                m.d.sync += y.eq(scaled - total)
            y_near = delay(m, y, 1, enables=valid[3:], name=f"y_{lane}")
            factor_near = delay(m, factor, 1, enables=valid[3:], name=f"factor_{lane}")
            product = multiply_wide(
                m, platform, (y, factor), (y_near, factor_near), valid[4:6], f"product_{lane}"
            )
            normalised.append(product[: _Y_BITS + QUOTIENT_BITS].as_signed())
            rights.append(right)

        z = round_shift(
            m, valid[self._NORMALISED :], normalised, rights, output_bits=_Z_BITS, name="z"
        )
        for lane, value in enumerate(z):
            value_near = delay(m, value, 1, enables=late, name=f"z_{lane}")
            parts = multiply_parts(
                m, platform, (value, gamma), (value_near, gamma_near), late[1], f"gamma_{lane}"
            )
            t = Signal(signed(INPUT_BITS), reset_less=True, name=f"t_{lane}")
            with m.If(late[2]):
                m.d.sync += t.eq(sum(parts, late_beta))
            m.d.comb += self.t[lane].eq(t)
        return m
