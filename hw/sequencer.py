"""Loop nest of the GEMM core: which beat in which cycle."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from twillcore.config import Config
from twillcore.hw.layouts import INDEX_BITS, ISSUED, instruction_layout
from twillcore.hw.ports import ERROR
from twillcore.isa import Cause, Function, Opcode

#: What the array does with the memory words whose addresses go out in the same cycle.
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
    "residual_shift": 5,  # 8 more than the instruction's, so not negative: 0..23
    "function": 2,
    "wide": 1,
    "out": 16,
    "keep_maximum": 1,
    "first_column": 1,  # first tile of its row tile
    "last_column": 1,  # last tile of its row tile
    "maximum": 10,
    "last": 1,  # last tile of its instruction
})  # fmt: skip

ADDRESS_PORT = wiring.Signature({"address": Out(16), "enable": Out(1)})


class Sequencer(wiring.Component):
    """Turn GEMM instructions into beats, one per cycle.

    The first beat is issued in the cycle after an instruction is taken, and the next instruction is
    taken in the cycle of the last beat: there is no bubble between blocks, tiles and instructions.
    The only stall is the last beat of a tile, which waits while the shadow is ``occupied``: from
    the last beat of a tile to the drain's ``release``. It is visible as ``active & ~beat.valid``.

    Addresses leave in the cycle of their beat, straight from registers; an activation word is read
    in the first beat of its block only. An address beyond its memory is not used: it stops the
    sequencer for good. ``error`` is raised in the cycle after the faulty beat or acceptance.

    Members
    -------
    instruction : In(stream.Signature(ISSUED))
    admit : In(1)
        Instructions may be taken; the retirement logic has room.
    activation, weight, operand : Out(ADDRESS_PORT)
    beat : Out(BEAT)
        In the cycle of the addresses, one before the data.
    tile : Out
        ``valid`` with the last beat of every tile that is drained.
    release : In(1)
        From the next cycle on, the last beat of another tile may be issued.
    active : Out(1)
        An instruction has beats left.
    held : Out(1)
        Last beat of an instruction that drains nothing.
    error : Out(ERROR)
    """

    def __init__(self, config: Config):
        self._config = config
        super().__init__({
            "instruction": In(stream.Signature(ISSUED)),
            "admit": In(1),
            "activation": Out(ADDRESS_PORT),
            "weight": Out(ADDRESS_PORT),
            "operand": Out(ADDRESS_PORT),
            "beat": Out(BEAT),
            "tile": Out(wiring.Signature({"valid": Out(1), "payload": Out(TILE)})),
            "release": In(1),
            "active": Out(1),
            "held": Out(1),
            "error": Out(ERROR),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        config = self._config
        layout = instruction_layout(Opcode.GEMM)

        offered = data.View(layout, self.instruction.payload.word)
        accept = Signal()
        stopped = Signal()  # after an error, until reset
        active = Signal()
        now = Signal(layout)  # the instruction in execution
        index = Signal(INDEX_BITS)
        with m.If(accept):
            m.d.sync += [now.eq(offered), index.eq(self.instruction.payload.index)]

        # Loop counters: the beat counts up since it is a position, the others count what is left.
        position = Signal(4)
        last_position = Signal(4)
        blocks_left = Signal(12)
        inner_left = Signal(12)
        outer_left = Signal(12)
        last_beat = Signal()
        last_block = Signal()
        last_inner = Signal()
        tile_end = Signal()
        end = Signal()
        first_tile_beat = Signal()
        m.d.comb += [
            last_beat.eq(position == last_position),
            last_block.eq(blocks_left == 0),
            last_inner.eq(inner_left == 0),
            tile_end.eq(last_beat & last_block),
            end.eq(tile_end & last_inner & (outer_left == 0)),
        ]

        occupied = Signal()
        issue = Signal()
        m.d.comb += [
            issue.eq(active & ~stopped & ~(tile_end & ~now.hold & occupied)),
            self.instruction.ready.eq(self.admit & ~stopped & (~active | (issue & end))),
            accept.eq(self.instruction.valid & self.instruction.ready),
        ]

        def inner_outer(of_rows, of_columns, columns_inner):
            """Sort what belongs to rows and columns into inner and outer loop."""
            return (
                Mux(columns_inner, of_columns, of_rows),
                Mux(columns_inner, of_rows, of_columns),
            )

        inner_tiles, _ = inner_outer(now.row_tiles, now.column_tiles, now.columns_inner)
        with m.If(issue):
            m.d.sync += [position.eq(position + 1), first_tile_beat.eq(tile_end)]
            with m.If(last_beat):
                m.d.sync += [position.eq(0), blocks_left.eq(blocks_left - 1)]
            with m.If(tile_end):
                m.d.sync += [blocks_left.eq(now.blocks - 1), inner_left.eq(inner_left - 1)]
                with m.If(last_inner):
                    m.d.sync += [inner_left.eq(inner_tiles - 1), outer_left.eq(outer_left - 1)]
            with m.If(end):
                m.d.sync += active.eq(0)
        offered_inner, offered_outer = inner_outer(
            offered.row_tiles, offered.column_tiles, offered.columns_inner
        )
        with m.If(accept):
            m.d.sync += [
                active.eq(1),
                position.eq(0),
                first_tile_beat.eq(1),
                last_position.eq(offered.beats - 1),
                blocks_left.eq(offered.blocks - 1),
                inner_left.eq(offered_inner - 1),
                outer_left.eq(offered_outer - 1),
            ]

        def pointer(start, row_step, column_step, name, bits=16):
            """Return a per-tile address and its successor; one bit more shows every overflow."""
            here = Signal(bits + 1, name=name)
            outer = Signal(bits + 1, name=f"{name}_outer")  # in the first tile of the inner loop
            follower = Signal(bits + 1, name=f"{name}_next")
            inner_step, outer_step = inner_outer(row_step, column_step, now.columns_inner)
            m.d.comb += follower.eq(
                Mux(last_inner, outer, here) + Mux(last_inner, outer_step, inner_step)
            )
            with m.If(issue & tile_end):
                m.d.sync += here.eq(follower)
                with m.If(last_inner):
                    m.d.sync += outer.eq(follower)
            with m.If(accept):
                m.d.sync += [here.eq(start), outer.eq(start)]
            return here, follower

        _, next_base = pointer(offered.a, now.a_row_stride, now.a_column_stride, "base")
        out, _ = pointer(offered.out, now.out_row_stride, config.words_per_tile, "out")
        residual, _ = pointer(
            offered.residual_address, now.residual_row_stride, config.words_per_tile, "residual"
        )
        parameter, _ = pointer(offered.parameter, 0, config.dsp_columns, "parameter")
        lane, _ = pointer(offered.lane, 1, 0, "lane", bits=10)
        maximum, _ = pointer(offered.maximum, 1, 0, "maximum", bits=10)

        activation = Signal(17)
        weight = Signal(17)
        rewind = Signal(17)  # where the weights of the inner loop (or of the whole row) start
        with m.If(issue):
            with m.If(last_beat):
                m.d.sync += activation.eq(Mux(tile_end, next_base, activation + 1))
            # Inner columns: rows run on inside the inner loop and are rewound after it. Inner
            # rows: the other way round.
            with m.If(tile_end & (last_inner == now.columns_inner)):
                m.d.sync += weight.eq(rewind)
            with m.Else():
                m.d.sync += weight.eq(weight + 1)
                with m.If(tile_end & ~now.columns_inner):
                    m.d.sync += rewind.eq(weight + 1)
        with m.If(accept):
            m.d.sync += [
                activation.eq(offered.a),
                weight.eq(offered.w),
                rewind.eq(offered.w),
            ]

        load = Signal()
        finish = Signal()
        drained = Signal()  # finish, and no address is out of range
        activation_fault = Signal()
        row_fault = Signal()
        tile_fault = Signal()
        fault = Signal()
        words = config.words_per_tile
        m.d.comb += [
            load.eq(issue & (position == 0)),
            finish.eq(issue & tile_end & ~now.hold),
            activation_fault.eq(activation >= config.activation_depth),
            row_fault.eq(
                Mux(now.operand, weight >= config.operand_depth, weight >= config.weight_depth)
            ),
            tile_fault.eq(
                (parameter > config.parameter_depth - config.dsp_columns)
                | (now.lane_scaled & (lane >= config.lane_depth))
                | (now.keep_maximum & (maximum >= config.lane_depth))
                | (now.residual & (residual > config.wide_depth - words))
                | Mux(
                    now.wide, out > config.wide_depth - words, out > config.activation_depth - words
                )
            ),
            fault.eq((load & activation_fault) | (issue & row_fault) | (finish & tile_fault)),
            drained.eq(finish & ~fault),
        ]
        with m.If(drained):
            m.d.sync += occupied.eq(1)
        with m.Elif(self.release):
            m.d.sync += occupied.eq(0)

        m.d.comb += [
            self.active.eq(active),
            self.held.eq(issue & tile_end & now.hold),
            self.activation.address.eq(activation),
            self.activation.enable.eq(load & ~activation_fault),
            self.weight.address.eq(weight),
            self.weight.enable.eq(issue & ~now.operand & ~row_fault),
            self.operand.address.eq(weight),
            self.operand.enable.eq(issue & now.operand & ~row_fault),
            self.beat.valid.eq(issue),
            self.beat.load.eq(load),
            self.beat.block_end.eq(last_beat),
            self.beat.clear.eq(first_tile_beat & ~now.accumulate),
            self.beat.finish.eq(finish),
            self.beat.operand.eq(now.operand),
            self.beat.counted.eq(now.counted | now.operand),
            self.beat.position.eq(position),
            self.tile.valid.eq(drained),
        ]
        inner_is_first = Signal()  # the inner loop is in its first round
        with m.If(issue & tile_end):
            m.d.sync += inner_is_first.eq(last_inner)
        with m.If(accept):
            m.d.sync += inner_is_first.eq(1)
        tile = self.tile.payload
        m.d.comb += [
            tile.parameter.eq(parameter),
            tile.lane_scaled.eq(now.lane_scaled),
            tile.lane.eq(lane),
            tile.residual.eq(now.residual),
            tile.residual_address.eq(residual),
            tile.residual_shift.eq(now.residual_shift + 8),
            tile.function.eq(now.function),
            tile.wide.eq(now.wide),
            tile.out.eq(out),
            tile.keep_maximum.eq(now.keep_maximum),
            tile.first_column.eq(inner_is_first),  # maxima are kept with inner columns only
            tile.last_column.eq(last_inner),
            tile.maximum.eq(maximum),
            tile.last.eq(end),
        ]

        m.d.sync += self.error.valid.eq(0)
        with m.If(fault):  # of an older instruction than the one that may be accepted now
            m.d.sync += [
                stopped.eq(1),
                self.error.valid.eq(1),
                self.error.cause.eq(Cause.ADDRESS_OUT_OF_RANGE),
                self.error.index.eq(index),
            ]
        with m.Elif(accept & _illegal(offered, config)):
            m.d.sync += [
                stopped.eq(1),
                self.error.valid.eq(1),
                self.error.cause.eq(Cause.ILLEGAL_INSTRUCTION),
                self.error.index.eq(self.instruction.payload.index),
            ]
        return m


def _illegal(offered, config):
    """Return whether an operand is one that no GEMM may have."""
    several_tiles = (offered.row_tiles != 1) | (offered.column_tiles != 1)
    return (
        (offered.opcode != Opcode.GEMM)
        | (offered.row_tiles == 0)
        | (offered.column_tiles == 0)
        | (offered.blocks == 0)
        | (offered.beats == 0)
        | (offered.beats > config.block)
        | (offered.keep_maximum & ~offered.columns_inner)
        | (offered.function > max(Function))
        | (offered.residual & (offered.residual_shift < -8))
        | ((offered.hold | offered.accumulate) & several_tiles)
    )
