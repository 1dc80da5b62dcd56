"""The generated Verilog and what comes with it; programs on it are in tests/sim/test_rtl.py."""

import json
import os
import re
import subprocess
import sys

import pytest

from twillcore.config import PRESETS, load_config
from twillcore.errors import TwillcoreError
from twillcore.hw.verilog import generate, memories
from twillcore.registers import to_c_header, to_json

TINY = PRESETS["tiny"]
AXI4 = {
    "output": "araddr arlen arsize arburst arvalid arid rready awaddr awlen awsize awburst awvalid"
    " awid wdata wstrb wlast wvalid bready",
    "input": "arready rdata rresp rlast rvalid rid awready wready bresp bvalid bid",
}
AXI4_LITE = {
    "input": "araddr arvalid rready awaddr awvalid wdata wstrb wvalid bready",
    "output": "arready rdata rresp rvalid awready wready bresp bvalid",
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verilog")
    files = generate(TINY, folder)
    return {path.name: path.read_text() for path in files}


def ports(verilog):
    top = re.search(r"\nmodule twillcore\((.*?)\nendmodule", verilog, re.DOTALL)[1]
    return {name: (direction, int(high or 0) + 1) for direction, high, name in
            re.findall(r"\n  (input|output) (?:\[(\d+):0\] )?(\S+);", top)}  # fmt: skip


def test_ports_have_the_names_of_the_buses(bundle):
    expected = {"aclk": "input", "aresetn": "input"}
    for prefix, table in (("m_axi_", AXI4), ("s_axi_", AXI4_LITE)):
        for direction, names in table.items():
            expected |= {prefix + name: direction for name in names.split()}
    expected |= dict.fromkeys(("done", "busy", "trace_start", "trace_end"), "output")
    found = ports(bundle["twillcore.v"])
    assert {name: direction for name, (direction, _) in found.items()} == expected
    assert found["m_axi_rdata"] == ("input", TINY.axi_data_bits)
    assert found["m_axi_wstrb"] == ("output", TINY.axi_bytes)


def test_the_bundle_is_complete(bundle):
    assert bundle["registers.h"] == to_c_header(TINY)
    assert bundle["registers.json"] == to_json(TINY)
    assert TINY.hash in bundle["README.md"]


def test_the_configuration_of_the_bundle_is_the_configuration(bundle, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(bundle["config.toml"])
    assert load_config(path) == TINY


def test_memories_are_listed(bundle):
    listed = {memory["name"]: memory for memory in json.loads(bundle["memories.json"])}
    for lane in range(TINY.lanes):
        words = listed[f"activation_memory.lane_{lane}"]
        assert (words["depth"], words["width"]) == (TINY.activation_depth, TINY.block * 8)
        assert (words["read_ports"], words["write_ports"]) == (2, 1)
    operand = listed["operand_memory.rows"]
    assert operand["write_enables"] == TINY.dsp_columns // TINY.lanes
    assert all(memory["bits"] == memory["depth"] * memory["width"] for memory in listed.values())


def test_absent_parts_have_no_memories():
    names = {memory["name"] for memory in memories(TINY.replace(operand_depth=0, norm_depth=0))}
    assert not {name for name in names if name.startswith(("operand", "norm", "move"))}


def test_the_same_configuration_gives_the_same_bytes(bundle):
    """Also in another process, where sets have another order."""
    code = (
        "from twillcore.config import PRESETS; from twillcore.hw.verilog import to_verilog;"
        "import sys; sys.stdout.write(to_verilog(PRESETS['tiny']))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert process.stdout == bundle["twillcore.v"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TwillcoreError, match=r"file: cannot be written: "):
        generate(TINY, tmp_path / "file")
