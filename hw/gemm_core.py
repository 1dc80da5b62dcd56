"""One GEMM core: sequencer, array and retirement."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from twillcore.config import Config
from twillcore.hw.clocks import awake_while
from twillcore.hw.drain import Drain, drain_source
from twillcore.hw.dsp_array import DspArray
from twillcore.hw.layouts import operand_row, plane_row, weight_row
from twillcore.hw.lut_array import LutArray, beat_to_shadow, beat_to_sum
from twillcore.hw.ports import Activity, engine_members, read_port, window_port
from twillcore.hw.sequencer import Sequencer
from twillcore.hw.window import tap_port
from twillcore.isa import Engine


class GemmCore(wiring.Component):
    """Execute the instructions of engine GEMM or LUT up to the sums of every tile.

    An instruction taken in cycle s takes its first step in s + 1, one step per cycle; the next
    instruction can be taken in the cycle of the last step. A beat is issued ``window_cycles`` after
    its step. An instruction retires in the cycle in which its last word is written (``done``), or,
    if it drains nothing, in which its last beat has been added (:attr:`to_sum` cycles after its
    issue; for WINDOW as if its last cycle were a step); never in the cycle of the one before. With
    :attr:`IN_FLIGHT` instructions that have not retired no other is taken (only a series of held
    ones behind a drain can come so far).

    Parameters
    ----------
    config : Config
    engine : Engine
        GEMM: the DSP core. LUT: the LUT core, whose reads of activations may be refused.

    Members
    -------
    those of every engine
    activation : Out(window_port(config))
    grant, reads : In(1), Out(1)
        The step may read an activation word, and does. The LUT core's only.
    weight : Out(read_port)
    operand : Out(read_port)
        The DSP core's only.
    tap_write : In(tap_port(config))
        With windows only.
    drain : Out(drain_source(config))
    """

    IN_FLIGHT = 16

    def __init__(self, config: Config, engine: Engine):
        self._config, self._engine = config, engine
        if engine == Engine.LUT:
            row = plane_row(config)
            self.to_sum, to_shadow = beat_to_sum(config.block), beat_to_shadow(config.block)
        else:
            row = weight_row(config)
            self.to_sum, to_shadow = DspArray.BEAT_TO_SUM, DspArray.BEAT_TO_SHADOW
            # Sums of a tile that starts to drain as early as it may stand in the shadow one cycle
            # before the drain takes column 0.
            assert to_shadow <= Drain.BEAT_TO_START + 2
        members = engine_members() | {
            "activation": Out(window_port(config)),
            "grant": In(1),
            "reads": Out(1),
            "weight": Out(read_port(16, row)),
            "drain": Out(drain_source(config)),
        }
        if engine == Engine.GEMM:
            members["operand"] = Out(read_port(16, operand_row(config)))
        if config.tap_depth:
            members["tap_write"] = In(tap_port(config))
        super().__init__(members)
        self.awake = Signal()  # of gated machines: twillcore.hw.clocks

    def elaborate(self, platform):
        m = Module()
        is_lut = self._engine == Engine.LUT
        m.submodules.sequencer = sequencer = Sequencer(self._config, self._engine, refusable=is_lut)
        m.submodules.array = array = (LutArray if is_lut else DspArray)(self._config)

        connect(m, flipped(self.instruction), sequencer.instruction)
        connect(m, sequencer.error, flipped(self.error))
        connect(m, sequencer.activation, flipped(self.activation))
        if self._config.tap_depth:
            connect(m, flipped(self.tap_write), sequencer.tap_write)
        for name in ("weight",) if is_lut else ("weight", "operand"):
            mine, theirs = getattr(self, name), getattr(sequencer, name)
            m.d.comb += [
                mine.address.eq(theirs.address),
                mine.enable.eq(theirs.enable),
                getattr(array, name).eq(mine.data),
            ]
        m.d.comb += [
            sequencer.grant.eq(self.grant),
            self.reads.eq(sequencer.reads),
            array.beat.eq(sequencer.beat),
            array.activation.eq(sequencer.word),
            array.shift.eq(self.drain.shift),
            self.drain.tile.valid.eq(sequencer.tile.valid),
            self.drain.tile.payload.eq(sequencer.tile.payload),
            self.drain.column.eq(array.column),
            sequencer.release.eq(self.drain.release),
        ]

        # Retirement: what kind of end each instruction that has not retired waits for, the oldest
        # at bit ``in_flight - 1``, and how many ends of each kind have come.
        accept = self.instruction.valid & self.instruction.ready
        held = Signal(self.IN_FLIGHT)
        in_flight = Signal(range(self.IN_FLIGHT + 1))
        assert 1 << (len(in_flight) - 1) == self.IN_FLIGHT
        m.d.comb += sequencer.admit.eq(~in_flight[-1])  # it is less than IN_FLIGHT
        with m.If(accept):
            m.d.sync += held.eq((held << 1) | sequencer.undrained)
        m.d.sync += in_flight.eq(in_flight + accept - self.retire)

        held_end = [sequencer.held]
        for cycle in range(self.to_sum):
            later = Signal(name=f"held_end_{cycle + 1}")
            m.d.sync += later.eq(held_end[-1])
            held_end.append(later)

        oldest_held = held.bit_select((in_flight - 1)[:-1], 1)
        for kind, end in ((1, held_end[-1]), (0, self.drain.done)):
            ended = Signal(
                range(self.IN_FLIGHT + 1), name="ended_held" if kind else "ended_drained"
            )
            retire = Signal(name="retire_held" if kind else "retire_drained")
            m.d.comb += retire.eq((in_flight != 0) & (oldest_held == kind) & (end | (ended != 0)))
            m.d.sync += ended.eq(ended + end - retire)
            with m.If(retire):
                m.d.comb += self.retire.eq(1)

        working = self.instruction.valid | sequencer.active | (in_flight != 0) | array.awake
        if self._config.tap_depth:
            working |= self.tap_write.enable
        awake_while(m, platform, self.awake, working)
        with m.If(sequencer.step):
            m.d.comb += self.activity.eq(Activity.BUSY)
        with m.Elif(sequencer.active):
            m.d.comb += self.activity.eq(Activity.BLOCKED)
        with m.Elif(in_flight != 0):
            m.d.comb += self.activity.eq(Activity.ENDING)
        return m
