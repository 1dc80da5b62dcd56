"""The GEMM engine on DSP multipliers."""

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from twillcore.config import Config
from twillcore.hw.drain import Drain, table_port
from twillcore.hw.dsp_array import DspArray
from twillcore.hw.layouts import (
    LANE_SCALE,
    PARAMETER_LAYOUT,
    activation_word,
    operand_row,
    weight_row,
    wide_word,
)
from twillcore.hw.ports import Activity, engine_members, gather_port, read_port, write_port
from twillcore.hw.sequencer import Sequencer
from twillcore.hw.window import tap_port


class GemmEngine(wiring.Component):
    """Execute GEMM instructions: sequencer, array and drain, and retirement in order.

    An instruction taken in cycle s takes its first step in s + 1, one step per cycle; the next
    instruction can be taken in the cycle of the last step. A beat is issued ``window_cycles`` after
    its step. An instruction retires in the cycle in which its last word is written, or, if it
    drains nothing, in which its last beat has been added (:attr:`BEAT_TO_SUM` cycles after its
    issue; for WINDOW as if its last cycle were a step); never in the cycle of the one before. With
    :attr:`IN_FLIGHT` instructions that have not retired no other is taken (only a series of held
    ones behind a drain can come so far). ``sim/timing_gemm.py`` has the whole timing as a function.

    Members: those of every engine, and the ports of its memories, which stand elsewhere. A read
    port's data is taken in the cycle after its enable.
    """

    BEAT_TO_SUM = DspArray.BEAT_TO_SUM
    BEAT_TO_START = Drain.BEAT_TO_START
    START_PHASE = Drain.START_PHASE
    DRAIN_LATENCY = Drain.LATENCY
    IN_FLIGHT = 16

    def __init__(self, config: Config):
        self._config = config
        lanes = config.lanes
        super().__init__(engine_members() | {
            "activation": Out(gather_port(config)),
            "weight": Out(read_port(16, weight_row(config))),
            "operand": Out(read_port(16, operand_row(config))),
            "parameter": Out(read_port(16, PARAMETER_LAYOUT)),
            "lane_scale": Out(read_port(10, data.ArrayLayout(LANE_SCALE, lanes))),
            "row_maximum": Out(write_port(10, data.ArrayLayout(signed(16), lanes))),
            "wide_read": Out(read_port(16, wide_word(config))),
            "activation_read": Out(read_port(16, activation_word(config))),
            "activation_write": Out(write_port(16, activation_word(config))),
            "wide_write": Out(write_port(16, wide_word(config))),
            "table": In(table_port(config)),
        } | ({"tap_write": In(tap_port(config))} if config.tap_depth else {}))  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        m.submodules.sequencer = sequencer = Sequencer(self._config)
        m.submodules.array = array = DspArray(self._config)
        m.submodules.drain = drain = Drain(self._config)

        # Sums of a tile that starts to drain as early as it may stand in the shadow one cycle
        # before the drain takes column 0.
        assert array.BEAT_TO_SHADOW <= drain.BEAT_TO_START + 2

        connect(m, flipped(self.instruction), sequencer.instruction)
        connect(m, sequencer.error, flipped(self.error))
        connect(m, sequencer.activation, flipped(self.activation))
        if self._config.tap_depth:
            connect(m, flipped(self.tap_write), sequencer.tap_write)
        for name in ("weight", "operand"):
            mine, theirs = getattr(self, name), getattr(sequencer, name)
            m.d.comb += [
                mine.address.eq(theirs.address),
                mine.enable.eq(theirs.enable),
                getattr(array, name).eq(mine.data),
            ]
        for name in (
            "parameter", "lane_scale", "wide_read", "activation_read", "activation_write",
            "wide_write", "row_maximum", "table",
        ):  # fmt: skip
            connect(m, getattr(drain, name), flipped(getattr(self, name)))
        m.d.comb += [
            sequencer.grant.eq(1),
            array.beat.eq(sequencer.beat),
            array.activation.eq(sequencer.word),
            array.shift.eq(drain.shift),
            drain.phase.eq(self.phase),
            drain.tile.valid.eq(sequencer.tile.valid),
            drain.tile.payload.eq(sequencer.tile.payload),
            drain.column.eq(array.column),
            sequencer.release.eq(drain.release),
        ]

        # Retirement: what kind of end each instruction that has not retired waits for, the oldest
        # at bit ``in_flight - 1``, and how many ends of each kind have come.
        accept = self.instruction.valid & self.instruction.ready
        held = Signal(self.IN_FLIGHT)
        in_flight = Signal(range(self.IN_FLIGHT + 1))
        m.d.comb += sequencer.admit.eq(in_flight != self.IN_FLIGHT)
        with m.If(accept):
            m.d.sync += held.eq((held << 1) | sequencer.undrained)
        m.d.sync += in_flight.eq(in_flight + accept - self.retire)

        held_end = [sequencer.held]
        for cycle in range(self.BEAT_TO_SUM):
            later = Signal(name=f"held_end_{cycle + 1}")
            m.d.sync += later.eq(held_end[-1])
            held_end.append(later)

        oldest_held = held.bit_select((in_flight - 1)[:-1], 1)
        for kind, end in ((1, held_end[-1]), (0, drain.done)):
            ended = Signal(
                range(self.IN_FLIGHT + 1), name="ended_held" if kind else "ended_drained"
            )
            retire = Signal(name="retire_held" if kind else "retire_drained")
            m.d.comb += retire.eq((in_flight != 0) & (oldest_held == kind) & (end | (ended != 0)))
            m.d.sync += ended.eq(ended + end - retire)
            with m.If(retire):
                m.d.comb += self.retire.eq(1)

        with m.If(sequencer.step):
            m.d.comb += self.activity.eq(Activity.BUSY)
        with m.Elif(sequencer.active):
            m.d.comb += self.activity.eq(Activity.BLOCKED)
        with m.Elif(in_flight != 0):
            m.d.comb += self.activity.eq(Activity.ENDING)
        return m
