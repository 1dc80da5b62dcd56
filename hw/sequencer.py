"""Loop nest of the GEMM core: which beat in which cycle."""

from amaranth.hdl import Const, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from twillcore.config import Config
from twillcore.hw.delay import delay, valid_chain
from twillcore.hw.gemm_legality import illegal_gemm, illegal_window
from twillcore.hw.layouts import INDEX_BITS, ISSUED, activation_word, instruction_layout
from twillcore.hw.ports import ERROR, window_port
from twillcore.hw.window import Window, tap_port
from twillcore.isa import Cause, Engine, Opcode
from twillcore.timing import window_cycles

#: What the array does with the word and the row that it gets in the following cycle.
BEAT = data.StructLayout({
    "valid": 1,  # a beat is issued
    "load": 1,  # first beat of a block: hold the activation word
    "block_end": 1,  # last beat of a block
    "clear": 1,  # first beat of a tile: forget the sums of the one before
    "finish": 1,  # last beat of a tile that is drained: hand the sums to the shadow
    "operand": 1,  # the row comes from the operand memory
    "counted": 1,  # the position is the number of the beat, not the stored index
    "position": 4,  # number of the beat in its block
})  # fmt: skip

#: Everything the drain needs to know of one tile. Addresses are those of its first word or entry.
TILE = data.StructLayout({
    "parameter": 16,
    "lane_scaled": 1,
    "lane": 10,
    "residual": 1,
    "residual_address": 16,
    "residual_narrow": 1,
    "residual_shift": 5,  # 8 more than the instruction's, so not negative: 0..23
    "function": 2,
    "wide": 1,
    "out": 16,
    "keep_maximum": 1,
    "first_column": 1,  # first tile of its row tile
    "last_column": 1,  # last tile of its row tile
    "maximum": 10,
    "last_drained": 7,  # number of the last column that is drained, in its tile
    "lut": 1,  # it is the LUT core's
    "last": 1,  # last tile of its instruction
})  # fmt: skip

#: What is known of a step for the beat that belongs to it.
_STEP = data.StructLayout({
    "has_beat": 1,
    "first_beat": 1,  # of its block
    "position": 4,  # of the beat in its block
    "block_end": 1,
    "tile_end": 1,
    "last_inner": 1,  # tile of the inner loop
    "end": 1,  # last step of the instruction
})  # fmt: skip


ADDRESS_PORT = wiring.Signature({"address": Out(16), "enable": Out(1)})


class Sequencer(wiring.Component):
    """Turn GEMM instructions into beats, one per cycle; hold the window of the core.

    The loop nest advances by a *step* per cycle. The first step is taken in the cycle after an
    instruction is accepted, and the next instruction is accepted in the cycle of the last step:
    there is no bubble between blocks, tiles and instructions. A step is a beat, with three
    exceptions. A block of one beat that is read twice (windows of stride 2) has two steps, of which
    the second is the beat; of a maximum over taps only the last tap's last step is one; and with
    ``refusable``, beats of blocks that are read twice come a step after the steps that they belong
    to, and the instruction has one step more.

    Steps wait for two reasons, visible as ``active & ~step``. The last beat of a tile waits while
    the shadow is ``occupied``: from the last beat of a tile to the drain's ``release``. (If it
    comes right after the block's first, and that can only be followed at once, the first one waits
    for it.) A step that reads an activation word waits for ``grant``.

    Beats, addresses of rows, and ``word`` stand ``window_cycles`` after their step: in the same
    cycle without windows. Memories read while the sequencer is active, whether a beat wants that or
    not. An address beyond its memory is not used: it stops the sequencer for good. ``error`` is
    raised in the cycle after the faulty step or acceptance.

    WINDOW takes ``lanes`` + ``Window.DEFINE_CYCLES`` cycles: in the last of them the next
    instruction is accepted.

    Parameters
    ----------
    config : Config
    engine : Engine
        GEMM or LUT: whose opcodes, columns and weight memory.
    refusable : bool
        ``grant`` may be low: the core shares its port with another. The two reads of a block then
        need not follow each other at once. The first beat comes with the second read, as the word
        is whole then; so the last one comes with the first read of the next block.

    Members
    -------
    instruction : In(stream.Signature(ISSUED))
    admit : In(1)
        Instructions may be taken; the retirement logic has room.
    undrained : Out(1)
        The instruction that is offered drains nothing.
    grant : In(1)
        The core may read an activation word.
    reads : Out(1)
        It does: this step reads one (``window_cycles`` / 2 later, in the memory).
    activation : Out(window_port(config))
    word : Out(activation_word(config))
        What the array holds: in the cycle after a beat with ``load``.
    tap_write : In(tap_port(config))
        With windows only.
    weight, operand : Out(ADDRESS_PORT)
    beat : Out(BEAT)
        In the cycle of the addresses, one before the data.
    tile : Out
        ``valid`` in the cycle after the step of the last beat of every tile that is drained.
    release : In(1)
        From the next cycle on, the last beat of another tile may be issued.
    active : Out(1)
        An instruction has steps left, or sets the window.
    step : Out(1)
    held : Out(1)
        In the cycle of the last beat of an instruction that drains nothing, or ``window_cycles``
        after a window was set.
    error : Out(ERROR)
    """

    def __init__(self, config: Config, engine: Engine = Engine.GEMM, refusable: bool = False):
        self._config = config
        self._engine = engine
        self._refusable = refusable
        super().__init__({
            "instruction": In(stream.Signature(ISSUED)),
            "admit": In(1),
            "undrained": Out(1),
            "grant": In(1),
            "reads": Out(1),
            "activation": Out(window_port(config)),
            "word": Out(activation_word(config)),
            "weight": Out(ADDRESS_PORT),
            "operand": Out(ADDRESS_PORT),
            "beat": Out(BEAT),
            "tile": Out(wiring.Signature({"valid": Out(1), "payload": Out(TILE)})),
            "release": In(1),
            "active": Out(1),
            "step": Out(1),
            "held": Out(1),
            "error": Out(ERROR),
        } | ({"tap_write": In(tap_port(config))} if config.tap_depth else {}))  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        config = self._config
        layout = instruction_layout(Opcode.GEMM)
        is_lut = self._engine == Engine.LUT
        columns = config.lut_columns if is_lut else config.dsp_columns
        columns_words = columns // config.block
        weight_depth = config.lut_weight_depth if is_lut else config.weight_depth

        offered = data.View(layout, self.instruction.payload.word)
        accept = Signal()  # a GEMM
        failed = Signal()  # from two cycles after an error on, until reset
        stopped = Signal()  # from the cycle after it on
        refusable = Const(self._refusable)
        active = Signal()
        now = Signal(layout, reset_less=True)  # the instruction in execution
        index = Signal(INDEX_BITS, reset_less=True)
        with m.If(accept):
            m.d.sync += [now.eq(offered), index.eq(self.instruction.payload.index)]

        # The window: a WINDOW that is offered, the last one that was taken, and when.
        offered_window = data.View(instruction_layout(Opcode.WINDOW), self.instruction.payload.word)
        is_window = Signal()
        window = Signal(instruction_layout(Opcode.WINDOW), reset_less=True)
        more_taps = Signal(8)  # of the window, less one
        define = Signal()
        setting = Signal()
        defined = Signal()  # the last cycle of that
        known = Signal()
        if config.tap_depth:
            m.d.comb += is_window.eq(
                offered.opcode == (Opcode.LUT_WINDOW if is_lut else Opcode.WINDOW)
            )
            with m.If(defined):
                m.d.sync += setting.eq(0)
            with m.If(define):
                m.d.sync += [
                    window.eq(offered_window),
                    more_taps.eq(offered_window.taps - 1),
                    setting.eq(1),
                    known.eq(1),
                ]

        # Loop counters: the step counts up since it is a position, the others count what is left.
        position = Signal(4)
        last_position = Signal(4)
        strided = Signal()  # a block is read in its first two steps, for half of the lanes each
        late = Signal()  # its only beat is the second of them
        ahead = Signal()  # all its beats come a step later
        trailing = Signal()  # and the last of them is all that is left
        taps_left = Signal(8)
        blocks_left = Signal(12)
        inner_left = Signal(12)
        outer_left = Signal(12)
        # Registers, since much hangs on them: whether each of these is at its end, and whether it
        # has but one round.
        last_step, last_block, last_tap, last_inner, last_outer = (
            Signal(name=f"last_{name}") for name in ("step", "block", "tap", "inner", "outer")
        )
        one_step, one_block, one_tap, one_inner = (
            Signal(name=f"one_{name}") for name in ("step", "block", "tap", "inner")
        )
        block_end, tap_end, tile_end, end = (Signal() for _ in range(4))
        reading = Signal()
        pools = Const(0) if is_lut else now.pool
        first_tile_beat = Signal()
        step = Signal()
        m.d.comb += [
            block_end.eq(last_step),
            tap_end.eq(block_end & last_block),
            tile_end.eq(tap_end & last_tap),
            end.eq(tile_end & last_inner & last_outer),
            reading.eq(((position == 0) | (strided & (position == 1))) & ~trailing),
        ]
        of_step, beat_now = Signal(_STEP), Signal(_STEP)
        m.d.comb += [
            of_step.has_beat.eq((~late | (position != 0)) & (~pools | last_tap)),
            of_step.first_beat.eq(position == late),
            of_step.position.eq(position - late),
            of_step.block_end.eq(block_end),
            of_step.tile_end.eq(tile_end),
            of_step.last_inner.eq(last_inner),
            of_step.end.eq(end),
            beat_now.eq(of_step),
        ]
        if self._refusable:
            before = Signal(_STEP)
            with m.If(accept):
                m.d.sync += before.eq(0)
            with m.Elif(step):
                m.d.sync += before.eq(of_step)
            with m.If(accept):
                m.d.sync += trailing.eq(0)
            with m.Elif(step & end & ahead):
                m.d.sync += trailing.eq(1)
            with m.If(ahead):
                m.d.comb += beat_now.eq(before)

        # The second beat of a block whose reads must follow each other is not to wait.
        waits = Signal()
        has_beat = Signal()  # with this step
        pair = strided & ~late & (last_position == 1)
        m.d.comb += waits.eq(
            Mux(
                ahead,
                beat_now.tile_end,
                Mux(pair, position == 0, last_step) & last_block & last_tap,
            )
        )
        occupied = Signal()
        ready = Signal()
        m.d.comb += [
            step.eq(
                active
                & ~stopped
                & ~(waits & ~now.hold & occupied)
                & (self.grant | ~reading)
            ),
            has_beat.eq(step & beat_now.has_beat),
            ready.eq((~active & ~setting) | (step & beat_now.end) | defined),
            self.instruction.ready.eq(self.admit & ~stopped & ready),
            accept.eq(self.instruction.valid & self.instruction.ready & ~is_window),
            define.eq(self.instruction.valid & self.instruction.ready & is_window),
            self.undrained.eq(offered.hold | is_window),
        ]  # fmt: skip

        def inner_outer(of_rows, of_columns, columns_inner):
            """Sort what belongs to rows and columns into inner and outer loop."""
            return (
                Mux(columns_inner, of_columns, of_rows),
                Mux(columns_inner, of_rows, of_columns),
            )

        inner_tiles, _ = inner_outer(now.row_tiles, now.column_tiles, now.columns_inner)
        later_taps = Mux(now.windowed, more_taps, 0)
        with m.If(step):
            m.d.sync += [position.eq(position + 1), last_step.eq(position + 1 == last_position)]
            with m.If(has_beat):
                m.d.sync += first_tile_beat.eq(beat_now.tile_end)
            with m.If(block_end):
                m.d.sync += [
                    position.eq(0), last_step.eq(one_step),
                    blocks_left.eq(blocks_left - 1), last_block.eq(blocks_left == 1),
                ]  # fmt: skip
            with m.If(tap_end):
                m.d.sync += [
                    blocks_left.eq(now.blocks - 1), last_block.eq(one_block),
                    taps_left.eq(taps_left - 1), last_tap.eq(taps_left == 1),
                ]  # fmt: skip
            with m.If(tile_end):
                m.d.sync += [
                    taps_left.eq(later_taps), last_tap.eq(one_tap),
                    inner_left.eq(inner_left - 1), last_inner.eq(inner_left == 1),
                ]  # fmt: skip
                with m.If(last_inner):
                    m.d.sync += [
                        inner_left.eq(inner_tiles - 1), last_inner.eq(one_inner),
                        outer_left.eq(outer_left - 1), last_outer.eq(outer_left == 1),
                    ]  # fmt: skip
            with m.If(beat_now.end):
                m.d.sync += active.eq(0)
        offered_inner, offered_outer = inner_outer(
            offered.row_tiles, offered.column_tiles, offered.columns_inner
        )
        offered_strided = offered.windowed & (window.stride == 2)
        offered_late = offered_strided & (offered.beats == 1)
        with m.If(accept):
            m.d.sync += [
                active.eq(1),
                position.eq(0),
                first_tile_beat.eq(1),
                last_position.eq(Mux(offered_late, offered.beats, offered.beats - 1)),
                strided.eq(offered_strided),
                late.eq(offered_late),
                ahead.eq(offered_strided & refusable & ~offered_late),
                taps_left.eq(Mux(offered.windowed, more_taps, 0)),
                blocks_left.eq(offered.blocks - 1),
                inner_left.eq(offered_inner - 1),
                outer_left.eq(offered_outer - 1),
                last_outer.eq(offered_outer == 1),
                *(
                    flag.eq(one)
                    for flags, one in (
                        ((last_step, one_step), ~offered_late & (offered.beats == 1)),
                        ((last_block, one_block), offered.blocks == 1),
                        ((last_tap, one_tap), ~offered.windowed | (more_taps == 0)),
                        ((last_inner, one_inner), offered_inner == 1),
                    )
                    for flag in flags
                ),
            ]

        # Tiles that are drained end several cycles apart, so what belongs to the drain moves on in
        # the cycle after the end of one. That of an instruction's last tile moves nothing.
        tile_ended, inner_ended = Signal(), Signal()
        m.d.sync += [
            tile_ended.eq(step & beat_now.tile_end & ~accept),
            inner_ended.eq(beat_now.last_inner),
        ]

        def pointer(start, row_step, column_step, name, bits=16, at=(tile_ended, inner_ended)):
            """Return a per-tile address and its successor; one bit more shows every overflow.

            It moves on at the end of a tile (``at``), perhaps the last one of the inner loop.
            """
            tile_moves, last_inner = at
            here = Signal(bits + 1, name=name, reset_less=True)
            # in the first tile of the inner loop
            outer = Signal(bits + 1, name=f"{name}_outer", reset_less=True)
            follower = Signal(bits + 1, name=f"{name}_next", reset_less=True)
            inner_step, outer_step = inner_outer(row_step, column_step, now.columns_inner)
            m.d.comb += follower.eq(
                Mux(last_inner, outer, here) + Mux(last_inner, outer_step, inner_step)
            )
            with m.If(tile_moves):
                m.d.sync += here.eq(follower)
                with m.If(last_inner):
                    m.d.sync += outer.eq(follower)
            with m.If(accept):
                m.d.sync += [here.eq(start), outer.eq(start)]
            return here, follower

        row_restart, row_advance = Signal(), Signal()  # with the next step
        m.d.comb += [
            row_restart.eq(accept | (step & tile_end & ~end & last_inner & ~now.columns_inner)),
            row_advance.eq(step & tile_end & ~end & (last_inner == now.columns_inner)),
        ]
        # With windows a row tile at the end of an output line steps further.
        line_left = Signal(10, reset_less=True)
        long_stride = Signal(17)
        line_end = now.windowed & (window.line_tiles != 0) & (line_left == 0)
        row_stride = Mux(line_end, long_stride, now.a_row_stride)
        with m.If(row_restart | (row_advance & (line_left == 0))):
            m.d.sync += line_left.eq(window.line_tiles - 1)
        with m.Elif(row_advance):
            m.d.sync += line_left.eq(line_left - 1)
        with m.If(accept):
            m.d.sync += long_stride.eq(offered.a_row_stride + window.line_stride)

        words = Signal(range(columns_words + 1))  # that are drained per tile
        drained_columns = Signal(range(columns + 1))
        offered_words = Mux(offered.words == 0, columns_words, offered.words)
        m.d.comb += drained_columns.eq(words * config.block)
        with m.If(accept):
            m.d.sync += words.eq(offered_words)

        base, next_base = pointer(
            offered.a, row_stride, now.a_column_stride, "base", at=(step & tile_end, last_inner)
        )
        out, _ = pointer(offered.out, now.out_row_stride, words, "out")
        residual, _ = pointer(offered.residual_address, now.residual_row_stride, words, "residual")
        parameter, _ = pointer(offered.parameter, 0, drained_columns, "parameter")
        lane, _ = pointer(offered.lane, 1, 0, "lane", bits=10)
        maximum, _ = pointer(offered.maximum, 1, 0, "maximum", bits=10)

        activation = Signal(17, reset_less=True)
        weight = Signal(17, reset_less=True)
        # where the weights of the inner loop (or of the whole row) start
        rewind = Signal(17, reset_less=True)
        with m.If(step):
            with m.If(block_end):
                m.d.sync += activation.eq(activation + 1)
            with m.If(tap_end):
                m.d.sync += activation.eq(base)
            with m.If(tile_end):
                m.d.sync += activation.eq(next_base)
        with m.If(has_beat):
            # Inner columns: rows run on inside the inner loop and are rewound after it. Inner
            # rows: the other way round.
            with m.If(beat_now.tile_end & (beat_now.last_inner == now.columns_inner)):
                m.d.sync += weight.eq(rewind)
            with m.Else():
                m.d.sync += weight.eq(weight + 1)
                with m.If(beat_now.tile_end & ~now.columns_inner):
                    m.d.sync += rewind.eq(weight + 1)
        with m.If(accept):
            m.d.sync += [
                activation.eq(offered.a),
                weight.eq(offered.w),
                rewind.eq(offered.w),
            ]

        finish = Signal()
        finished = Signal()  # in the cycle before
        activation_fault = Signal()
        row_fault = Signal()
        tile_fault = Signal()
        fault, faulty = Signal(), Signal()  # in this cycle, in the one before
        # Last addresses from which a whole tile can be written or read.
        last_out, last_residual, last_parameter = (Signal(signed(18)) for _ in range(3))
        out_depth = Mux(offered.wide, config.wide_depth, config.activation_depth)
        residual_depth = Mux(offered.residual_narrow, config.activation_depth, config.wide_depth)
        with m.If(accept):
            m.d.sync += [
                last_out.eq(out_depth - offered_words),
                last_residual.eq(residual_depth - offered_words),
                last_parameter.eq(config.parameter_depth - offered_words * config.block),
            ]
        m.d.comb += [
            self.reads.eq(step & reading),
            finish.eq(step & beat_now.tile_end & ~now.hold),
            activation_fault.eq(~now.windowed & (activation >= config.activation_depth)),
            row_fault.eq(
                Mux(
                    now.operand,
                    _beyond(weight, config.operand_depth),
                    _beyond(weight, weight_depth),
                )
            ),
            tile_fault.eq(
                (parameter > last_parameter)
                | (now.lane_scaled & _beyond(lane, config.lane_depth))
                | (now.keep_maximum & _beyond(maximum, config.lane_depth))
                | (now.residual & (residual > last_residual))
                | (out > last_out)
            ),
            fault.eq(
                (self.reads & activation_fault)
                | (has_beat & row_fault)
                | (finish & tile_fault)
            ),
        ]  # fmt: skip
        m.d.sync += finished.eq(finish)
        with m.If(finish):
            m.d.sync += occupied.eq(1)
        with m.Elif(self.release):
            m.d.sync += occupied.eq(0)

        beat = Signal(BEAT)
        row = Signal(16)
        held = Signal()
        m.d.comb += [
            self.active.eq(active | setting),
            self.step.eq(step),
            held.eq((step & beat_now.tile_end & now.hold) | defined),
            row.eq(weight),
            beat.valid.eq(has_beat),
            beat.load.eq(has_beat & beat_now.first_beat),
            beat.block_end.eq(beat_now.block_end),
            beat.clear.eq(first_tile_beat & ~now.accumulate),
            beat.finish.eq(finish),
            beat.operand.eq(now.operand),
            beat.counted.eq(now.counted | now.operand),
            beat.position.eq(beat_now.position),
        ]
        cycles = window_cycles(config)
        row = delay(m, row, cycles, name="row")
        awake = valid_chain(m, active, cycles, "active")[-1]
        m.d.comb += [
            self.beat.eq(valid_chain(m, beat, cycles, "beat")[-1]),
            self.held.eq(valid_chain(m, held, cycles, "held")[-1]),
            self.weight.address.eq(row),
            self.weight.enable.eq(awake),
            self.operand.address.eq(row),
            self.operand.enable.eq(awake),
        ]
        if config.tap_depth:
            m.submodules.window = gather = Window(config)
            connect(m, gather.activation, flipped(self.activation))
            connect(m, flipped(self.tap_write), gather.tap_write)
            tap = Signal(10)
            with m.If(step & tap_end):
                m.d.sync += tap.eq(Mux(tile_end, window.tap, tap + 1))
            with m.If(accept):
                m.d.sync += tap.eq(window.tap)
            m.d.comb += [
                gather.gather.valid.eq(self.reads & ~activation_fault),
                gather.gather.address.eq(activation),
                gather.gather.windowed.eq(now.windowed),
                gather.gather.tap.eq(tap),
                gather.gather.strided.eq(strided),
                gather.gather.upper.eq(position != 0),
                gather.gather.late.eq(late | refusable),
                gather.gather.pool.eq(pools),
                gather.gather.fold.eq(pools & (taps_left != later_taps)),
                gather.row_step.restart.eq(row_restart),
                gather.row_step.advance.eq(row_advance),
                gather.define.eq(define),
                gather.definition.eq(offered_window),
                defined.eq(gather.defined),
                self.word.eq(gather.word),
            ]
        else:
            m.d.comb += [
                self.activation.address.eq(activation),
                # A port of two cores is for the one that reads.
                self.activation.enable.eq(self.reads if config.lut_columns else active),
                self.word.eq(self.activation.data),
            ]
        inner_is_first = Signal()  # the inner loop is in its first round
        with m.If(tile_ended):
            m.d.sync += inner_is_first.eq(inner_ended)
        with m.If(accept):
            m.d.sync += inner_is_first.eq(1)
        tile = Signal(TILE, reset_less=True)
        m.d.comb += [
            self.tile.payload.eq(tile),
            self.tile.valid.eq(finished & ~faulty),
        ]
        m.d.sync += [
            tile.parameter.eq(parameter),
            tile.lane_scaled.eq(now.lane_scaled),
            tile.lane.eq(lane),
            tile.residual.eq(now.residual),
            tile.residual_narrow.eq(now.residual_narrow),
            tile.residual_address.eq(residual),
            tile.residual_shift.eq(now.residual_shift + 8),
            tile.function.eq(now.function),
            tile.wide.eq(now.wide),
            tile.out.eq(out),
            tile.keep_maximum.eq(now.keep_maximum),
            tile.first_column.eq(inner_is_first),  # maxima are kept with inner columns only
            tile.last_column.eq(beat_now.last_inner),
            tile.maximum.eq(maximum),
            tile.last_drained.eq(drained_columns - 1),
            tile.lut.eq(is_lut),
            tile.last.eq(beat_now.end),
        ]

        # A fault is of an older instruction than the one that may be accepted in its cycle. What
        # kind of error it is, is found out from registers: a fault comes late in its cycle.
        refused, illegal = Signal(), Signal()
        fault_index, accepted_index = (Signal(INDEX_BITS, reset_less=True) for _ in range(2))
        m.d.comb += [
            refused.eq(
                (accept & illegal_gemm(offered, config, self._engine, known, more_taps))
                | (define & illegal_window(offered_window, config))
            ),
            stopped.eq(failed | faulty | illegal),
            self.error.valid.eq(faulty | illegal),
            self.error.cause.eq(Mux(faulty, Cause.ADDRESS_OUT_OF_RANGE, Cause.ILLEGAL_INSTRUCTION)),
            self.error.index.eq(Mux(faulty, fault_index, accepted_index)),
        ]
        m.d.sync += [
            failed.eq(stopped),
            faulty.eq(fault),
            illegal.eq(refused),
            fault_index.eq(index),
            accepted_index.eq(self.instruction.payload.index),
        ]
        return m


def _beyond(address, depth):
    """Return whether a memory of ``depth``, which may be 0, has no such address."""
    return address >= depth if depth else Const(1)
