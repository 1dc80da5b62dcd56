"""The MOVE engine: activations to the operand memory, transposed as attention needs them."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import Out

from twillcore.config import ADDRESS_BITS, FRAME_CYCLES, Config
from twillcore.hw.clocks import awake_while
from twillcore.hw.delay import valid_chain
from twillcore.hw.layouts import ISSUED, activation_word, instruction_layout, operand_row
from twillcore.hw.ports import Activity, engine_members, read_port, write_port
from twillcore.isa import Cause, MoveMode, Opcode
from twillcore.timing import SHARED_READ_CYCLES, ActivationSlot


class MoveEngine(wiring.Component):
    """Execute MOVE, one at a time.

    Words are gathered to *items*, which leave as operand rows, one row per cycle. KEYS: an item is
    one word and becomes ``block`` rows of one column group, a row per channel. VALUES: an item is
    the ``dsp_columns / block`` words of a column tile and becomes ``lanes`` full rows, a row per
    lane. Throughput is a word per frame or a row per cycle, whichever is less: the next item is
    read while the last one is written. The last word of an item read in cycle t, row n is written
    in cycle ``t + ROW_LATENCY + n``. Timing is a closed formula:
    :func:`twillcore.sim.timing_vector.move_end`.

    An instruction is accepted when the previous one has retired, or retires in this cycle; it is
    checked in the next cycle and started in the one after that. ``error`` follows the acceptance of
    an illegal instruction by two cycles, and an access beyond a memory, which is not done, by one.
    After it the engine accepts nothing until reset. Needs ``config.operand_depth > 0``.

    Members
    -------
    phase, instruction, retire, activity, error
        As of every engine: :func:`twillcore.hw.ports.engine_members`.
    activation_read : Out(read_port)
        Used only in the engine's slot.
    operand_write : Out(write_port)
        One enable bit per group of ``lanes`` columns.
    """

    ROW_LATENCY = SHARED_READ_CYCLES + 2

    def __init__(self, config: Config):
        if not config.operand_depth:
            raise ValueError(
                "MoveEngine needs operand memory,"
                f" configuration {config.name!r} has operand_depth 0"
            )
        self._config = config
        self._groups = config.dsp_columns // config.lanes
        super().__init__(engine_members() | {
            "activation_read": Out(read_port(ADDRESS_BITS, activation_word(config))),
            "operand_write": Out(write_port(ADDRESS_BITS, operand_row(config), self._groups)),
        })  # fmt: skip
        self.awake = Signal()  # of gated machines: twillcore.hw.clocks

    def elaborate(self, platform):
        m = Module()
        config = self._config
        lanes, block, tile_words = config.lanes, config.block, config.words_per_tile

        current = Signal(ISSUED, reset_less=True)
        busy = Signal()
        starting = Signal()
        failed = Signal()
        illegal = Signal()
        failing = Signal()  # from the next cycle on, it has failed
        start = Signal()
        read_violation = Signal()
        write_violation = Signal()
        keys = Signal()
        move = data.View(instruction_layout(Opcode.MOVE), current.word)
        m.d.comb += [
            keys.eq(move.mode == MoveMode.KEYS),
            illegal.eq(
                (move.opcode != Opcode.MOVE)
                | ~move.row_tiles.any()
                | ~move.blocks.any()
                | (~keys & _remainder(move.blocks, tile_words).any())
            ),
            self.instruction.ready.eq((~busy | self.retire) & ~failed),
            self.activity.eq(Mux(busy, Activity.BUSY, Activity.IDLE)),
            failing.eq(((starting & illegal) | read_violation | write_violation) & ~failed),
        ]
        m.d.sync += [
            self.error.valid.eq(failing),
            self.error.cause.eq(
                Mux(starting & illegal, Cause.ILLEGAL_INSTRUCTION, Cause.ADDRESS_OUT_OF_RANGE)
            ),
            self.error.index.eq(current.index),
        ]
        awake_while(m, platform, self.awake, self.instruction.valid | busy | failed)
        m.d.sync += [starting.eq(0), start.eq(starting & ~illegal & ~failed)]
        with m.If(self.instruction.valid & self.instruction.ready):
            m.d.sync += [current.eq(self.instruction.payload), busy.eq(1), starting.eq(1)]
        with m.Elif(self.retire):
            m.d.sync += busy.eq(0)
        with m.If(failing):  # an instruction that is taken in this cycle does not start
            m.d.sync += failed.eq(1)
        with m.If(failed):
            m.d.sync += busy.eq(0)

        # Reading. A run is what shares a column base: a row tile (KEYS) or a column tile (VALUES).
        # KEYS:   run = row tile,    strip = the row tile's blocks, item = word
        # VALUES: run = column tile, strip = item = a row tile's words in it
        address = Signal(ADDRESS_BITS + 1, reset_less=True)
        next_strip = Signal(ADDRESS_BITS + 1, reset_less=True)
        # VALUES: the first row tile, next column tile
        next_run = Signal(ADDRESS_BITS + 1, reset_less=True)
        words_left = Signal(12)  # of the strip
        item_words_left = Signal(range(tile_words + 1))
        tiles_left = Signal(12)
        blocks_left = Signal(12)  # VALUES: of the column tiles
        frames_left = Signal(4)  # that writing an item takes beyond reading it
        reading = Signal()
        turn = Signal()
        want = Signal()
        fits = Signal()
        item_end = Signal()
        strip_end = Signal()
        run_end = Signal()
        end = Signal()
        strip_words = Signal(12)
        item_words = Signal(range(tile_words + 1))
        pause = Signal(4)
        m.d.comb += [
            strip_words.eq(Mux(keys, move.blocks, tile_words)),
            item_words.eq(Mux(keys, 1, tile_words)),
            pause.eq(Mux(keys, block // 8 - 1, values_pause(config))),
            turn.eq(reading & (self.phase == ActivationSlot.MOVE_READ)),
            want.eq(turn & ~frames_left.any()),
            item_end.eq(item_words_left == 1),
            strip_end.eq(words_left == 1),
            run_end.eq(strip_end & (keys | (tiles_left == 1))),
            end.eq(strip_end & (tiles_left == 1) & (keys | (blocks_left == tile_words))),
            read_violation.eq(want & ~fits),
            self.activation_read.address.eq(address),
            self.activation_read.enable.eq(want & fits),
        ]
        m.d.sync += fits.eq(address < config.activation_depth)  # it changes a frame before its use
        with m.If(start):
            m.d.sync += [
                address.eq(move.a),
                fits.eq(move.a < config.activation_depth),
                next_strip.eq(move.a + move.a_row_stride),
                next_run.eq(move.a + tile_words),
                words_left.eq(strip_words),
                item_words_left.eq(item_words),
                tiles_left.eq(move.row_tiles),
                blocks_left.eq(move.blocks),
                frames_left.eq(0),
                reading.eq(1),
            ]
        with m.Elif(want):
            m.d.sync += [
                address.eq(address + 1),
                words_left.eq(words_left - 1),
                item_words_left.eq(Mux(item_end, item_words, item_words_left - 1)),
            ]
            with m.If(item_end):
                m.d.sync += frames_left.eq(pause)
            with m.If(strip_end):
                m.d.sync += [
                    address.eq(next_strip),
                    next_strip.eq(next_strip + move.a_row_stride),
                    words_left.eq(strip_words),
                    tiles_left.eq(tiles_left - 1),
                    reading.eq(~end),
                ]
                with m.If(~keys & run_end):
                    m.d.sync += [
                        address.eq(next_run),
                        next_strip.eq(next_run + move.a_row_stride),
                        next_run.eq(next_run + tile_words),
                        tiles_left.eq(move.row_tiles),
                        blocks_left.eq(blocks_left - tile_words),
                    ]
        with m.Elif(turn):
            m.d.sync += frames_left.eq(frames_left - 1)

        # Gathering: all words of an item but the last wait in `gathered`; with the last one, which
        # comes straight from the memory, they move on to `item`, whose rows leave one per cycle.
        arriving, arriving_item_end, arriving_run_end, arriving_end = (
            valid_chain(m, value, SHARED_READ_CYCLES, f"arriving{name}")[-1]
            for value, name in (
                (want & fits, ""), (item_end, "_item_end"), (run_end, "_run_end"), (end, "_end"),
            )
        )  # fmt: skip
        item_run_end = Signal()
        item_last = Signal()
        emitting = Signal()
        position = Signal(range(max(lanes, block)))
        final = Signal()
        loading = Signal()
        m.d.comb += [
            loading.eq(arriving & arriving_item_end),
            final.eq(position == Mux(keys, block - 1, lanes - 1)),
        ]
        with m.If(loading):
            m.d.sync += [
                position.eq(0),
                emitting.eq(1),
                item_run_end.eq(arriving_run_end),
                item_last.eq(arriving_end),
            ]
        with m.Elif(emitting):
            m.d.sync += [position.eq(position + 1), emitting.eq(~final)]

        word = self.activation_read.data
        item = []  # by lane; KEYS looks at the last block only
        for lane in range(lanes):
            incoming = Cat(word[lane])
            gathered = Signal(
                8 * block * max(tile_words - 1, 1), reset_less=True, name=f"gathered_{lane}"
            )
            content = Signal(8 * block * tile_words, reset_less=True, name=f"item_{lane}")
            with m.If(arriving):
                m.d.sync += gathered.eq(Cat(gathered[8 * block :], incoming))
            with m.If(loading):
                m.d.sync += content.eq(Cat(gathered, incoming) if tile_words > 1 else incoming)
            item.append(content)
        column = Cat(content[-8 * block :].word_select(position, 8) for content in item)
        written = Signal.like(self.operand_write.data.as_value(), reset_less=True)
        m.d.comb += self.operand_write.data.eq(written)
        with m.If(emitting):
            with m.If(keys):
                m.d.sync += written.eq(Cat(column for _ in range(self._groups)))
            with m.Else():
                m.d.sync += written.eq(Array(item)[position])

        # Writing: rows follow each other through a run; a run starts at its column base.
        row = Signal(ADDRESS_BITS + 1)
        base = Signal(ADDRESS_BITS + 1)
        group = Signal(range(self._groups))
        last_group = Signal()
        next_base = Signal(ADDRESS_BITS + 1)
        write_fits = Signal()
        last_row = Signal()
        m.d.comb += [
            last_group.eq(~keys | (group == self._groups - 1)),
            next_base.eq(Mux(last_group, base + move.column_stride, base)),
            write_fits.eq(row < config.operand_depth),
            write_violation.eq(emitting & ~write_fits),
            self.retire.eq(last_row & ~failed),
        ]
        m.d.sync += [
            self.operand_write.enable.eq(0),
            last_row.eq(emitting & final & item_last & write_fits),
        ]
        with m.If(start):
            m.d.sync += [row.eq(move.out), base.eq(move.out), group.eq(0)]
        with m.Elif(emitting):
            m.d.sync += [self.operand_write.address.eq(row), row.eq(row + 1)]
            with m.If(write_fits):
                m.d.sync += self.operand_write.enable.eq(
                    Mux(keys, Const(1) << group, (1 << self._groups) - 1)
                )
            with m.If(final & item_run_end):
                m.d.sync += [
                    row.eq(next_base),
                    base.eq(next_base),
                    group.eq(Mux(last_group, 0, group + 1)),
                ]
        return m


def values_pause(config: Config):
    """Return for how many frames VALUES reads nothing after an item, since writing lasts longer."""
    return max(0, -(-config.lanes // FRAME_CYCLES) - config.words_per_tile)


def _remainder(value, divisor):
    """Return ``value % divisor`` of 12 bits, by tables of its halves where that needs a divider."""
    if divisor & (divisor - 1):
        low, high = (
            Array(Const((n << shift) % divisor, range(divisor)) for n in range(64))[part]
            for shift, part in ((0, value[:6]), (6, value[6:]))
        )
        total = low + high
        return Mux(total >= divisor, total - divisor, total)
    return value[: divisor.bit_length() - 1]
