"""Vivado is not here: the scripts run in a Tcl interpreter in which its commands are stubs."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.fpga.board_example import CONFIG, example
from twillcore.errors import TwillcoreError
from twillcore.fpga.zynq.pynq_driver import PynqEngine
from twillcore.hw.verilog import to_verilog
from twillcore.registers import REGISTERS, WATCHDOG_CYCLES
from twillcore.sim.machine_error import MachineError

tkinter = pytest.importorskip("tkinter")
SCRIPTS = Path(__file__).parents[2] / "fpga" / "zynq"

#: Interfaces and pins of the vendor's cells that the block design may use.
VENDOR = {
    "processing_system7": "M_AXI_GP0 S_AXI_HP0 FCLK_CLK0 FCLK_RESET0_N M_AXI_GP0_ACLK"
    " S_AXI_HP0_ACLK IRQ_F2P",
    "smartconnect": "S00_AXI M00_AXI aclk aresetn",
    "proc_sys_reset": "slowest_sync_clk ext_reset_in peripheral_aresetn",
}


@pytest.fixture(scope="module")
def verilog(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verilog")
    (folder / "twillcore.v").write_text(to_verilog(CONFIG))
    return folder


@pytest.fixture(scope="module")
def ports(verilog):
    text = (verilog / "twillcore.v").read_text()
    (names,) = re.findall(r"^module twillcore\((.*?)\);", text, re.MULTILINE | re.DOTALL)
    return {name.strip() for name in names.split(",")}


ANSWERS = {
    "current_fileset": "sources_1",
    "current_project": "project",
    "ipx::current_core": "the_core",
}
SILENT = (
    "add_files", "set_property", "update_compile_order", "ipx::package_project",
    "ipx::infer_bus_interface", "ipx::associate_bus_interfaces", "ipx::create_xgui_files",
    "ipx::update_checksums", "ipx::check_integrity", "ipx::save_core", "close_project",
    "create_project", "update_ip_catalog", "create_bd_design", "apply_bd_automation",
    "connect_bd_intf_net", "connect_bd_net", "assign_bd_address", "validate_bd_design",
    "save_bd_design", "launch_runs", "wait_on_run", "open_run", "report_utilization",
    "report_timing_summary", "puts",
)  # fmt: skip


class Vivado:
    """A Tcl interpreter with stubs for the commands that the scripts use."""

    def __init__(self, ports, slack="0.25"):
        self.ports, self.slack, self.calls, self.cells = ports, slack, [], {}
        self.tcl = tkinter.Tcl()
        for name in SILENT:
            self.stub(name, lambda *_: "")
        for name, answer in ANSWERS.items():
            self.stub(name, lambda *_, answer=answer: answer)
        self.stub("ipx::get_bus_interfaces", self.interfaces)
        self.stub("create_bd_cell", self.cell)
        self.stub("get_bd_pins", self.pin)
        self.stub("get_bd_intf_pins", self.pin)
        self.stub("get_files", lambda name: name)
        self.stub("make_wrapper", lambda *_: "wrapper.v")
        self.stub("get_runs", lambda name: name)
        self.stub("get_timing_paths", lambda: "path")
        self.stub("get_property", lambda name, _: {"PROGRESS": "100%", "SLACK": self.slack}[name])

    def stub(self, name, function):
        def command(*words):
            self.calls.append((name, *words))
            return function(*words)

        if "::" in name:
            self.tcl.eval(f"namespace eval {name.rpartition('::')[0]} {{}}")
        self.tcl.createcommand(name, command)

    def interfaces(self, name, *_):
        """What Vivado infers from names: a bus of its prefix, a clock and a reset of theirs."""
        known = name in ("aclk", "aresetn") and name in self.ports
        return name if known or f"{name}_awvalid" in self.ports else ""

    def cell(self, *words):
        name, kind = words[-1], words[words.index("-vlnv") + 1].split(":")[2]
        pins = {"m_axi", "s_axi", *self.ports} if kind == "twillcore" else VENDOR[kind].split()
        self.cells[name] = set(pins)
        return name

    def pin(self, path):
        cell, _, pin = path.partition("/")
        assert pin in self.cells[cell], f"cell {cell} has no pin {pin}"
        return path

    def source(self, script, *arguments):
        self.tcl.setvar("argc", len(arguments))
        self.tcl.setvar("argv", " ".join("{" + str(one) + "}" for one in arguments))
        self.tcl.eval((SCRIPTS / script).read_text())

    def called(self, name):
        return [words for command, *words in self.calls if command == name]


def test_ip_is_packaged(verilog, ports, tmp_path):
    vivado = Vivado(ports)
    vivado.source("package_ip.tcl", verilog, tmp_path)
    ((*_, added),) = vivado.called("add_files")
    assert Path(added).is_file()
    inferred = vivado.called("ipx::infer_bus_interface")
    assert inferred == [["done", "xilinx.com:signal:interrupt_rtl:1.0", "the_core"]]
    assert "done" in ports
    buses = [words[1] for words in vivado.called("ipx::associate_bus_interfaces")]
    assert buses == ["m_axi", "s_axi", "aclk"]
    assert vivado.called("ipx::save_core")


def test_ip_needs_verilog(ports, tmp_path):
    with pytest.raises(tkinter.TclError, match=r"twillcore\.v is missing: run twillcore verilog"):
        Vivado(ports).source("package_ip.tcl", tmp_path, tmp_path)
    with pytest.raises(tkinter.TclError, match="usage: -tclargs"):
        Vivado(ports).source("package_ip.tcl")


def results(folder):
    """Make the files that Vivado's implementation leaves behind."""
    runs = folder / "project/twillcore.runs/impl_1"
    handoff = folder / "project/twillcore.gen/sources_1/bd/twillcore/hw_handoff"
    for path in (runs, handoff):
        path.mkdir(parents=True)
    (runs / "twillcore_wrapper.bit").write_text("bitstream")
    (handoff / "twillcore.hwh").write_text("hardware")


def test_block_design(ports, tmp_path):
    (tmp_path / "component.xml").write_text("")
    results(tmp_path)
    vivado = Vivado(ports)
    vivado.source("pynq_z2.tcl", tmp_path, tmp_path, 80)
    assert (tmp_path / "twillcore.bit").read_text() == "bitstream"
    assert (tmp_path / "twillcore.hwh").read_text() == "hardware"
    joined = {end for pair in vivado.called("connect_bd_net") for end in pair}
    assert {"core/aclk", "core/aresetn", "core/done"} <= joined
    buses = {end for pair in vivado.called("connect_bd_intf_net") for end in pair}
    assert {"core/s_axi", "core/m_axi", "ps/M_AXI_GP0", "ps/S_AXI_HP0"} <= buses
    driven = [to for _, to in vivado.called("connect_bd_net")]
    assert len(set(driven)) == len(driven)  # no pin has two drivers
    assert any("80" in words for words in vivado.called("set_property")[1])


def test_block_design_that_is_too_slow(ports, tmp_path):
    (tmp_path / "component.xml").write_text("")
    results(tmp_path)
    with pytest.raises(tkinter.TclError, match="too slow for 100 MHz; give a lower clock"):
        Vivado(ports, slack="-1.5").source("pynq_z2.tcl", tmp_path, tmp_path)


def test_block_design_needs_the_ip(ports, tmp_path):
    with pytest.raises(tkinter.TclError, match=r"has no component\.xml: run package_ip\.tcl first"):
        Vivado(ports).source("pynq_z2.tcl", tmp_path, tmp_path)


class Buffer(np.ndarray):
    """What ``pynq.allocate`` returns; it counts on the driver to keep caches and memory alike."""

    physical_address = 0x1000_0000
    flushed = invalidated = freed = False

    def flush(self):
        self.flushed = True

    def invalidate(self):
        self.invalidated = True

    def freebuffer(self):
        self.freed = True


class Core:
    """The registers; a start puts the expected outputs in memory."""

    def __init__(self, config_hash, error=False):
        self.values = dict.fromkeys(REGISTERS, 0)
        self.values["CONFIG_HASH"] = int(config_hash, 16)
        self.buffer, self.error, self.loaded = None, error, 0
        self.names = {register.offset: name for name, register in REGISTERS.items()}

    def read(self, offset):
        return self.values[self.names[offset]]

    def write(self, offset, value):
        self.values[self.names[offset]] = value
        if self.names[offset] == "CONTROL" and value == 1:
            self.start()

    def start(self):
        image, _, expected = example()
        assert self.buffer.flushed
        assert self.values["BASE"] == Buffer.physical_address
        assert self.values["PROGRAM"] == image.program_address
        assert self.values["WATCHDOG"] == WATCHDOG_CYCLES
        if self.error:
            self.values |= {"STATUS": 0b101, "ERROR_CAUSE": 3, "ERROR_INDEX": 0, "ERROR_ENGINE": 0}
            return
        for slot in image.outputs:
            data = np.frombuffer(slot.pack(expected[slot.name], image.config), np.uint8)
            self.buffer[slot.address : slot.address + len(data)] = data
        self.values |= {"STATUS": 0b011, "CYCLES": 77, "READ_BEATS": 5}


@pytest.fixture
def pynq(monkeypatch, tmp_path):
    """Return a function that makes an engine on a core, with a PYNQ that there is not."""

    def make(core):
        def allocate(shape, dtype):
            core.buffer = np.zeros(shape, dtype).view(Buffer)
            return core.buffer

        def download():
            assert not core.buffer.freed
            core.loaded += 1

        overlay = SimpleNamespace(core=core, download=download)
        module = SimpleNamespace(Overlay=lambda _: overlay, allocate=allocate)
        monkeypatch.setitem(sys.modules, "pynq", module)
        for suffix in (".bit", ".hwh"):
            (tmp_path / f"twillcore{suffix}").write_text("")
        return PynqEngine(tmp_path / "twillcore.bit")

    return make


def test_pynq_run(pynq):
    image, inputs, expected = example()
    core = Core(CONFIG.hash)
    result = pynq(core).run(image, inputs)
    np.testing.assert_array_equal(result.outputs["y"], expected["y"])
    assert (result.cycles, result.bytes_read) == (77, 5 * CONFIG.axi_bytes)
    assert core.buffer.invalidated
    assert core.buffer.freed


def test_pynq_machine_error(pynq):
    image, inputs, _ = example()
    core = Core(CONFIG.hash, error=True)
    with pytest.raises(MachineError, match="load stopped at instruction 0: the memory answered"):
        pynq(core).run(image, inputs)
    assert core.loaded == 1  # again, while the memory was still there
    assert core.buffer.freed


def test_pynq_wrong_bitstream(pynq):
    image, inputs, _ = example()
    with pytest.raises(TwillcoreError, match="the bitstream is for configuration 12345678;"):
        pynq(Core("12345678")).run(image, inputs)


def test_pynq_missing_files(tmp_path):
    with pytest.raises(TwillcoreError, match=r"twillcore\.bit: no such file"):
        PynqEngine(tmp_path / "twillcore.bit")
