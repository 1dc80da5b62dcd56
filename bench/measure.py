"""What the measurements share: run a command, write a page of docs/results/ that says how."""

import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"


def twillcore(arguments: str) -> dict:
    """Run ``twillcore <arguments> --json`` and return what it prints."""
    print(f"$ twillcore {arguments}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "twillcore.cli", *arguments.split(), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def write(name: str, title: str, *paragraphs: str) -> None:
    """Write ``docs/results/<name>.md`` with the script, the commit and the machine it came from."""
    origin = (
        f"Measured by `python bench/{Path(sys.argv[0]).name}` at commit {commit()} on"
        f" {date.today()}, {processor()}, Python {platform.python_version()}."
    )
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.md"
    path.write_text("\n\n".join((f"# {title}", origin, *paragraphs)) + "\n")
    print(path.relative_to(ROOT), file=sys.stderr)


def commit() -> str:
    """Return the short hash of HEAD, and say so if files that count differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "*.py", "*.cpp", "*.toml")
    return f"`{git('rev-parse', '--short', 'HEAD')}`" + (" with changes" if changed else "")


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def causes(result: dict, multipliers: int = 256) -> str:
    """Return where the cycles went that were no useful work, largest first, with their shares."""
    return core_causes(result, round(result["useful_macs"] / multipliers), result["cycles"])


def core_causes(core: dict, useful_cycles: int, cycles: int) -> str:
    """Return the same for any core with ``busy`` and ``stalls``."""
    causes = {"padding": core["busy"] - useful_cycles, **core["stalls"]}
    lost = sorted(causes.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {count:,} ({count / cycles:.1%})" for name, count in lost if count)
