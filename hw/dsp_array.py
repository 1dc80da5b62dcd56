"""Multipliers and accumulators of the GEMM core."""

from typing import NamedTuple

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from twillcore.config import Config
from twillcore.hw.clocks import awake_while
from twillcore.hw.delay import valid_chain
from twillcore.hw.gated_add import gated_add
from twillcore.hw.layouts import activation_word, operand_row, weight_row
from twillcore.hw.multiplier import multiply
from twillcore.hw.select import select_value, select_word
from twillcore.hw.sequencer import BEAT
from twillcore.hw.unload import unload

#: Families whose multipliers are wide enough (25 x 8) for two lanes.
PACKING_FAMILIES = ("xc7", "xcup")
GROUP = 4  # columns that share the adder of their accumulators
LONGEST_WINDOW = 2 * GROUP - 1  # beats that one window adds up, at most
_WINDOW_BITS = 18  # LONGEST_WINDOW products of -128 * -128 are less than 2**17
_PITCH = 16  # of two lanes in one multiplier
#: For Vivado: these are short, LUTs are scarcer than flip-flops.
_FLIP_FLOPS = {"shreg_extract": "no"}


class _Controls(NamedTuple):
    """What the data path does, one signal per cycle; lists by the cycle after the beat's issue."""

    valid: list  # a beat is here
    load: list  # ... that is the first of its block
    first: list  # by stagger, in cycle 5 of the column: a window starts afresh
    pick: Signal  # a window goes to the adder,
    column: Signal  # of this column in its group
    add: Signal  # in the cycle after pick: the adder adds it,
    clear: Signal  # to zero,
    finish: Signal  # and hands the sum to the shadow
    rewind: Signal  # column 0 is what the next cycle takes from the shadow
    capture: Signal  # ... this cycle
    working: Signal  # beats, windows or sums are on their way


class _Row(NamedTuple):
    """A column's side of its multipliers."""

    position: Signal  # in cycle 2 of the column
    factor: Signal  # in cycle 3
    near: Signal  # in cycle 4
    stagger: int


class DspArray(wiring.Component):
    """``acc[lane][column] += held[lane][position[column]] * weight[column]``, a beat per cycle.

    Between beats the weights are zero, so that multipliers and windows need no enables: a window
    goes on by nothing.

    A multiplier adds up a *window* of products; the wide accumulators of :data:`GROUP` columns
    share one adder, which takes the windows of its columns in turn, one per cycle. So column c of a
    group does everything c cycles later than column 0 (its *stagger*), and windows end at least
    GROUP cycles after each other: with the last beat of a tile that is drained, and else as soon as
    there is time for it before such a beat. No window is longer than :data:`LONGEST_WINDOW`, and no
    beat waits for another, if beats with ``finish`` are at least GROUP cycles apart.

    Stages of column 0, in cycles after the one in which the beat is issued: 1 memory data, 2 held
    word and weights in registers, 3 selected activations, 4 the same again in the multipliers' own
    input registers, 5 products, 6 window, 7 window at the adder, 8 sum. Column 0 of a beat with
    ``finish`` stands on ``column`` from cycle 11 on, and the next beat starts afresh. There is no
    backpressure: who issues such a beat makes sure that the shadow is free, which takes the sums
    from cycle 8 on: the columns of the tile before must leave until then, but for its last group,
    which may leave as the new sums enter.

    The accumulators of a group are a ring that turns with the adder, and so is its shadow: neither
    has a multiplexer. Each cycle with ``shift`` moves the next column to ``column``.

    On families with 25-bit multipliers two lanes share one. Its sum is ``h * 2**16 + l``, the
    windows of both. A window has 18 bits, so the low 16 bits of l are not enough; but h modulo 4 is
    cheap (the products of two bits each), and what it lacks to the sum's high part is the rest.

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

    BEAT_TO_SUM = 5 + GROUP  # in the windows of all columns
    BEAT_TO_SHADOW = 7 + GROUP

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
        beat = valid_chain(m, self.beat, 4, "beat")  # beat[n]: n cycles after its issue
        control = self._control(m, beat)
        awake_while(m, platform, self.awake, control.working | self.shift)
        held, rows = self._rows(m, beat, control)

        oldest = []  # by group: the oldest column of its shadow
        leave, next_group = unload(
            m, self.shift, control.rewind, control.capture, config.dsp_columns, GROUP
        )

        for number in range(config.dsp_columns // GROUP):
            columns = range(number * GROUP, (number + 1) * GROUP)
            load = control.add & control.finish
            turn_shadow = Signal(name=f"turn_shadow_{number}")
            m.d.comb += turn_shadow.eq(load | (leave & (next_group == number)))
            addends = []
            for lanes in self._lanes_of_multipliers():
                windows = [
                    self._window(m, platform, control, [held[c % GROUP][r] for r in lanes], rows[c],
                                 f"{lanes[0]}_{c}")
                    for c in columns
                ]  # fmt: skip
                name = f"{lanes[0]}_{number}"
                picked = select_value(m, platform, windows, control.column, f"picked_{name}")
                for lane, value in zip(lanes, self._unpacked(picked, lanes), strict=True):
                    addend = Signal(
                        signed(_WINDOW_BITS), name=f"addend_{lane}_{number}", reset_less=True
                    )
                    m.d.sync += addend.eq(value)
                    addends.append(addend)
            # The column register is the fourth of the first group's shadow.
            depth = GROUP - 1 if number == 0 else GROUP
            oldest.append(
                self._accumulate(m, platform, control, addends, turn_shadow, depth, number)
            )

        with m.If(leave), m.Switch(next_group):
            for number, shadow in enumerate(oldest):
                with m.Case(number):
                    m.d.sync += self.column.eq(shadow)
        return m

    def _lanes_of_multipliers(self):
        """Return the lanes that share a multiplier; an odd last lane stands alone."""
        size = 2 if self._config.family in PACKING_FAMILIES else 1
        lanes = range(self._config.lanes)
        return [lanes[r : r + size] for r in range(0, len(lanes), size)]

    @staticmethod
    def _control(m, beat):
        """Cut beats into windows, and say what to do with them."""
        valid = [stage.valid for stage in beat]
        valid += valid_chain(m, valid[-1], GROUP, "valid")[1:]
        load = [stage.valid & stage.load for stage in beat]

        # In cycle 4, since that sees the beats of the three cycles after.
        now = beat[4]
        soon = Cat(stage.valid & stage.finish for stage in beat[1:GROUP]).any()
        opened = Signal()  # a window has beats
        cleared = Signal()  # ... that are the first of a tile
        rest = Signal(range(GROUP))  # cycles until another may end
        holds = (now.valid & now.clear) | cleared
        finish = now.valid & now.finish
        end = Signal()
        first = Signal()
        m.d.comb += [
            end.eq((now.valid | opened) & (finish | ((rest == 0) & ~soon))),
            first.eq(~opened | (now.valid & now.clear)),
        ]
        m.d.sync += [
            opened.eq((now.valid | opened) & ~end),
            cleared.eq(holds & ~end),
            rest.eq(Mux(end, GROUP - 1, Mux(rest == 0, 0, rest - 1))),
        ]
        ended = Signal()
        clear_next = Signal()
        finish_next = Signal()
        m.d.sync += [ended.eq(end), clear_next.eq(holds), finish_next.eq(finish)]
        firsts = valid_chain(m, first, GROUP, "first")[1:]

        pick = Signal()
        column = Signal(range(GROUP))
        pick_clear = Signal()
        pick_finish = Signal()
        with m.If(ended):
            m.d.sync += [
                pick.eq(1), column.eq(0), pick_clear.eq(clear_next), pick_finish.eq(finish_next),
            ]  # fmt: skip
        with m.Elif(pick):
            m.d.sync += [pick.eq(column != GROUP - 1), column.eq(column + 1)]
        add = Signal()
        clear = Signal()
        finished = Signal()
        rewind = Signal()
        capture = Signal()
        m.d.sync += [
            add.eq(pick),
            clear.eq(pick_clear),
            finished.eq(pick_finish),
            rewind.eq(pick & pick_finish & (column == GROUP - 2)),
            capture.eq(pick & pick_finish & (column == GROUP - 1)),
        ]
        working = Signal()
        beats = Cat(valid).any()
        m.d.comb += working.eq(beats | opened | (rest != 0) | ended | pick | add | rewind | capture)
        return _Controls(
            valid, load, firsts, pick, column, add, clear, finished, rewind, capture, working
        )

    def _rows(self, m, beat, control):
        """Return the words held for every stagger, by lane, and the side of every column."""
        config = self._config
        lanes, columns = config.lanes, config.dsp_columns
        held = []
        for stagger in range(GROUP):
            words = [
                Signal(config.block * 8, name=f"held_{lane}_{stagger}", reset_less=True)
                for lane in range(lanes)
            ]
            source = held[-1] if held else [word.as_value() for word in self.activation]
            with m.If(control.load[1 + stagger]):
                m.d.sync += [word.eq(s) for word, s in zip(words, source, strict=True)]
            held.append(words)

        counted = Const(1) if self._dense else beat[2].counted
        rows = []
        for c in range(columns):
            # From block RAM straight into registers; which of them counts is for the cycle after.
            stored, moved = (
                Signal(signed(8), name=f"{name}_{c}_2", reset_less=True)
                for name in ("stored", "moved")
            )
            index = Signal(config.index_bits, name=f"index_{c}_2", reset_less=True)
            m.d.sync += [
                stored.eq(self.weight.weight[c]),
                moved.eq(self.operand[c]),
                index.eq(self.weight.index[c]),
            ]
            either = Mux(beat[2].operand, moved, stored)
            position = Signal(config.index_bits, name=f"position_{c}_2")
            m.d.comb += position.eq(Mux(counted, beat[2].position, index))
            rows.append((Mux(beat[2].valid, either, 0), position))
        for stagger in range(1, GROUP):
            for c in range(columns):
                if c % GROUP < stagger:
                    continue
                weight = Signal(signed(8), name=f"weight_{c}_{2 + stagger}", reset_less=True)
                position = Signal(
                    config.index_bits, name=f"position_{c}_{2 + stagger}", reset_less=True
                )
                m.d.sync += [weight.eq(rows[c][0]), position.eq(rows[c][1])]
                rows[c] = (weight, position)
        for c, (weight, position) in enumerate(rows):
            factor = Signal(signed(8), name=f"factor_{c}", reset_less=True)
            near = Signal(signed(8), name=f"factor_near_{c}", reset_less=True)
            m.d.sync += [factor.eq(weight), near.eq(factor)]
            rows[c] = _Row(position, factor, near, c % GROUP)
        return held, rows

    def _window(self, m, platform, control, held, row, name):
        """Cycles 2 to 6 of a column: return the running window of one or two lanes.

        That of two lanes is what :meth:`_unpacked` takes apart.
        """
        first = control.first[row.stagger]
        lanes = range(len(held))

        # 2 -> 3: select. 3 -> 4: the way to the multiplier, which may be far, has its own stage.
        chosen = [Signal(signed(8), name=f"chosen_{name}_{i}", reset_less=True) for i in lanes]
        chosen_near = [
            Signal(signed(8), name=f"chosen_near_{name}_{i}", reset_less=True) for i in lanes
        ]
        m.d.sync += [
            chosen[i].eq(select_word(m, platform, held[i], row.position, 8, f"selector_{name}_{i}"))
            for i in lanes
        ]
        m.d.sync += [chosen_near[i].eq(chosen[i]) for i in lanes]

        # 4 -> 5: multiply. 5 -> 6: add up.
        if len(held) == 1:
            product = multiply(
                m, platform, (chosen[0], row.factor), (chosen_near[0], row.near), Const(1),
                f"product_{name}",
            )  # fmt: skip
            window = Signal(signed(_WINDOW_BITS), name=f"window_{name}", reset_less=True)
            total = gated_add(m, platform, product, window, ~first, f"window_{name}_add")
            m.d.sync += window.eq(total)
            return window
        pair, pair_near = (c[1].shift_left(_PITCH) + c[0] for c in (chosen, chosen_near))
        product = multiply(
            m, platform, (pair, row.factor), (pair_near, row.near), Const(1), f"product_{name}"
        )
        bits = _PITCH + _WINDOW_BITS
        window = Signal(signed(bits), name=f"window_{name}", reset_less=True)
        low = Signal(2, name=f"low_{name}", reset_less=True)  # product of the second lane, modulo 4
        low_window = Signal(2, name=f"low_window_{name}", reset_less=True)
        m.d.sync += [
            low.eq(chosen_near[1][:2] * row.near[:2]),
            window.eq(Mux(first, _WINDOW_START, window) + product),
            low_window.eq(Mux(first, 0, low_window) + low),
        ]
        return Cat(window, low_window)

    @staticmethod
    def _unpacked(window, lanes):
        """Return the windows of one or two lanes, in ``_WINDOW_BITS``.

        With l and h the windows, b = (l + 2**17) // 2**16 and :data:`_WINDOW_START`, the high part
        of the sum is q = h + b - 4, with b in 0..3; h modulo 4 is known.
        """
        if len(lanes) == 1:
            return [window.as_signed()]
        l_low = window[:_PITCH]
        q_low = window[_PITCH : _PITCH + 2]
        q_high = window[_PITCH + 2 : _PITCH + _WINDOW_BITS]
        h_low = window[_PITCH + _WINDOW_BITS :]
        b = (q_low - h_low)[:2]
        h_high = (q_high + (h_low <= q_low))[: len(q_high)]
        return [Cat(l_low, b[0], ~b[1]).as_signed(), Cat(h_low, h_high).as_signed()]

    def _accumulate(self, m, platform, control, addends, turn_shadow, depth, number):
        """Cycles 7 to 8 of a group: return the oldest column of its shadow."""
        column = data.ArrayLayout(signed(self._config.accumulator_bits), self._config.lanes)
        ring, shadow = (
            [
                Signal(column, name=f"{kind}_{number}_{i}", reset_less=True, attrs=_FLIP_FLOPS)
                for i in range(count)
            ]
            for kind, count in (("sum", GROUP), ("shadow", depth))
        )
        total = Signal(column, name=f"total_{number}")
        m.d.comb += [
            total[lane].eq(
                gated_add(
                    m, platform, addend, ring[-1][lane], ~control.clear, f"sum_{lane}_{number}_add"
                )
            )
            for lane, addend in enumerate(addends)
        ]
        with m.If(control.add):
            m.d.sync += [after.eq(s) for after, s in zip(ring, (total, *ring), strict=False)]
        with m.If(turn_shadow):
            m.d.sync += [after.eq(s) for after, s in zip(shadow, (total, *shadow), strict=False)]
        return shadow[-1]


#: What a packed window starts with: 2**17, so that the low window is not negative, less 4 in the
#: place of the high one, so that a correction is never negative.
_WINDOW_START = (1 << (_WINDOW_BITS - 1)) - (4 << _PITCH)
