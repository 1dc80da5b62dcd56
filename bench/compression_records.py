"""What the experiments of compression share: what was measured before, runs on the RTL."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from measure import ROOT, commit, processor

import twillcore

RESULTS = ROOT / "build" / "compression"


def say(text: str) -> None:
    """Print progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def recall(name: str) -> list[dict]:
    """Return what was measured before."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.is_file() else []


def store(name: str, rows: object) -> None:
    """Keep what was measured, with where it comes from."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    data = {"commit": commit(), "date": time.strftime("%F"), "processor": processor(), "rows": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1))


def figures_of(folder: str) -> dict:
    """Return what ``twillcore compress`` says of a network."""
    return json.loads((Path(folder) / "figures.json").read_text())


def on_rtl(program: twillcore.Program, inputs: Sequence[torch.Tensor]) -> dict:
    """Run one input; bit-exact: as the network's integers, at the cycle engine's time."""
    expected = program.run(*inputs, engine="reference").outputs[0]
    found = program.run(*inputs, engine="rtl")
    timed = program.run(*inputs, engine="cycle")
    functional = program.run(*inputs, engine="functional").outputs[0]
    exact = torch.equal(found.outputs[0], expected) and torch.equal(functional, expected)
    return {"rtl_cycles": found.cycles, "bit_exact": exact and found.cycles == timed.cycles}
