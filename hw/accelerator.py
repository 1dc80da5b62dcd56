"""The whole machine: engines, memories and control joined."""

from amaranth.hdl import (
    Cat,
    ClockDomain,
    ClockSignal,
    Const,
    DomainRenamer,
    Module,
    Mux,
    ResetInserter,
    ResetSignal,
    Signal,
    signed,
)  # fmt: skip
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from twillcore import registers
from twillcore.config import ADDRESS_BITS, Config
from twillcore.hw.activation_memory import ActivationMemory
from twillcore.hw.axi import axi4, axi4_read, axi4_write
from twillcore.hw.axi_lite import axi4_lite
from twillcore.hw.clocks import GatedClocks, Part, awake_while, clocked_by
from twillcore.hw.dispatch import Dispatch
from twillcore.hw.fetch import Fetch
from twillcore.hw.gemm import GemmEngine
from twillcore.hw.issue import Issue
from twillcore.hw.layouts import INDEX_BITS, LANE_SCALE, operand_row, plane_row, weight_row
from twillcore.hw.load import LoadEngine
from twillcore.hw.move import MoveEngine
from twillcore.hw.parameter_memory import ParameterMemory
from twillcore.hw.performance_counters import PerformanceCounters
from twillcore.hw.ports import CAUSE_BITS, Activity
from twillcore.hw.read_port import ReadPort
from twillcore.hw.registers import Registers
from twillcore.hw.run_control import ENGINE_NUMBER_BITS, RunControl
from twillcore.hw.store import StoreEngine
from twillcore.hw.two_port_memory import TwoPortMemory
from twillcore.hw.vector import VectorEngine
from twillcore.hw.wide_memory import WideMemory
from twillcore.isa import Cause, Engine
from twillcore.timing import lut_slots

LANE_ADDRESS_BITS = 10
_NO_INDEX = (1 << INDEX_BITS) - 1

_ENGINES = {
    Engine.LOAD: LoadEngine,
    Engine.STORE: StoreEngine,
    Engine.GEMM: GemmEngine,
    Engine.VECTOR: VectorEngine,
    Engine.MOVE: MoveEngine,
}


class Accelerator(wiring.Component):
    """One accelerator: AXI4 to memory, AXI4-Lite to the host.

    Instructions flow FETCH, DISPATCH, an ISSUE queue per engine, engine; tokens flow between the
    ISSUE queues. A program runs from a write of CONTROL.start to its HALT or an error, without help
    from the host: see ``docs/registers.md``.

    Members
    -------
    m_axi : Out(axi4(axi_data_bits))
    s_axi : In(axi4_lite(registers.ADDRESS_BITS))
    done : Out(1)
        Interrupt: high from the end of a program, by HALT or error, to the next start.
    busy : Out(1)
        A program runs; cycle 0 of every time stamp is the first cycle in which it is high.
    trace_start, trace_end : Out(len(Engine))
        Bit e: engine e accepts an instruction, or retires one, in this cycle.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "m_axi": Out(axi4(config.axi_data_bits)),
            "s_axi": In(axi4_lite(registers.ADDRESS_BITS)),
            "done": Out(1),
            "busy": Out(1),
            "trace_start": Out(len(Engine)),
            "trace_end": Out(len(Engine)),
        })  # fmt: skip
        self.awake = Signal(len(Part))  # of gated machines: twillcore.hw.clocks

    def elaborate(self, platform):
        m = Module()
        present = self.config.engines

        m.submodules.registers = bank = Registers()
        wiring.connect(m, wiring.flipped(self.s_axi), bank.bus)
        start, reset_wanted = (
            bank.control[field.offset] for field in registers.REGISTERS["CONTROL"].fields
        )
        # Only the host's registers outlive a reset by command. The machine is a clock domain of its
        # own, so that it hangs on one reset, and that is a register: it goes to every corner.
        reset = Signal(init=1)
        m.domains.machine = ClockDomain(local=True)
        m.d.sync += reset.eq(reset_wanted)
        m.d.comb += [ClockSignal("machine").eq(ClockSignal()), ResetSignal("machine").eq(reset)]
        if isinstance(platform, GatedClocks):
            m.d.comb += [ResetSignal(part.domain).eq(reset) for part in Part]

        control = RunControl(present)
        engines = {
            engine: component(self.config)
            for engine, component in _ENGINES.items()
            if engine in present
        }
        components = dict(engines)
        if Engine.LUT in present:
            engines[Engine.LUT] = engines[Engine.GEMM].lut
        issues = {engine: Issue(self.config) for engine in present}
        fetch, dispatch = Fetch(self.config), Dispatch(self.config)
        read_port = ReadPort(self.config)

        # Tokens that one program leaves behind are not the next one's, nor is its HALT.
        fresh = ResetInserter(control.begin)
        for name, component in (
            ("control", control),
            ("fetch", fetch),
            ("read_port", read_port),
            ("dispatch", fresh(dispatch)),
        ):
            _add(m, name, component)
        for engine, unit in components.items():
            unit = clocked_by(Part[engine.name], unit, platform, otherwise="machine")
            m.submodules[engine.name.lower()] = unit
        for engine, issue in issues.items():
            unit = clocked_by(Part.ISSUE, fresh(issue), platform, otherwise="machine")
            m.submodules[f"{engine.name.lower()}_issue"] = unit

        m.d.comb += [
            control.start.eq(start),
            control.watchdog.eq(bank.watchdog),
            control.halt.eq(dispatch.halt),
            self.busy.eq(control.running),
            self.done.eq(control.done | control.error),
            fetch.start.eq(control.begin),
            fetch.stop.eq(~control.running),
            fetch.base.eq(bank.base),
            fetch.program.eq(bank.program),
            dispatch.enable.eq(control.running),
            dispatch.idle.eq(Cat(issue.idle for issue in issues.values()).all()),
        ]
        wiring.connect(m, fetch.o, dispatch.i)
        for engine, unit in engines.items():
            self._join_engine(m, engine, unit, issues, dispatch, control)
        self._join_bus(m, fetch, read_port, engines, bank)
        self._join_memories(m, control, engines)
        self._join_errors(m, control, fetch, dispatch, engines, issues)
        self._join_registers(m, bank, control, engines, issues)
        awake = {Part[engine.name]: unit.awake for engine, unit in components.items()}
        awake[Part.DRAIN] = engines[Engine.GEMM].drain_awake
        if Engine.LUT in present:
            awake[Part.LUT] = engines[Engine.GEMM].lut_awake
        if self.config.tap_depth:
            awake[Part.GATHER] = engines[Engine.GEMM].gather_awake
        awake[Part.ISSUE] = Cat(issue.awake for issue in issues.values()).any() | control.begin
        for part, works in awake.items():
            awake_while(m, platform, self.awake[part], works | reset)
        return m

    def _join_engine(self, m, engine, unit, issues, dispatch, control):
        """Instructions and tokens."""
        issue = issues[engine]
        wiring.connect(m, dispatch.output(engine), issue.i)
        wiring.connect(m, issue.o, unit.instruction)
        m.d.comb += [
            unit.phase.eq(control.phase),
            issue.enable.eq(control.running),
            issue.retire.eq(unit.retire),
            self.trace_start[engine].eq(issue.o.valid & issue.o.ready),
            self.trace_end[engine].eq(unit.retire),
        ]
        for giver, other in issues.items():
            m.d.comb += issue.given[giver].eq(other.give[engine])

    def _join_bus(self, m, fetch, read_port, engines, bank):
        load, store = engines[Engine.LOAD], engines[Engine.STORE]
        m.d.comb += [load.base.eq(bank.base), store.base.eq(bank.base)]
        wiring.connect(m, fetch.read, read_port.fetch)
        wiring.connect(m, load.read, read_port.load)
        for source, signature in (
            (read_port.memory, axi4_read(self.config.axi_data_bits)),
            (store.write, axi4_write(self.config.axi_data_bits)),
        ):
            for name, member in signature.members.items():
                ours, theirs = getattr(self.m_axi, name), getattr(source, name)
                m.d.comb += ours.eq(theirs) if member.flow is Out else theirs.eq(ours)

    def _join_memories(self, m, control, engines):
        config = self.config
        load, store, gemm = (engines[e] for e in (Engine.LOAD, Engine.STORE, Engine.GEMM))
        vector, move = (engines.get(e) for e in (Engine.VECTOR, Engine.MOVE))

        activation = _add(m, "activation_memory", ActivationMemory(config))
        weight = _add(
            m, "weight_memory", TwoPortMemory(ADDRESS_BITS, weight_row(config), config.weight_depth)
        )
        parameter = _add(
            m, "parameter_memory", ParameterMemory(config.parameter_depth, config.entries_per_beat)
        )
        m.d.comb += activation.slots.eq(control.slots)

        joints = [
            (gemm.activation, activation.gemm_read),
            (gemm.activation_read, activation.drain_read),
            (gemm.activation_write, activation.drain_write),
            (load.activation_write, activation.load_write),
            (store.activation_read, activation.store_read),
            (load.weight_write, weight.write),
            (gemm.weight, weight.read),
            (load.parameter_write, parameter.write),
            (gemm.parameter, parameter.read),
        ]
        if config.function_table:
            joints.append((load.table_write, gemm.table))
        if vector is not None:
            wide = _add(m, "wide_memory", WideMemory(config))
            row_maximum = _add(
                m,
                "row_maximum_memory",
                TwoPortMemory(
                    LANE_ADDRESS_BITS, data.ArrayLayout(signed(16), config.lanes), config.lane_depth
                ),
            )
            lane_scale = _add(
                m,
                "lane_scale_memory",
                TwoPortMemory(
                    LANE_ADDRESS_BITS, data.ArrayLayout(LANE_SCALE, config.lanes), config.lane_depth
                ),
            )
            m.d.comb += wide.slots.eq(control.slots)
            joints += [
                (vector.activation_write, activation.vector_write),
                (vector.activation_read_a, activation.vector_read_a),
                (vector.activation_read_b, activation.vector_read_b),
                (gemm.wide_read, wide.drain_read),
                (gemm.wide_write, wide.drain_write),
                (load.wide_write, wide.load_write),
                (vector.wide_write, wide.vector_write),
                (vector.wide_read_a, wide.vector_read_a),
                (vector.wide_read_b, wide.vector_read_b),
                (store.wide_read, wide.store_read),
                (gemm.row_maximum, row_maximum.write),
                (vector.row_maximum, row_maximum.read),
                (vector.lane_scale, lane_scale.write),
                (gemm.lane_scale, lane_scale.read),
            ]
        if config.lut_columns:
            lut_weight = _add(
                m,
                "lut_weight_memory",
                TwoPortMemory(ADDRESS_BITS, plane_row(config), config.lut_weight_depth),
            )
            joints += [
                (load.lut_weight_write, lut_weight.write),
                (gemm.lut_weight, lut_weight.read),
            ]
        if lut_slots(config):
            joints.append((gemm.lut_activation, activation.lut_read))
        if config.tap_depth:
            joints.append((load.tap_write, gemm.tap_write))
        if config.norm_depth:
            norm = ParameterMemory(config.norm_depth, config.entries_per_beat)
            _add(m, "norm_memory", norm)
            joints += [(load.norm_write, norm.write), (vector.norm, norm.read)]
        if move is not None:
            operand = _add(
                m,
                "operand_memory",
                TwoPortMemory(
                    ADDRESS_BITS,
                    operand_row(config),
                    config.operand_depth,
                    enable_bits=config.dsp_columns // config.lanes,
                ),
            )
            joints += [
                (move.activation_read, activation.move_read),
                (move.operand_write, operand.write),
                (gemm.operand, operand.read),
            ]
        for client, memory in joints:
            wiring.connect(m, client, memory)

    def _join_errors(self, m, control, fetch, dispatch, engines, issues):
        sources = {"fetch": fetch, "dispatch": dispatch}
        sources |= {engine.name.lower(): unit for engine, unit in engines.items()}
        lost = {  # said by ISSUE two cycles after the token, as what is in the registers here
            engine.name.lower(): Cat(other.overflow[engine] for other in issues.values()).any()
            for engine in engines
        }
        for name, unit in sources.items():
            valid = Signal(name=f"{name}_failed")
            cause = Signal(CAUSE_BITS, name=f"{name}_cause", reset_less=True)
            index = Signal(INDEX_BITS, name=f"{name}_index", reset_less=True)
            m.d.machine += [
                valid.eq(unit.error.valid),
                cause.eq(unit.error.cause),
                index.eq(unit.error.index),
            ]
            error = getattr(control, f"error_{name}")
            m.d.comb += [error.valid.eq(valid), error.cause.eq(cause), error.index.eq(index)]
            if name in lost:
                giver = Signal(INDEX_BITS, name=f"{name}_giver", reset_less=True)
                m.d.machine += giver.eq(issues[Engine[name.upper()]].oldest_index)
                with m.If(~valid):
                    m.d.comb += [
                        error.valid.eq(lost[name]),
                        error.cause.eq(Cause.TOKEN_OVERFLOW),
                        error.index.eq(giver),
                    ]

        # What the watchdog blames: the first unfinished instruction of the program. A register per
        # comparison, since nothing moves when it is asked for.
        index, number = Const(_NO_INDEX, INDEX_BITS), Const(registers.NO_ENGINE, ENGINE_NUMBER_BITS)
        for engine, issue in issues.items():
            name = engine.name.lower()
            older = issue.oldest_index < index
            oldest = Signal(INDEX_BITS, name=f"oldest_to_{name}")
            oldest_engine = Signal(ENGINE_NUMBER_BITS, name=f"oldest_engine_to_{name}")
            m.d.machine += [
                oldest.eq(Mux(older, issue.oldest_index, index)),
                oldest_engine.eq(Mux(older, engine, number)),
            ]
            index, number = oldest, oldest_engine
        bus = self.m_axi
        works = [unit.retire | (unit.activity == Activity.BUSY) for unit in engines.values()]
        m.d.comb += [control.oldest_index.eq(index), control.oldest_engine.eq(number)]
        m.d.machine += control.progress.eq(
            Cat(works, bus.rvalid & bus.rready, bus.wvalid & bus.wready).any()
        )

    def _join_registers(self, m, bank, control, engines, issues):
        bus = self.m_axi
        for beats, moves in (
            (bank.read_beats, bus.rvalid & bus.rready),
            (bank.write_beats, bus.wvalid & bus.wready),
        ):
            count = Signal.like(beats)
            m.d.comb += beats.eq(count)
            with m.If(control.begin):
                m.d.machine += count.eq(0)
            with m.Elif(control.running & moves):
                m.d.machine += count.eq(count + 1)

        m.d.comb += [
            bank.status.eq(Cat(~control.running, control.done, control.error)),
            bank.error_cause.eq(control.cause),
            bank.error_index.eq(control.index),
            bank.error_engine.eq(control.engine),
            bank.version.eq(registers.VERSION),
            bank.config_hash.eq(int(self.config.hash, 16)),
            bank.cycles.eq(control.cycles),
        ]
        for engine, unit in engines.items():
            name = engine.name.lower()
            counters = _add(m, f"{name}_counters", PerformanceCounters())
            m.d.comb += [
                counters.clear.eq(control.begin),
                counters.enable.eq(control.running),
                counters.activity.eq(unit.activity),
                counters.missing.eq(issues[engine].missing),
            ]
            for counter in registers.Counter:
                value = getattr(counters, counter.name.lower())
                m.d.comb += getattr(bank, f"{name}_{counter.name.lower()}").eq(value)


def _add(m, name, component):
    """Make ``component`` a part of the machine; return it."""
    m.submodules[name] = DomainRenamer("machine")(component)
    return component
