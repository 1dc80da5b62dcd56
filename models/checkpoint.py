"""Checkpoints: an interrupted training goes on exactly where its file says.

One file holds what the next step depends on: the weights (dense ones behind masks and statistics of
normalisation included), the optimiser, how far the training is, and what it is a training *of*. The
file of another training is refused. It is replaced in one step: whenever a training is killed, the
file of before or the new one is there, whole.
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from twillcore.cache import content_key
from twillcore.errors import TwillcoreError
from twillcore.models.layout import sparse_layers
from twillcore.models.qat import FakeQuantised
from twillcore.models.sr_ste import SrSte

Fact = str | int | float | bool | None
#: What :func:`torch.load` raises of a file that is empty, cut off, or something else.
DAMAGES = (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, ValueError, TypeError)
NAMED = 3  # differences that an error names; there may be one per layer


@dataclass(frozen=True)
class Checkpoint:
    """A file that a training resumes from if it is there, and saves to.

    Attributes
    ----------
    training : what it is a training of, by name; a file that says otherwise is refused
    """

    path: Path
    training: Mapping[str, Fact] = field(default_factory=dict)

    def of(self, **facts: Fact) -> "Checkpoint":
        """Return the checkpoint of a training of which more is known."""
        return replace(self, training={**self.training, **facts})

    def at(self, path: Path) -> "Checkpoint":
        """Return another file for the same facts."""
        return replace(self, path=path)

    def save(
        self, module: nn.Module, optimiser: torch.optim.Optimizer, progress: Mapping[str, object]
    ) -> None:
        """Write the file; ``progress`` is what else :meth:`resume` is to return.

        Raises
        ------
        TwillcoreError
            If it cannot be written.
        """
        temporary = self.path.with_name(f".{self.path.name}.part")
        state = {
            "training": _facts(self.training, module),
            "module": module.state_dict(),
            "optimiser": optimiser.state_dict(),
            "progress": dict(progress),
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, temporary)
            temporary.replace(self.path)
        except (OSError, RuntimeError) as error:  # of a full disk torch makes a RuntimeError
            reason = getattr(error, "strerror", None) or error
            raise TwillcoreError(f"{self.path}: cannot be written: {reason}") from None

    def resume(self, module: nn.Module, optimiser: torch.optim.Optimizer) -> dict | None:
        """Load the file into both; return its progress, or None if there is no file.

        Raises
        ------
        TwillcoreError
            If it is damaged, or of another training or network.
        """
        if not self.path.is_file():
            return None
        state = self._read()
        self._compare(state, _facts(self.training, module), every=True)
        try:
            module.load_state_dict(state["module"])
            optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError) as error:
            raise TwillcoreError(f"{self.path} is of another network: {error}") from None
        return state["progress"]

    def check(self) -> None:
        """Refuse the file by what is known already, before any work.

        Raises
        ------
        TwillcoreError
            If there is a file, and it is damaged or of another training.
        """
        if self.path.is_file():
            self._compare(self._read(), self.training, every=False)

    def _read(self) -> dict:
        try:
            state = torch.load(self.path, weights_only=True)
            return {key: state[key] for key in ("training", "module", "optimiser", "progress")}
        except OSError as error:
            raise TwillcoreError(f"{self.path}: cannot be read: {error.strerror}") from None
        except DAMAGES:
            raise TwillcoreError(
                f"{self.path} is damaged, or no checkpoint of this version: delete it to train from"
                " the start"
            ) from None

    def _compare(self, state: dict, ours: Mapping[str, Fact], every: bool) -> None:
        theirs = state["training"]
        differing = [
            f"{name} was {theirs.get(name)}, is {ours.get(name)}"
            for name in (theirs | ours if every else ours)
            if theirs.get(name) != ours.get(name)
        ]
        if differing:
            more = f"; and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
            raise TwillcoreError(
                f"{self.path} is of another training: {'; '.join(differing[:NAMED])}{more}."
                " Delete it, or take another folder"
            )


def fingerprint(*tensors: Tensor) -> str:
    """Return a short hash of values, for a :class:`Checkpoint` to know data or weights by."""
    return content_key(*(t.detach().contiguous().numpy().tobytes() for t in tensors))[:12]


def _facts(training: Mapping[str, Fact], module: nn.Module) -> dict[str, Fact]:
    """Return what a training is of, with what each layer of ``module`` is trained as."""
    return {**training, **{name: _form(layer) for name, layer in sparse_layers(module).items()}}


def _form(layer: nn.Module) -> str:
    if not parametrize.is_parametrized(layer, "weight"):
        return "dense"
    entries = layer.parametrizations["weight"]
    masks = [str(entry.pattern) for entry in entries if isinstance(entry, SrSte)]
    return ", ".join(masks + [f"{e.bits} bits" for e in entries if isinstance(e, FakeQuantised)])
