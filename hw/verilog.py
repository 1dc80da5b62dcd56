"""The accelerator as one self-contained Verilog file, with everything that an integrator needs."""

import json
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from amaranth.back import rtlil, verilog
from amaranth.hdl import ClockDomain, ClockSignal, Fragment, Module, ResetSignal, Shape, Signal
from amaranth.hdl._mem import MemoryInstance  # what a memory became cannot be seen otherwise
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from twillcore import registers
from twillcore.config import Config
from twillcore.errors import TwillcoreError
from twillcore.hw.accelerator import Accelerator
from twillcore.hw.clocks import GatedClocks, Inputs, Part
from twillcore.hw.drop_in import core_file, waivers

MODULE = "twillcore"

_BUSES = ("m_axi", "s_axi")


class Top(wiring.Component):
    """:class:`Accelerator` under the names that Verilog tools expect of AXI ports.

    ``m_axi_*`` and ``s_axi_*`` are the buses, ``aclk`` the clock, ``aresetn`` the synchronous
    reset, active low, which takes effect one cycle later. The other ports keep their names.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        ports = {name: member for name, member, _ in self._wires()}
        super().__init__({"aclk": In(1), "aresetn": In(1)} | ports | self._more_ports())

    def elaborate(self, platform):
        m = Module()
        m.domains.sync = ClockDomain(local=True)
        # A register spreads the reset; and to a simulator, a reset that is an input would make the
        # next state of every register depend on inputs.
        reset = Signal(init=1, reset_less=True)
        m.d.sync += reset.eq(~self._input(m, "aresetn"))
        m.d.comb += [ClockSignal().eq(self.aclk), ResetSignal().eq(reset)]
        m.submodules.accelerator = self._accelerator
        for name, member, inner in self._wires():
            if member.flow is Out:
                m.d.comb += getattr(self, name).eq(inner)
            else:
                m.d.comb += inner.eq(self._input(m, name))
        self._add_parts(m)
        return m

    def _wires(self):
        """Yield name, member and signal of every port of the accelerator."""
        for name, member in self._accelerator.signature.members.items():
            signal = getattr(self._accelerator, name)
            if name not in _BUSES:
                yield name, member, signal
                continue
            for wire, inner in member.signature.members.items():
                yield f"{name}_{wire}", inner, getattr(signal, wire)

    # What gated machines add; absent from a product.

    def _more_ports(self):
        return {}

    def _input(self, m, name):
        return getattr(self, name)

    def _add_parts(self, m):
        pass


class GatedTop(Top):
    """:class:`Top` of a gated machine (:mod:`twillcore.hw.clocks`), for simulation.

    ``<part>_clock`` has to rise with ``aclk`` in the cycles in which ``<part>_awake`` is high, and
    in those with ``aresetn`` low and one more; ``<group>_inputs_clock`` when an input of that group
    has changed, before the others rise.
    """

    def _more_ports(self):
        clocks = {f"{clock.domain}_clock": In(1) for clock in _CLOCKS}
        return clocks | {f"{part.domain}_awake": Out(1) for part in Part}

    def _input(self, m, name):
        port = getattr(self, name)
        register = Signal.like(port, name=f"{name}_now", reset_less=True)
        m.d[Inputs.of(name).domain] += register.eq(port)
        return register

    def _add_parts(self, m):
        for clock in _CLOCKS:
            m.domains += ClockDomain(clock.domain, local=True, reset_less=isinstance(clock, Inputs))
            m.d.comb += ClockSignal(clock.domain).eq(getattr(self, f"{clock.domain}_clock"))
        for part in Part:
            awake = getattr(self, f"{part.domain}_awake")
            m.d.comb += awake.eq(self._accelerator.awake[part])


_CLOCKS = (*Part, *Inputs)


def to_verilog(config: Config, gated: bool = False) -> str:
    """Return the Verilog of module :data:`MODULE`; the same bytes for the same configuration.

    With ``gated`` it is that of a gated machine, for simulation: :mod:`twillcore.hw.clocks`.
    """
    top, platform = (GatedTop, GatedClocks()) if gated else (Top, None)
    with without_zero_contents():
        return verilog.convert(
            top(Accelerator(config)),
            platform=platform,
            name=MODULE,
            emit_src=False,
            strip_internal_attrs=True,
        )


@contextmanager
def without_zero_contents():
    """Leave out the initial contents of memories that start with zeros.

    Nothing depends on them, and Amaranth would write them bit by bit: two thirds of the file, and
    of the time that it takes.
    """
    emit = rtlil.ModuleEmitter.emit_memory

    def emit_if_not_zero(self, cell_index, cell):
        if any(cell.init):
            emit(self, cell_index, cell)

    with mock.patch.object(rtlil.ModuleEmitter, "emit_memory", emit_if_not_zero):
        yield


def memories(config: Config) -> list[dict]:
    """Return name, depth, width, ports and bits of every memory, those of queues included.

    The activation memory's second read port and its write port share one address and are never
    enabled together: they are one read-write port of a block RAM.
    """
    found = []

    def walk(fragment, path):
        if isinstance(fragment, MemoryInstance):
            found.append(_memory(".".join(path), fragment))
        for child, name, _ in fragment.subfragments:
            walk(child, (*path, name) if name else path)

    walk(Fragment.get(Accelerator(config), None), ())
    return sorted(found, key=lambda memory: (-memory["bits"], memory["name"]))


def _memory(name: str, instance: MemoryInstance) -> dict:
    reads, writes = instance._read_ports, instance._write_ports
    asynchronous = any(port._domain == "comb" for port in reads)
    shape, depth = Shape.cast(instance._data.shape), instance._data.depth
    return {
        "name": name,
        "depth": depth,
        "width": shape.width,
        "read_ports": len(reads),
        "write_ports": len(writes),
        "write_enables": sum(len(port._en) for port in writes),
        "read": "asynchronous" if asynchronous else "synchronous",
        "read_only": not writes,
        "bits": depth * shape.width,
    }


def generate(config: Config, directory: str | Path) -> list[Path]:
    """Write everything that an FPGA or ASIC flow needs to ``directory``; return the files.

    Raises
    ------
    TwillcoreError
        If the directory cannot be written.
    """
    all_memories = memories(config)
    contents = {
        f"{MODULE}.v": to_verilog(config),
        "registers.h": registers.to_c_header(config),
        "registers.json": registers.to_json(config),
        "config.toml": config.to_toml(),
        "memories.json": json.dumps(all_memories, indent=2) + "\n",
        "lint.vlt": waivers(f"{MODULE}.v"),
        f"{MODULE}.core": core_file(config, MODULE),
        "README.md": _readme(config, all_memories),
    }
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            (folder / name).write_text(text)
    except OSError as error:
        raise TwillcoreError(f"{folder}: cannot be written: {error.strerror}") from None
    return [folder / name for name in contents]


def _readme(config: Config, all_memories: list[dict]) -> str:
    rows = "\n".join(
        f"| {m['name']} | {m['depth']} | {m['width']} | {m['read_ports']} | {m['write_ports']}"
        f" | {m['bits'] / 1024:,.1f} |"
        for m in all_memories
        if m["bits"] >= 4096
    )
    total = sum(m["bits"] for m in all_memories) / 8 / 1024
    return f"""# Twillcore, configuration `{config.name}`

{config.lanes} x {config.dsp_columns} int8 multipliers, blocks of {config.block},
{config.axi_data_bits}-bit AXI4. Configuration hash `{config.hash}`: programs are compiled for it,
and register CONFIG_HASH shows it.

* `{MODULE}.v`: module `{MODULE}`, everything in one file, Verilog-2001.
* `registers.h`, `registers.json`: the AXI4-Lite registers; `docs/registers.md` has them as text.
* `memories.json`: every memory, for whoever replaces them by macros.
* `{MODULE}.core`: for FuseSoC; its target `lint` runs Verilator.
* `lint.vlt`: waivers, with reasons, for `verilator --lint-only -Wall lint.vlt {MODULE}.v`.
* `config.toml`: the configuration; give it to `twillcore compile --config`.

| port | what |
|---|---|
| `aclk`, `aresetn` | clock of everything; synchronous reset, active low, for at least 2 cycles |
| `m_axi_*` | AXI4 manager: program and data |
| `s_axi_*` | AXI4-Lite subordinate: registers |
| `done` | interrupt: high from the end of a program, by HALT or error, to the next start |
| `busy` | high while a program runs |
| `trace_start`, `trace_end` | one bit per engine: it accepts, retires an instruction; leave open |

Memories, {total:,.0f} KiB in all (smaller ones are in `memories.json`):

| memory | depth | bits per word | read ports | write ports | Kibit |
|---|---|---|---|---|---|
{rows}
"""
