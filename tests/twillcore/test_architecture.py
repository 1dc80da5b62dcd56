"""The folder layout is a contract: who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("hw", "sim", "compiler", "models", "fpga")
COMPOSITION_ROOTS = {"__init__.py", "cli.py", "flow.py"}  # with commands/: may import every part
#: What a part may import of ours, or of the heavy frameworks, beyond the contract and itself.
MAY_IMPORT = {
    "twillcore": set(),
    "hw": {"amaranth"},
    "sim": {
        "amaranth",
        "cocotb",
        "cocotb_tools",
        "twillcore.compiler.graph",
        "twillcore.fpga.driver",  # a board is an engine too
        "twillcore.hw",
    },
    "compiler": {"torch"},
    "models": {"scipy", "tokenizers", "torch"},
    "fpga": {"amaranth", "twillcore.hw", "twillcore.sim"},  # it drives boards as sim drives models
}
FRAMEWORKS = {"amaranth", "cocotb", "cocotb_tools", "scipy", "tokenizers", "torch"}
GUARDED = FRAMEWORKS | {f"twillcore.{part}" for part in PARTS}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def inside(name, packages):
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_point_one_way(part):
    allowed = MAY_IMPORT[part] | {f"twillcore.{part}"}
    files = (ROOT / part).glob("*.py") if part == "twillcore" else (ROOT / part).rglob("*.py")
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        if part != "twillcore" or path.name not in COMPOSITION_ROOTS
        for name in imports(path)
        if inside(name, GUARDED)
        and not inside(name, allowed)
        # "from twillcore.compiler import graph" names the package first
        and not any(inside(permitted, {name}) for permitted in allowed)
    ]
    assert not wrong


@pytest.mark.parametrize("part", PARTS)
def test_package_link_resolves(part):
    assert (ROOT / "twillcore" / part).samefile(ROOT / part)


@pytest.mark.parametrize("module", ["twillcore", "twillcore.cli"])
def test_start_is_light(module):
    """``import twillcore`` and ``twillcore --help`` take no seconds."""
    code = f"import {module}, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "amaranth", "scipy", "matplotlib", "tokenizers"} & set(loaded)
