"""Adders and accumulators of the LUT core: bit-planes of weights, no multiplier."""

import itertools
from typing import NamedTuple

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from twillcore.config import Config
from twillcore.hw.clocks import awake_while
from twillcore.hw.delay import delayed
from twillcore.hw.gated_add import chain_add
from twillcore.hw.layouts import activation_word, plane_row
from twillcore.hw.select import select_value
from twillcore.hw.sequencer import BEAT
from twillcore.hw.unload import unload

GROUP = 2  # columns that share the adder of their accumulators
_PLANES = 8  # of the widest weight


def plane_cycles(block: int) -> int:
    """Return how many cycles it takes to add up one plane of a block: one per pair of positions."""
    return block // 2


def beat_to_sum(block: int) -> int:
    """Return the cycles from the last beat of a tile to its sums in the accumulators."""
    return 5 + plane_cycles(block)


def beat_to_shadow(block: int) -> int:
    """Return the cycles from the last beat of a tile to its column 0 on ``column``."""
    return 8 + plane_cycles(block)


class _Controls(NamedTuple):
    """What the data path does, one signal per cycle; of column 0 of a group, if of one."""

    move: Signal  # the block sum takes a plane:
    ones: Signal  # starts afresh,
    double: Signal  # or has twice its weight,
    invert: Signal  # or is inverted
    add: list  # by column: the accumulator takes the block sum,
    add_inverted: Signal  # which is inverted
    clear: Signal  # the accumulator that the next cycle adds to is 0
    load: Signal  # the shadow takes the last sum
    rewind: Signal  # column 0 is what the next cycle takes from the shadow
    capture: Signal  # ... this cycle
    working: Signal  # block sums or sums are on their way


class LutArray(wiring.Component):
    """``acc[lane][column] += sum of held[lane] where row[column] has a bit``, a plane per beat.

    The beats of a block are the planes of its weights, from the most significant one, which counts
    negative, down: ``block_sum = 2 * block_sum + plane_sum``, and then ``acc += block_sum``.
    Weights have as many bits as their block has beats, 1 to 8; time is proportional to that.

    Two activations a, b of a lane and their sum are the same for all columns. So an element takes
    them pair by pair, adding one of 0, a, b and a + b: on 6-input LUTs the choice costs nothing,
    since five inputs of the adder's LUT make it and the sixth has the sum so far. Pair p is added a
    cycle after pair p - 1. Nor does anything else cost more than its adder: a block sum of which
    the last plane was negative is kept inverted (``-x`` is ``~(x - 1)``), and an accumulator is
    cleared before it is added to.

    :data:`GROUP` columns share the wide adder of their accumulators, which takes one of them per
    cycle; so column 1 of a group does everything a cycle later than column 0. Blocks of one plane
    come faster than that: their sums run on from block to block, until there is time, a block of
    more planes or the end of the tile. That comes too early in one case, which is illegal: a tile
    of a single beat that is not drained, right after one that is.

    Stages of column 0, in cycles after the one in which the beat is issued, with
    q = ``block / 2``: 1 memory data, 2 held word and row in registers, 3 sums of pairs, 4 to 3 + q
    the sum of the plane, 4 + q block sum, 5 + q accumulator, 6 + q shadow. Column 0 of a tile with
    ``finish`` stands on ``column`` from 8 + q on (:func:`beat_to_shadow`), and the next tile starts
    afresh. There is no backpressure: who issues such a beat makes sure that the last column of the
    tile before stands on ``column`` a cycle before that at the latest. Each cycle with ``shift``
    brings the next column.

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
        self.awake = Signal()  # of gated machines: twillcore.hw.clocks

    def elaborate(self, platform):
        m = Module()
        config = self._config
        lanes, columns = config.lanes, config.lut_columns
        pairs = plane_cycles(config.block)

        beat = [self.beat]  # beat[n]: n cycles after its issue
        for cycle in range(1, 3 + pairs):
            stage = Signal(BEAT, name=f"beat_{cycle}")
            m.d.sync += stage.eq(beat[-1])
            beat.append(stage)
        control = self._control(m, beat[-3:])
        beats = Cat(stage.valid for stage in beat).any()
        awake_while(m, platform, self.awake, beats | control.working | self.shift)

        # 1 -> 2: hold the activation word and the row, so that memories are not in a longer path.
        held = [
            Signal(data.ArrayLayout(signed(8), config.block), name=f"held_{r}", reset_less=True)
            for r in range(lanes)
        ]
        row = [Signal(config.block, name=f"row_{c}", reset_less=True) for c in range(columns)]
        with m.If(beat[1].valid & beat[1].load):
            m.d.sync += [held[r].eq(self.activation[r]) for r in range(lanes)]
        m.d.sync += [row[c].eq(self.weight[c]) for c in range(columns)]

        # 2 -> 3: sums of pairs, and on to the stage in which the pair is added.
        choices = []  # [lane][pair][cycles late]: two activations and their sum
        for r in range(lanes):
            of_lane = []
            for p in range(pairs):
                low, high = held[r][2 * p], held[r][2 * p + 1]
                both = Signal(signed(9), name=f"both_{r}_{p}", reset_less=True)
                m.d.sync += both.eq(low + high)
                ways = (
                    delayed(m, low, p + GROUP, name=f"low_{r}_{p}")[p + 1 :],
                    delayed(m, high, p + GROUP, name=f"high_{r}_{p}")[p + 1 :],
                    delayed(m, both, p + GROUP - 1, name=f"both_{r}_{p}")[p:],
                )
                of_lane.append(list(zip(*ways, strict=True)))
            choices.append(of_lane)
        planes = [
            [
                delayed(m, row[c][2 * p : 2 * p + 2], 1 + p + c % GROUP, name=f"plane_{c}_{p}")[-1]
                for p in range(pairs)
            ]
            for c in range(columns)
        ]
        later = [control] + [  # by column of a group: what moves its block sum
            control._replace(**{
                name: delayed(m, getattr(control, name), c, name=f"{name}_later")[-1]
                for name in ("move", "ones", "double", "invert")
            })
            for c in range(1, GROUP)
        ]  # fmt: skip

        sums = []  # [lane][group]: the sum that was made last
        for r in range(lanes):
            of_lane = []
            for first in range(0, columns, GROUP):
                blocks = []
                for late in range(GROUP):
                    c = first + late
                    chosen = [choices[r][p][late] for p in range(pairs)]
                    plane = self._plane(m, platform, chosen, planes[c], f"{r}_{c}")
                    blocks.append(self._block(m, platform, later[late], plane, f"{r}_{c}"))
                name = f"{r}_{first // GROUP}"
                of_lane.append(self._accumulate(m, platform, control, blocks, name))
            sums.append(of_lane)
        self._unload(m, platform, control, sums)
        return m

    @staticmethod
    def _control(m, beat):
        """Say what happens to blocks; ``beat`` are those of a cycle before their block sums.

        The last of them is ``now``, the others come one and two cycles later.
        """
        after, soon, now = beat
        opened = Signal()  # the block sum has blocks that no accumulator has
        inverted = Signal()  # it is stored inverted
        cleared = Signal()  # its blocks are the first of a tile
        rest = Signal()  # the adder is busy in the next cycle
        one_plane = now.load & now.block_end
        runs_on = opened & ~now.clear

        def starts(of):
            """Whether a block of several planes begins, to which nothing can be added."""
            return of.valid & of.load & ~of.block_end

        complete = Mux(now.valid, now.block_end, opened)
        finish = now.valid & now.finish
        wanted = soon.valid & soon.block_end & (soon.finish | starts(after))  # by the next
        end, holds = Signal(), Signal()
        m.d.comb += [
            end.eq(complete & (finish | starts(soon) | (~rest & ~wanted))),
            holds.eq((now.valid & now.clear) | cleared),
        ]
        move, ones, double, invert = (
            Signal(name=name) for name in ("move", "ones", "double", "invert")
        )
        add = [Signal(name=f"add_{c}") for c in range(GROUP)]
        add_soon, add_clear, add_finish, add_inverted = (
            Signal(name=name) for name in ("add_soon", "add_clear", "add_finish", "add_inverted")
        )
        clear, load, capture = Signal(), Signal(), Signal()
        finished = [Signal(name=f"finished_{n}") for n in range(4)]
        m.d.sync += [
            opened.eq(complete & ~end),
            cleared.eq(holds & ~end),
            rest.eq(end),
            move.eq(now.valid),
            ones.eq(now.load & ~(one_plane & runs_on)),
            double.eq(~now.load),
            # What is added to is the block sum itself, but for blocks of one plane its inverse.
            invert.eq(inverted ^ one_plane),
            add_soon.eq(end),
            add_clear.eq(end & holds),
            add[0].eq(add_soon),
            *(later.eq(earlier) for earlier, later in itertools.pairwise(add)),
            clear.eq((end & holds) | add_clear),
            add_finish.eq(end & finish),
            finished[0].eq(add_finish),
            *(later.eq(earlier) for earlier, later in itertools.pairwise(finished)),
            load.eq(finished[0] | finished[1]),
            capture.eq(finished[2]),
        ]
        with m.If(now.valid):
            m.d.sync += inverted.eq(now.load)
        with m.If(add_soon):
            m.d.sync += add_inverted.eq(inverted)
        working = opened | Cat(move, add_soon, add, add_finish, finished).any()
        return _Controls(
            move, ones, double, invert, add, add_inverted, clear, load, finished[2], finished[3],
            working,
        )  # fmt: skip

    @staticmethod
    def _plane(m, platform, choices, has, name):
        """Return the sum of those activations that a plane has, pair by pair."""
        total = None
        for p, ((low, high, both), bits) in enumerate(zip(choices, has, strict=True)):
            chosen = Mux(bits[1], Mux(bits[0], both, high), Mux(bits[0], low, 0))
            bits = 8 + ceil_log2(2 * (p + 1))
            following = Signal(signed(bits), name=f"plane_sum_{name}_{p}", reset_less=True)
            if total is not None:
                chosen = chain_add(m, platform, total, chosen, bits, f"plane_add_{name}_{p}")
            m.d.sync += following.eq(chosen)
            total = following
        return total

    @staticmethod
    def _block(m, platform, control, plane, name):
        """Return the sum of blocks, or its inverse."""
        bits = len(plane) + _PLANES  # up to 128 * 128 * block, itself included
        total = Signal(signed(bits), name=f"block_sum_{name}", reset_less=True)
        before = Mux(control.double, Cat(control.invert, total[:-1]), total.as_unsigned())
        before = (before ^ control.invert.replicate(bits)) | control.ones.replicate(bits)
        after = chain_add(m, platform, plane, before.as_signed(), bits, f"block_add_{name}")
        with m.If(control.move):
            m.d.sync += total.eq(after)
        return total

    def _accumulate(self, m, platform, control, blocks, name):
        """Return the sum that was made last, of a group in one lane."""
        bits = self._config.accumulator_bits
        shape = signed(bits)
        total, other = (Signal(shape, name=f"{n}_{name}", reset_less=True) for n in ("sum", "acc"))
        low, high = blocks
        inverted = control.add_inverted.replicate(len(low)).as_signed()
        block = Mux(control.add[1], high, low) ^ inverted
        following = chain_add(m, platform, other, block, bits, f"sum_add_{name}")
        with m.If(control.add[0] | control.add[1]):
            m.d.sync += [total.eq(following), other.eq(total)]
        with m.If(control.clear):
            m.d.sync += other.eq(0)
        return total

    def _unload(self, m, platform, control, sums):
        """Bring the columns of a tile to ``column``, one after the other."""
        config = self._config
        groups = config.lut_columns // GROUP
        leave, following = unload(
            m, self.shift, control.rewind, control.capture, config.lut_columns, GROUP
        )
        group = following[: ceil_log2(groups)]
        turn = Signal(groups)
        m.d.comb += [
            turn[g].eq(control.load | (leave & (group == g))) for g in range(groups)
        ]  # fmt: skip
        for r, of_lane in enumerate(sums):
            oldest = []
            for g, total in enumerate(of_lane):
                shadow = [
                    Signal.like(total, name=f"shadow_{r}_{g}_{c}") for c in reversed(range(GROUP))
                ]
                with m.If(turn[g]):
                    m.d.sync += [
                        after.eq(s) for after, s in zip(shadow, (total, *shadow), strict=False)
                    ]  # fmt: skip
                oldest.append(shadow[-1])
            oldest += oldest[-1:] * ((1 << ceil_log2(groups)) - groups)
            chosen = select_value(m, platform, oldest, group, f"oldest_{r}")
            with m.If(leave):
                m.d.sync += self.column[r].eq(chosen.as_signed())
