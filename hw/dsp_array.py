"""Multipliers and accumulators of the GEMM core."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from twillcore.config import Config
from twillcore.hw.clocks import awake_while
from twillcore.hw.layouts import activation_word, operand_row, weight_row
from twillcore.hw.multiplier import multiply
from twillcore.hw.sequencer import BEAT

#: Families whose multipliers are wide enough (25 x 8) for two lanes.
PACKING_FAMILIES = ("xc7", "xcup")


class DspArray(wiring.Component):
    """``acc[lane][column] += held[lane][position[column]] * weight[column]``, a beat per cycle.

    Stages, in cycles after the one in which the beat is issued: 1 memory data, 2 held word and
    weights in registers, 3 selected activations, 4 the same again in the multipliers' own input
    registers, 5 products, 6 sums. The sums of a beat with ``finish`` stand in the shadow from cycle
    7 on, and the next beat starts afresh. There is no backpressure: who issues such a beat makes
    sure that the shadow is free.

    The shadow is a shift register per lane: ``column`` is its first column, and each cycle with
    ``shift`` moves the next one there.

    On families with 25-bit multipliers two lanes share one: the low half of
    ``((a1 << 16) + a0) * w`` is ``a0 * w``, the high half ``a1 * w`` less the borrow of the low.

    Parameters
    ----------
    config : Config
    dense : bool
        Leave out the selectors: positions are counted, never stored. To measure what N:M costs; no
        accelerator is built with it.

    Members
    -------
    beat : In(BEAT)
        In the cycle in which addresses go to the memories, one before their data.
    activation, weight, operand : In
        Read data of the memories.
    shift : In(1)
    column : Out(data.ArrayLayout(signed(accumulator_bits), lanes))
    """

    BEAT_TO_SUM = 6
    BEAT_TO_SHADOW = 7

    def __init__(self, config: Config, dense: bool = False):
        self._config = config
        self._dense = dense
        super().__init__({
            "beat": In(BEAT),
            "activation": In(activation_word(config)),
            "weight": In(weight_row(config)),
            "operand": In(operand_row(config)),
            "shift": In(1),
            "column": Out(data.ArrayLayout(signed(config.accumulator_bits), config.lanes)),
        })  # fmt: skip
        self.awake = Signal()  # of gated machines: twillcore.hw.clocks

    def elaborate(self, platform):
        m = Module()
        config = self._config
        lanes, columns = config.lanes, config.dsp_columns
        bits = config.accumulator_bits

        beat = [self.beat]  # beat[n]: n cycles after its issue
        for cycle in range(1, self.BEAT_TO_SHADOW):
            stage = Signal(BEAT, name=f"beat_{cycle}")
            m.d.sync += stage.eq(beat[-1])
            beat.append(stage)

        beats = Cat(stage.valid for stage in beat).any()
        awake_while(m, platform, self.awake, beats | self.shift)

        # 1 -> 2: hold the activation word and the row, so that memories are not in a longer path.
        held = [
            Signal(config.block * 8, name=f"held_{lane}", reset_less=True) for lane in range(lanes)
        ]
        weight = [Signal(signed(8), name=f"weight_{c}", reset_less=True) for c in range(columns)]
        position = [
            Signal(config.index_bits, name=f"position_{c}", reset_less=True) for c in range(columns)
        ]
        with m.If(beat[1].valid & beat[1].load):
            m.d.sync += [held[r].eq(self.activation[r].as_value()) for r in range(lanes)]
        counted = Const(1) if self._dense else beat[1].counted
        with m.If(beat[1].valid):
            for c in range(columns):
                m.d.sync += [
                    weight[c].eq(
                        Mux(beat[1].operand, self.operand[c], self.weight.weight[c])
                    ),
                    position[c].eq(
                        Mux(counted, beat[1].position, self.weight.index[c])
                    ),
                ]  # fmt: skip

        # 2 -> 3: select. 3 -> 4: the way to the multiplier, which may be far, has its own stage.
        factor = [Signal(signed(8), name=f"factor_{c}", reset_less=True) for c in range(columns)]
        near = [Signal(signed(8), name=f"factor_near_{c}", reset_less=True) for c in range(columns)]
        chosen = [
            [Signal(signed(8), name=f"chosen_{r}_{c}", reset_less=True) for c in range(columns)]
            for r in range(lanes)
        ]
        with m.If(beat[2].valid):
            m.d.sync += [factor[c].eq(weight[c]) for c in range(columns)]
            for r in range(lanes):
                m.d.sync += [
                    chosen[r][c].eq(held[r].word_select(position[c], 8)) for c in range(columns)
                ]
        with m.If(beat[3].valid):
            m.d.sync += [near[c].eq(factor[c]) for c in range(columns)]

        # 4 -> 5 multiply, 5 -> 6 accumulate
        sums = [
            [Signal(signed(bits), name=f"sum_{r}_{c}", reset_less=True) for c in range(columns)]
            for r in range(lanes)
        ]
        for c in range(columns):
            for group in self._groups():
                lane_factors = [chosen[r][c] for r in group]
                name = f"{group[0]}_{c}"
                products = self._products(m, platform, beat, factor[c], near[c], lane_factors, name)
                with m.If(beat[5].valid):
                    for r, product in zip(group, products, strict=True):
                        total = sums[r][c]
                        m.d.sync += total.eq(Mux(beat[5].clear, 0, total) + product)

        # 6 -> 7
        load = Signal()
        m.d.comb += load.eq(beat[6].valid & beat[6].finish)
        for r in range(lanes):
            shadow = Signal(bits * columns, name=f"shadow_{r}", reset_less=True)
            with m.If(load):
                m.d.sync += shadow.eq(Cat(sums[r]))
            with m.Elif(self.shift):
                m.d.sync += shadow.eq(shadow >> bits)
            m.d.comb += self.column[r].eq(shadow[:bits].as_signed())
        return m

    def _groups(self):
        """Return the lanes that share a multiplier; an odd last lane stands alone."""
        size = 2 if self._config.family in PACKING_FAMILIES else 1
        lanes = range(self._config.lanes)
        return [lanes[r : r + size] for r in range(0, len(lanes), size)]

    @staticmethod
    def _products(m, platform, beat, factor, near, chosen, name):
        """Return the products of one or two lanes' activations with their common weight."""
        if len(chosen) == 1:
            activation = chosen[0]
        else:
            activation = Signal(signed(25), name=f"pair_{name}")
            m.d.comb += activation.eq((chosen[1] << 16) + chosen[0])
        activation_near = Signal.like(activation, name=f"chosen_near_{name}", reset_less=True)
        with m.If(beat[3].valid):
            m.d.sync += activation_near.eq(activation)
        product = multiply(
            m, platform, (activation, factor), (activation_near, near), beat[4].valid,
            f"product_{name}",
        )  # fmt: skip
        if len(chosen) == 1:
            return [product]
        # |p| <= 2**30 + 2**14, so 32 bits are enough.
        return [product[:16].as_signed(), product[16:32].as_signed() + product[15]]
