"""A compressed network on disk: weights, policy, figures."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from twillcore.config import load_config
from twillcore.errors import TwillcoreError
from twillcore.flow import program_cycles
from twillcore.models.compress import density
from twillcore.models.cost import layer_shapes
from twillcore.models.low_rank import factorise
from twillcore.models.pattern import Pattern
from twillcore.models.policy import Policy
from twillcore.models.subjects import Subject, load_weights

FIGURES = "figures.json"


def write_candidate(
    folder: Path,
    module: nn.Module,
    policy: Policy,
    subject: Subject,
    config: str,
    common: Mapping[str, object],
) -> dict[str, object]:
    """Write one candidate and return its figures."""
    chip, samples = load_config(config), subject.samples()
    shapes = layer_shapes(module, samples[0])
    dense = subject.load(lambda done, total, text: None)
    kept = {
        name: [shapes[n] for n in (name, f"{name}.0", f"{name}.1") if n in shapes]
        for name in policy.layers
    }

    def stored(name: str) -> int:
        layer, share = policy.layers[name], policy.layers[name].lut_share or 0.0
        beats = (layer.pattern or Pattern(1, 1)).beats(chip)
        return sum(
            round(
                (1 - share) * shape.bytes(chip, beats, layer.bits)
                + share * shape.weights * layer.lut_bits / 8
            )
            for shape in kept[name]
        )

    cycles = program_cycles(module, samples, config, policy)
    figures = {
        **common,
        "config": chip.name,
        "score_name": subject.score_name,
        "score": subject.score(module),
        "density": density(module, [shape.name for shapes in kept.values() for shape in shapes]),
        "cycles": cycles,
        "speed_up": program_cycles(dense, samples, config) / cycles,
        "bytes": sum(map(stored, kept)),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(module.state_dict(), folder / "model.pt")
        policy.save(folder / "policy.toml")
        (folder / FIGURES).write_text(json.dumps(figures, indent=1))
    except OSError as error:
        raise TwillcoreError(f"{folder}: cannot be written: {error.strerror}") from None
    return figures


def read_figures(folders: Sequence[Path]) -> Iterator[tuple[Path, dict]]:
    """Yield the figures of every candidate in ``folders``, or one level below.

    Raises
    ------
    TwillcoreError
        If a folder has none, or they are damaged.
    """
    for folder in folders:
        files = sorted(folder.glob(FIGURES)) + sorted(folder.glob(f"*/{FIGURES}"))
        if not files:
            raise TwillcoreError(f"{folder}: no {FIGURES} here: is it from `twillcore compress`?")
        for file in files:
            try:
                yield file.parent, json.loads(file.read_text())
            except (OSError, ValueError) as error:
                raise TwillcoreError(f"{file}: cannot be read: {error}") from None


def load_candidate(folder: Path, subject: Subject) -> tuple[nn.Module, Policy]:
    """Return the network and the policy that ``twillcore compress`` wrote into ``folder``.

    Raises
    ------
    TwillcoreError
        If they cannot be read, or are of another network.
    """
    policy = Policy.load(folder / "policy.toml")
    module = factorise(subject.load(lambda done, total, text: None), policy.ranks())
    load_weights(module, folder / "model.pt")
    return module, policy
