"""Models are built with what the README asks for, on a machine that has no more than that."""

import os
from pathlib import Path

import pytest

from twillcore.sim.verilated import shared_library

VERILOG = "module inverter(input a, output b);\nassign b = ~a;\nendmodule\n"
CPP = '#include "Vinverter.h"\nextern "C" Vinverter *make_inverter() { return new Vinverter; }\n'


@pytest.fixture
def without_python(monkeypatch, tmp_path):
    """A PATH with everything but a command ``python``."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for folder in map(Path, os.environ["PATH"].split(os.pathsep)):
        for tool in folder.iterdir() if folder.is_dir() else ():
            if tool.name != "python" and not (tools / tool.name).is_symlink():
                (tools / tool.name).symlink_to(tool.resolve())
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("TWILLCORE_CACHE", str(tmp_path / "cache"))


@pytest.mark.verilator
def test_no_command_python_is_needed(without_python):
    assert shared_library("inverter", VERILOG, CPP, name="a test").exists()
