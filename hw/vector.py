"""The vector engine: SOFTMAX, LAYER_NORM and ELEMENTWISE."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import Out

from twillcore.config import ADDRESS_BITS, FRAME_CYCLES, Config
from twillcore.hw.clocks import awake_while
from twillcore.hw.elementwise import Elementwise
from twillcore.hw.layer_norm import LayerNorm
from twillcore.hw.layouts import (
    ISSUED,
    LANE_SCALE,
    PARAMETER_LAYOUT,
    activation_word,
    instruction_layout,
    wide_word,
)
from twillcore.hw.norm_statistics import NormStatistics
from twillcore.hw.ports import Activity, engine_members, read_port, write_port
from twillcore.hw.reciprocal import Reciprocal
from twillcore.hw.requantize import Requantize
from twillcore.hw.softmax import LANE_BITS, Softmax
from twillcore.hw.word_reader import WordReader
from twillcore.hw.word_writer import WordWriter
from twillcore.isa import Cause, Opcode
from twillcore.timing import ActivationSlot, WideReadSlot, WideWriteSlot

READ_A = ActivationSlot.VECTOR_READ_A
READ_B = ActivationSlot.VECTOR_READ_B
WRITE = ActivationSlot.VECTOR_WRITE
assert (READ_A, READ_B) == (WideReadSlot.VECTOR_READ_A, WideReadSlot.VECTOR_READ_B)
assert WRITE == WideWriteSlot.VECTOR_WRITE


def _frames(cycles):
    return -(-cycles // FRAME_CYCLES)


#: Least number of frames from row tile to row tile, set by what is bit-serial.
SOFTMAX_FRAMES = _frames(Reciprocal.LATENCY)
STATISTICS_FRAMES = _frames(NormStatistics.SPACING)

#: Cycles from reading a word of ``block`` channels to writing it, less ``block``.
SOFTMAX_WORD_CYCLES = WordReader.READ_LATENCY + Softmax.LATENCY
NORM_WORD_CYCLES = WordReader.READ_LATENCY + LayerNorm.LATENCY + Requantize.LATENCY
ELEMENTWISE_WORD_CYCLES = WordReader.READ_LATENCY + Elementwise.LATENCY + Requantize.LATENCY

# Every path is as long as it must be for its words to be ready in the slot of the write.
for _slot, _cycles in (
    (READ_A, SOFTMAX_WORD_CYCLES),
    (READ_A, NORM_WORD_CYCLES),
    (READ_B, ELEMENTWISE_WORD_CYCLES),
):
    assert (_slot + _cycles - WRITE) % FRAME_CYCLES == 0
assert READ_B - READ_A == Elementwise.SKEW


class VectorEngine(wiring.Component):
    """Execute SOFTMAX, LAYER_NORM and ELEMENTWISE, one at a time, on all lanes in parallel.

    One channel of all lanes per cycle, so a word of 8 channels per frame, without gaps between
    words and row tiles. Timing is a closed formula: :func:`twillcore.sim.timing_vector.vector_end`.

    * SOFTMAX: the reciprocal of a row tile's sum overlaps with the next row tile.
    * LAYER_NORM: the second pass of a row tile (reading in slot A) overlaps with the first pass of
      the next one (slot B) and its root and reciprocal. Row tiles of an output may overwrite the
      same row tile's input, no other's.

    An instruction is accepted when the previous one has retired, or retires in this cycle; it is
    checked in the next cycle and started in the one after that. The output may be read by a client
    that starts after ``retire``. Row tiles whose words take fewer frames than
    :data:`SOFTMAX_FRAMES` or :data:`STATISTICS_FRAMES` take that many. ``error`` follows the
    acceptance of an illegal instruction by three cycles, and an access beyond a memory, which is
    not done, by one. After it the engine accepts nothing until reset.

    Without norm memory (``config.norm_depth == 0``) LAYER_NORM is illegal and has no hardware.

    Members
    -------
    phase, instruction, retire, activity, error
        As of every engine: :func:`twillcore.hw.ports.engine_members`.
    wide_read_a, wide_read_b, activation_read_a, activation_read_b : Out(read_port)
    wide_write, activation_write : Out(write_port)
        Used only in the vector engine's slots.
    norm, row_maximum : Out(read_port)
    lane_scale : Out(write_port)
        Memories that nobody else uses on this side.
    """

    def __init__(self, config: Config):
        self._config = config
        wide = read_port(ADDRESS_BITS, wide_word(config))
        activation = read_port(ADDRESS_BITS, activation_word(config))
        lanes = config.lanes
        super().__init__(engine_members() | {
            "wide_read_a": Out(wide),
            "wide_read_b": Out(wide),
            "activation_read_a": Out(activation),
            "activation_read_b": Out(activation),
            "wide_write": Out(write_port(ADDRESS_BITS, wide_word(config))),
            "activation_write": Out(write_port(ADDRESS_BITS, activation_word(config))),
            "norm": Out(read_port(ADDRESS_BITS, PARAMETER_LAYOUT)),
            "row_maximum": Out(read_port(LANE_BITS, data.ArrayLayout(signed(16), lanes))),
            "lane_scale": Out(write_port(LANE_BITS, data.ArrayLayout(LANE_SCALE, lanes))),
        })  # fmt: skip
        self.awake = Signal()  # of gated machines: twillcore.hw.clocks

    def elaborate(self, platform):
        m = Module()
        config = self._config

        m.submodules.reader_a = reader_a = WordReader(config, READ_A)
        m.submodules.reader_b = reader_b = WordReader(config, READ_B)
        m.submodules.wide_writer = wide_writer = WordWriter(config, 16, config.wide_depth)
        m.submodules.narrow_writer = narrow_writer = WordWriter(config, 8, config.activation_depth)
        m.submodules.reciprocal = reciprocal = Reciprocal(config.lanes)
        m.submodules.requantize = requantize = Requantize(config)
        m.submodules.softmax = softmax = Softmax(config)
        m.submodules.elementwise = elementwise = Elementwise(config)
        readers, writers = (reader_a, reader_b), (wide_writer, narrow_writer)

        # The instruction, and what the opcode makes of it.
        current = Signal(ISSUED, reset_less=True)
        busy = Signal()
        starting = Signal()
        failed = Signal()
        illegal = Signal()
        checked, was_illegal = Signal(), Signal()  # in the cycle after
        failing = Signal()  # from the next cycle on, it has failed
        start = Signal()
        is_softmax, is_norm, is_elementwise = Signal(), Signal(), Signal()
        soft, norm, element = (
            data.View(instruction_layout(opcode), current.word)
            for opcode in (Opcode.SOFTMAX, Opcode.LAYER_NORM, Opcode.ELEMENTWISE)
        )
        out_of_range = Signal()
        m.d.sync += [  # in time for the start
            is_softmax.eq(soft.opcode == Opcode.SOFTMAX),
            is_norm.eq(soft.opcode == Opcode.LAYER_NORM),
            is_elementwise.eq(soft.opcode == Opcode.ELEMENTWISE),
        ]
        m.d.comb += [
            self.instruction.ready.eq((~busy | self.retire) & ~failed),
            self.activity.eq(Mux(busy, Activity.BUSY, Activity.IDLE)),
            failing.eq((out_of_range | (checked & was_illegal)) & ~failed),
            start.eq(checked & ~was_illegal & ~failed),
        ]
        m.d.sync += [
            self.error.valid.eq(failing),
            self.error.cause.eq(
                Mux(checked & was_illegal, Cause.ILLEGAL_INSTRUCTION, Cause.ADDRESS_OUT_OF_RANGE)
            ),
            self.error.index.eq(current.index),
        ]
        awake_while(m, platform, self.awake, self.instruction.valid | busy | failed)
        m.d.sync += [starting.eq(0), checked.eq(starting), was_illegal.eq(illegal)]
        with m.If(self.instruction.valid & self.instruction.ready):
            m.d.sync += [current.eq(self.instruction.payload), busy.eq(1), starting.eq(1)]
        with m.Elif(self.retire):
            m.d.sync += busy.eq(0)
        with m.If(failing):  # an instruction that is taken in this cycle does not start
            m.d.sync += failed.eq(1)
        with m.If(failed):
            m.d.sync += busy.eq(0)

        m.d.comb += illegal.eq(1)
        with m.Switch(soft.opcode):
            with m.Case(Opcode.SOFTMAX):
                m.d.comb += illegal.eq(
                    ~soft.row_tiles.any()
                    | ~soft.words.any()
                    | (soft.shift < 23)
                    | ~soft.numerator[-1]
                )
            if config.norm_depth:
                with m.Case(Opcode.LAYER_NORM):
                    m.d.comb += illegal.eq(
                        ~norm.row_tiles.any()
                        | ~norm.words.any()
                        | ~norm.channels.any()
                        | (norm.channels > norm.words * config.block)
                        | ~(norm.wide | norm.narrow)
                    )
            with m.Case(Opcode.ELEMENTWISE):
                m.d.comb += illegal.eq(~element.row_tiles.any() | ~element.words.any())

        # Reading: A is the only reader, the second pass, or the first operand; B is the first pass
        # or the second operand.
        a_opened = Signal()
        statistics_pending = Signal()
        with m.If(start):
            m.d.sync += a_opened.eq(0)
        with m.Elif(reader_a.opening):
            m.d.sync += a_opened.eq(1)
        m.d.comb += [reader.phase.eq(self.phase) for reader in readers]
        m.d.comb += [
            reader_a.start.eq(start),
            reader_a.permit.eq(1),
            reader_b.permit.eq(1),
            reader_b.start.eq(start & ~is_softmax),
        ]
        for ports, reader in (
            ((self.wide_read_a, self.activation_read_a), reader_a),
            ((self.wide_read_b, self.activation_read_b), reader_b),
        ):
            wiring.connect(m, wiring.flipped(ports[0]), reader.wide_read)
            wiring.connect(m, wiring.flipped(ports[1]), reader.activation_read)
        wiring.connect(m, wiring.flipped(self.wide_write), wide_writer.write)
        wiring.connect(m, wiring.flipped(self.activation_write), narrow_writer.write)

        def tensor(unit, view, address, stride):
            """Give a reader or writer its operands."""
            m.d.comb += [
                unit.address.eq(view[address]),
                unit.row_stride.eq(view[stride]),
                unit.row_tiles.eq(view.row_tiles),
                unit.words.eq(view.words),
            ]

        with m.If(is_softmax):
            tensor(reader_a, soft, "a", "a_row_stride")
            tensor(narrow_writer, soft, "out", "out_row_stride")
            m.d.comb += [reader_a.wide.eq(1), reader_a.gap.eq(SOFTMAX_FRAMES - 1)]
        with m.Elif(is_norm):
            for reader in readers:
                tensor(reader, norm, "a", "a_row_stride")
                m.d.comb += reader.wide.eq(1)
            tensor(wide_writer, norm, "wide_out", "wide_out_row_stride")
            tensor(narrow_writer, norm, "out", "out_row_stride")
            m.d.comb += [
                reader_a.permit.eq(statistics_pending),
                reader_b.gap.eq(STATISTICS_FRAMES - 1),
            ]
        with m.Else():
            tensor(reader_a, element, "a", "a_row_stride")
            tensor(reader_b, element, "b", "b_row_stride")
            tensor(wide_writer, element, "out", "out_row_stride")
            tensor(narrow_writer, element, "out", "out_row_stride")
            m.d.comb += [
                reader_a.wide.eq(element.a_wide),
                reader_b.wide.eq(element.b_wide),
                # a start between the two slots must not let B run ahead
                reader_b.permit.eq(a_opened),
            ]

        # SOFTMAX
        m.d.comb += [
            softmax.start.eq(start & is_softmax),
            softmax.maximum.eq(soft.maximum),
            softmax.lane.eq(soft.lane),
            softmax.row_tiles.eq(soft.row_tiles),
            softmax.numerator.eq(soft.numerator),
            softmax.shift.eq(soft.shift),
            softmax.opening.eq(reader_a.opening & is_softmax),
            softmax.valid.eq(reader_a.valid & is_softmax),
            softmax.first.eq(reader_a.first),
            softmax.last.eq(reader_a.last),
            softmax.x.eq(reader_a.x),
            softmax.quotient.eq(reciprocal.quotient),
            softmax.leading_zeros.eq(reciprocal.leading_zeros),
            softmax.divided.eq(reciprocal.done & is_softmax),
        ]
        wiring.connect(m, wiring.flipped(self.row_maximum), softmax.row_maximum)
        wiring.connect(m, wiring.flipped(self.lane_scale), softmax.lane_scale)

        # ELEMENTWISE
        m.d.comb += [
            elementwise.op.eq(element.op),
            elementwise.a_multiplier.eq(element.a_multiplier),
            elementwise.b_multiplier.eq(element.b_multiplier),
            elementwise.a_valid.eq(reader_a.valid & is_elementwise),
            elementwise.b_valid.eq(reader_b.valid & is_elementwise),
            elementwise.a.eq(reader_a.x),
            elementwise.b.eq(reader_b.x),
        ]

        # Shared: reciprocal, the last shifts, and the writers
        m.d.comb += [
            reciprocal.start.eq(softmax.divide),
            reciprocal.divisor.eq(softmax.divisor),
            reciprocal.remainder.eq(softmax.remainder),
            requantize.valid.eq(elementwise.t_valid),
            requantize.t.eq(elementwise.t),
            requantize.shift.eq(element.shift),
            requantize.narrow_shift.eq(element.narrow_shift),
        ]
        m.d.comb += [writer.start.eq(start) for writer in writers]
        m.d.comb += [
            wide_writer.valid.eq(requantize.y_valid & Mux(is_norm, norm.wide, element.wide)),
            wide_writer.y.eq(requantize.wide),
            narrow_writer.valid.eq(
                softmax.e_valid | (requantize.y_valid & Mux(is_norm, norm.narrow, ~element.wide))
            ),
            narrow_writer.y.eq(Mux(is_softmax, softmax.e, requantize.narrow)),
        ]
        m.d.sync += self.retire.eq(
            Mux(is_softmax, softmax.done, wide_writer.done | narrow_writer.done) & ~failed
        )
        violations = [unit.out_of_range for unit in (*readers, *writers, softmax)]

        if config.norm_depth:
            m.submodules.norm_statistics = statistics = NormStatistics(config)
            m.submodules.layer_norm = layer_norm = LayerNorm(config)
            with m.If(start):
                m.d.sync += statistics_pending.eq(0)
            with m.Elif(statistics.ready):
                m.d.sync += statistics_pending.eq(1)
            with m.Elif(reader_a.opening):
                m.d.sync += statistics_pending.eq(0)
            m.d.comb += [
                statistics.channels.eq(norm.channels),
                statistics.epsilon.eq(norm.epsilon),
                statistics.valid.eq(reader_b.valid & is_norm),
                statistics.first.eq(reader_b.first),
                statistics.last.eq(reader_b.last),
                statistics.x.eq(reader_b.x),
                statistics.quotient.eq(reciprocal.quotient),
                statistics.leading_zeros.eq(reciprocal.leading_zeros),
                statistics.divided.eq(reciprocal.done & is_norm),
                layer_norm.channels.eq(norm.channels),
                layer_norm.parameter.eq(norm.parameter),
                layer_norm.opening.eq(reader_a.opening & is_norm),
                layer_norm.total.eq(statistics.total),
                layer_norm.multiplier.eq(statistics.multiplier),
                layer_norm.right.eq(statistics.right),
                layer_norm.valid.eq(reader_a.valid & is_norm),
                layer_norm.first.eq(reader_a.first),
                layer_norm.x.eq(reader_a.x),
            ]
            wiring.connect(m, wiring.flipped(self.norm), layer_norm.norm)
            with m.If(is_norm):
                m.d.comb += [
                    reciprocal.start.eq(statistics.divide),
                    reciprocal.divisor.eq(statistics.divisor),
                    reciprocal.remainder.eq(NormStatistics.DIVIDEND),
                    requantize.valid.eq(layer_norm.t_valid),
                    requantize.t.eq(layer_norm.t),
                    requantize.shift.eq(layer_norm.shift),
                    requantize.narrow_shift.eq(layer_norm.narrow_shift),
                ]
            violations.append(layer_norm.out_of_range)
        m.d.comb += out_of_range.eq(Cat(violations).any())
        return m
