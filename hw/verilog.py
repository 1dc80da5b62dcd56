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

    def __init__(self, accelerator: Accelerator, gated: bool = False):
        self._accelerator, self._gated = accelerator, gated
        ports = {"aclk": In(1), "aresetn": In(1)}
        if gated:
            ports |= {f"{group.domain}_clock": In(1) for group in (*Part, *Inputs)}
            ports |= {f"{part.domain}_awake": Out(1) for part in Part}
        for name, member in accelerator.signature.members.items():
            if name == "awake":
                continue
            if name not in _BUSES:
                ports[name] = member
                continue
            for wire, inner in member.signature.members.items():
                ports[f"{name}_{wire}"] = inner
        super().__init__(ports)

    def elaborate(self, platform):
        m = Module()
        m.domains.sync = ClockDomain(local=True)
        # A register spreads the reset; and to a simulator, a reset that is an input would make the
        # next state of every register depend on inputs.
        reset = Signal(init=1, reset_less=True)
        aresetn = Signal(init=0)
        if self._gated:
            m.d[Inputs.HOST.domain] += aresetn.eq(self.aresetn)
            m.d.sync += reset.eq(~aresetn)
        else:
            m.d.sync += reset.eq(~self.aresetn)
        m.d.comb += [ClockSignal().eq(self.aclk), ResetSignal().eq(reset)]
        m.submodules.accelerator = accelerator = self._accelerator
        if self._gated:
            for part in Part:
                m.domains += ClockDomain(part.domain, local=True)
                m.d.comb += [
                    ClockSignal(part.domain).eq(getattr(self, f"{part.domain}_clock")),
                    ResetSignal(part.domain).eq(reset),
                    getattr(self, f"{part.domain}_awake").eq(accelerator.awake[part]),
                ]
            for group in Inputs:
                m.domains += ClockDomain(group.domain, local=True, reset_less=True)
                clock = getattr(self, f"{group.domain}_clock")
                m.d.comb += ClockSignal(group.domain).eq(clock)
        for name, member in self.signature.members.items():
            bus, _, wire = name.rpartition("_")
            if name in ("aclk", "aresetn") or name.endswith(("_clock", "_awake")):
                continue
            inner = getattr(getattr(accelerator, bus), wire) if bus in _BUSES else None
            if inner is None:
                inner = getattr(accelerator, name)
            outer = getattr(self, name)
            if member.flow is Out:
                m.d.comb += outer.eq(inner)
            elif self._gated:
                m.d[Inputs.of(name).domain] += inner.eq(outer)
            else:
                m.d.comb += inner.eq(outer)
        return m


def to_verilog(config: Config, gated: bool = False) -> str:
    """Return the Verilog of module :data:`MODULE`; the same bytes for the same configuration."""
    with without_zero_contents():
        return verilog.convert(
            Top(Accelerator(config), gated),
            platform=GatedClocks() if gated else None,
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
