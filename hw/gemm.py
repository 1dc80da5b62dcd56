"""The GEMM engines: the DSP core, the LUT core if there is one, and the drain that they share."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from twillcore.config import Config
from twillcore.hw.clocks import Part, awake_while, clocked_by
from twillcore.hw.drain import Drain, table_port
from twillcore.hw.dsp_array import DspArray
from twillcore.hw.gather import Gather
from twillcore.hw.gemm_core import GemmCore
from twillcore.hw.layouts import (
    LANE_SCALE,
    PARAMETER_LAYOUT,
    activation_word,
    operand_row,
    plane_row,
    weight_row,
    wide_word,
)
from twillcore.hw.ports import engine_members, gather_port, read_port, write_port
from twillcore.hw.window import tap_port
from twillcore.isa import Engine
from twillcore.timing import lut_phases, lut_slots


class GemmEngine(wiring.Component):
    """Execute the instructions of engines GEMM and LUT: one core each, and one drain.

    The cores work side by side (:class:`twillcore.hw.gemm_core.GemmCore`); they meet at the port of
    the activation memory, where a step of the LUT core waits in a cycle in which one of the DSP
    core reads (but not in the phases ``lut_phases``, if there are any), and in the drain.
    ``sim/timing_gemm.py`` has the timing of a core by itself as a function, ``sim/timing_cores.py``
    that of both.

    Members: those of engine GEMM, in ``lut`` those of engine LUT, and the ports of their memories,
    which stand elsewhere. A read port's data is taken in the cycle after its enable. ``lut`` and
    ``lut_weight`` exist with a LUT core only, ``tap_write`` with windows. Both cores read through
    ``activation``; but with ``lut_slots`` the LUT core has ``lut_activation``, and in these slots
    alone both may be enabled at once.
    """

    BEAT_TO_SUM = DspArray.BEAT_TO_SUM
    BEAT_TO_START = Drain.BEAT_TO_START
    START_PHASE = Drain.START_PHASE
    DRAIN_LATENCY = Drain.LATENCY
    IN_FLIGHT = GemmCore.IN_FLIGHT

    def __init__(self, config: Config):
        self._config = config
        lanes = config.lanes
        members = engine_members() | {
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
        }
        if config.tap_depth:
            members["tap_write"] = In(tap_port(config))
        if config.lut_columns:
            members |= {
                "lut": Out(wiring.Signature(engine_members())),
                "lut_weight": Out(read_port(16, plane_row(config))),
            }
        if lut_slots(config):
            members["lut_activation"] = Out(gather_port(config))
        super().__init__(members)
        # Of gated machines: twillcore.hw.clocks.
        self.awake, self.drain_awake, self.lut_awake, self.gather_awake = (
            Signal(name=name) for name in ("awake", "drain_awake", "lut_awake", "gather_awake")
        )

    def elaborate(self, platform):
        m = Module()
        config = self._config
        drain = Drain(config)
        m.submodules.drain = clocked_by(Part.DRAIN, drain, platform)
        awake_while(m, platform, self.drain_awake, drain.awake)
        for name in (
            "parameter", "lane_scale", "wide_read", "activation_read", "activation_write",
            "wide_write", "row_maximum", "table",
        ):  # fmt: skip
            connect(m, getattr(drain, name), flipped(getattr(self, name)))
        m.d.comb += drain.phase.eq(self.phase)

        m.submodules.dsp = dsp = GemmCore(config, Engine.GEMM)
        awake_while(m, platform, self.awake, dsp.awake)
        self._join(m, dsp, self, drain)
        connect(m, dsp.weight, flipped(self.weight))
        connect(m, dsp.operand, flipped(self.operand))
        m.d.comb += dsp.grant.eq(1)
        if config.lut_columns:
            lut = GemmCore(config, Engine.LUT)
            m.submodules.lut = clocked_by(Part.LUT, lut, platform)
            awake_while(m, platform, self.lut_awake, lut.awake)
            self._join(m, lut, self.lut, drain.lut)
            connect(m, lut.weight, flipped(self.lut_weight))
            own = Cat(self.phase == phase for phase in lut_phases(config)).any()
            m.d.comb += lut.grant.eq(~dsp.reads | own)
        if config.tap_depth:
            cores = {"dsp": dsp} | ({"lut": lut} if config.lut_columns else {})
            paths = {"gather": (cores, self.activation)}
            if lut_slots(config):
                paths = {
                    "gather": ({"dsp": dsp}, self.activation),
                    "lut_gather": ({"lut": lut}, self.lut_activation),
                }
            gathers = []
            for name, (served, port) in paths.items():
                gather = Gather(config, tuple(served))
                m.submodules[name] = clocked_by(Part.GATHER, gather, platform)
                connect(m, gather.memory, flipped(port))
                for core, unit in served.items():
                    connect(m, unit.activation, getattr(gather, core))
                gathers.append(gather)
            awake = Cat(gather.awake for gather in gathers).any()
            awake_while(m, platform, self.gather_awake, awake)
        elif config.lut_columns:
            for name, member in gather_port(config).members.items():
                port, first, second = (getattr(x, name) for x in (self.activation, *(
                    core.activation for core in (dsp, lut)
                )))  # fmt: skip
                if member.flow is In:
                    m.d.comb += [first.eq(port), second.eq(port)]
                else:
                    m.d.comb += port.eq(Mux(dsp.activation.enable, first, second))
        else:
            connect(m, dsp.activation, flipped(self.activation))
        return m

    def _join(self, m, core, engine, source):
        """Connect a core to the members of its engine, and to the drain."""
        for name, member in engine_members().items():
            mine, theirs = getattr(engine, name), getattr(core, name)
            if name == "instruction":
                connect(m, flipped(mine), theirs)
            elif name == "error":
                connect(m, theirs, flipped(mine))
            elif member.flow is In:
                m.d.comb += theirs.eq(mine)
            else:
                m.d.comb += mine.eq(theirs)
        if self._config.tap_depth:
            for member in ("address", "enable", "data"):
                m.d.comb += getattr(core.tap_write, member).eq(getattr(self.tap_write, member))
        m.d.comb += [
            source.tile.valid.eq(core.drain.tile.valid),
            source.tile.payload.eq(core.drain.tile.payload),
            source.column.eq(core.drain.column),
            core.drain.release.eq(source.release),
            core.drain.shift.eq(source.shift),
            core.drain.done.eq(source.done),
        ]
