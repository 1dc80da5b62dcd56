"""Adders and accumulators of the LUT core: bit-planes of weights, no multiplier."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from twillcore.config import Config
from twillcore.hw.layouts import activation_word, plane_row
from twillcore.hw.sequencer import BEAT

_PLANES = 8  # of the widest weight
_MUX = 4  # columns that share a multiplexer in front of the output: what a 6-input LUT selects from


def plane_cycles(block: int) -> int:
    """Return how many cycles it takes to add up one plane of a block: one per pair of positions."""
    return block // 2


def beat_to_sum(block: int) -> int:
    """Return the cycles from the last beat of a tile to its sums in the accumulators."""
    return 5 + plane_cycles(block)


def beat_to_shadow(block: int) -> int:
    """Return the cycles from the last beat of a tile to its column 0 on ``column``."""
    return 8 + plane_cycles(block)


class LutArray(wiring.Component):
    """``acc[lane][column] += sum of held[lane] where row[column] has a bit``, a plane per beat.

    The beats of a block are the planes of its weights, from the most significant one, which counts
    negative, down: ``block_sum = 2 * block_sum + plane_sum``, and with the last beat of the block
    (``block_end``) ``acc += block_sum``. Weights have as many bits as their block has beats, 1 to
    8; time is proportional to that.

    Two activations a, b of a lane and their sum are the same for all columns. So an element takes
    them pair by pair, adding one of 0, a, b and a + b: on 6-input LUTs the choice costs nothing,
    since five inputs of the adder's LUT make it and the sixth has the sum so far. Pair p is added a
    cycle after pair p - 1.

    Stages, in cycles after the one in which the beat is issued, with q = ``block / 2``: 1 memory
    data, 2 held word and row in registers, 3 sums of pairs, 4 to 3 + q the sum of the plane, 4 + q
    block sum, 5 + q accumulator, 6 + q shadow. Column 0 of a tile with ``finish`` stands on
    ``column`` from 8 + q on (:func:`beat_to_shadow`), and the next tile starts afresh. There is no
    backpressure: who issues such a beat makes sure that at least the last column of the tile before
    has been reached by then. Each cycle with ``shift`` brings the next column.

    Parameters
    ----------
    config : Config
        With a LUT core (``lut_columns`` > 0).

    Members
    -------
    beat : In(BEAT)
        In the cycle in which addresses go to the memories, one before their data.
    activation, weight : In
        Read data of the memories.
    shift : In(1)
    column : Out(data.ArrayLayout(signed(accumulator_bits), lanes))
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__({
            "beat": In(BEAT),
            "activation": In(activation_word(config)),
            "weight": In(plane_row(config)),
            "shift": In(1),
            "column": Out(data.ArrayLayout(signed(config.accumulator_bits), config.lanes)),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        config = self._config
        lanes, columns, bits = config.lanes, config.lut_columns, config.accumulator_bits
        pairs = plane_cycles(config.block)
        growth = config.block.bit_length() - 1
        plane_bits = 8 + growth  # -128 * block .. 127 * block
        to_sum = beat_to_sum(config.block)
        block_bits = plane_bits + _PLANES  # up to 128 * 128 * block, itself included

        beat = [self.beat]  # beat[n]: n cycles after its issue
        for cycle in range(1, to_sum + 1):
            stage = Signal(BEAT, name=f"beat_{cycle}")
            m.d.sync += stage.eq(beat[-1])
            beat.append(stage)

        # 1 -> 2: hold the activation word and the row, so that memories are not in a longer path.
        held = [
            Signal(data.ArrayLayout(signed(8), config.block), name=f"held_{r}", reset_less=True)
            for r in range(lanes)
        ]
        row = [Signal(config.block, name=f"row_{c}", reset_less=True) for c in range(columns)]
        with m.If(beat[1].valid & beat[1].load):
            m.d.sync += [held[r].eq(self.activation[r]) for r in range(lanes)]
        m.d.sync += [row[c].eq(self.weight[c]) for c in range(columns)]

        def delayed(value, cycles, name):
            for n in range(cycles):
                later = Signal.like(value, name=f"{name}_{n + 1}", reset_less=True)
                m.d.sync += later.eq(value)
                value = later
            return value

        # 2 -> 3: sums of pairs, and on to the stage in which the pair is added.
        choices = []  # [lane][pair]: two activations and their sum
        for r in range(lanes):
            of_lane = []
            for p in range(pairs):
                low, high = held[r][2 * p], held[r][2 * p + 1]
                both = Signal(signed(9), name=f"both_{r}_{p}", reset_less=True)
                m.d.sync += both.eq(low + high)
                name = f"{r}_{p}"
                of_lane.append((
                    delayed(low, 1 + p, f"low_{name}"),
                    delayed(high, 1 + p, f"high_{name}"),
                    delayed(both, p, f"both_{name}"),
                ))  # fmt: skip
            choices.append(of_lane)
        planes = [
            [delayed(row[c][2 * p : 2 * p + 2], 1 + p, f"plane_{c}_{p}") for p in range(pairs)]
            for c in range(columns)
        ]

        sums_at, acc_at = 3 + pairs, 4 + pairs  # stages whose beat moves block sums, accumulators
        first, ends = beat[sums_at].load, beat[acc_at]
        # The accumulators start afresh in the last beat of the tile's first block.
        clear = Signal()
        fresh = Signal()
        m.d.comb += clear.eq(fresh | ends.clear)
        with m.If(ends.valid):
            m.d.sync += fresh.eq(clear & ~ends.block_end)

        accumulators = []
        for r in range(lanes):
            for c in range(columns):
                plane = None
                for p in range(pairs):
                    low, high, both = choices[r][p]
                    has = planes[c][p]
                    chosen = Mux(has[1], Mux(has[0], both, high), Mux(has[0], low, 0))
                    width = min(9 + (p + 1).bit_length() - (p == 0), plane_bits)
                    total = Signal(signed(width), name=f"plane_sum_{r}_{c}_{p}", reset_less=True)
                    m.d.sync += total.eq(chosen if plane is None else plane + chosen)
                    plane = total
                block_sum = Signal(signed(block_bits), name=f"block_sum_{r}_{c}", reset_less=True)
                accumulator = Signal(signed(bits), name=f"acc_{r}_{c}", reset_less=True)
                with m.If(beat[sums_at].valid):
                    # -x is ~x + 1; the carry comes out of one more bit below.
                    doubled = Mux(first, 0, block_sum << 1)
                    term = plane ^ first.replicate(len(plane)).as_signed()
                    sum_ = (
                        Cat(first, term).as_signed() + Cat(first, doubled[:block_bits]).as_signed()
                    )
                    m.d.sync += block_sum.eq(sum_ >> 1)
                with m.If(ends.valid & ends.block_end):
                    m.d.sync += accumulator.eq(block_sum + Mux(clear, 0, accumulator))
                accumulators.append(accumulator)
        self._unload(m, accumulators, beat[to_sum])
        return m

    def _unload(self, m, accumulators, beat):
        """Bring the columns of a tile to ``column``, one after the other.

        Groups of columns have a register each, which always holds the group's next column; those
        that follow each other are in different groups, so it has the time.
        """
        config = self._config
        columns, bits = config.lut_columns, config.accumulator_bits
        groups = columns // _MUX
        load = beat.valid & beat.finish
        fill, first = Signal(), Signal()
        m.d.sync += [fill.eq(load), first.eq(fill)]

        group = Signal(range(groups))  # of the next column
        turn = Signal(range(_MUX))  # and its number therein
        advance = Signal()
        m.d.comb += advance.eq(first | self.shift)
        with m.If(fill):
            m.d.sync += [group.eq(0), turn.eq(0)]
        with m.Elif(advance):
            m.d.sync += group.eq(group + 1)
            with m.If(group == groups - 1):
                m.d.sync += [group.eq(0), turn.eq(turn + 1)]
        select = Signal(range(_MUX))
        m.d.comb += select.eq(Mux(fill, 0, turn + 1))
        for r in range(config.lanes):
            shadow = [
                Signal(signed(bits), name=f"shadow_{r}_{c}", reset_less=True)
                for c in range(columns)
            ]
            with m.If(load):
                m.d.sync += [
                    s.eq(accumulators[r * columns + c]) for c, s in enumerate(shadow)
                ]  # fmt: skip
            near = [
                Signal(signed(bits), name=f"near_{r}_{g}", reset_less=True) for g in range(groups)
            ]
            for g in range(groups):
                with m.If(fill | (advance & (group == g))):
                    m.d.sync += near[g].eq(Array(shadow[g::groups])[select])
            with m.If(advance):
                m.d.sync += self.column[r].eq(Array(near)[group])
