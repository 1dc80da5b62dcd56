"""Weights as rows of inputs: the one view in which every N:M method works.

A linear layer's weight (outputs, inputs) is that already. A convolution's, (outputs, inputs,
*kernel), becomes (outputs * positions, inputs): groups run over input channels and never cross a
kernel position, which is the order in which the chip reads them.
"""

from typing import TypeVar

from torch import Tensor, nn

from twillcore.errors import TwillcoreError
from twillcore.models.nm import project, strongest
from twillcore.models.pattern import Pattern

Choice = TypeVar("Choice")
SPARSE_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def as_rows(weight: Tensor) -> Tensor:
    """Return ``weight`` as (rows, inputs)."""
    return weight.movedim(1, -1).reshape(-1, weight.shape[1])


def from_rows(rows: Tensor, like: Tensor) -> Tensor:
    """Return what :func:`as_rows` made of a weight shaped as ``like`` back in its shape."""
    return rows.reshape(like.movedim(1, -1).shape).movedim(-1, 1)


def mask_of(weight: Tensor, pattern: Pattern) -> Tensor:
    """Return where ``weight``, of any layer, has the largest magnitudes of its groups."""
    return from_rows(strongest(as_rows(weight.detach().abs()), pattern), weight)


def projected(weight: Tensor, pattern: Pattern) -> Tensor:
    """Return ``weight``, of any layer, with only the largest magnitudes of its groups."""
    return from_rows(project(as_rows(weight), pattern), weight)


def sparse_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Return the layers whose weights can be sparse, by name, in the order of registration."""
    return {name: m for name, m in module.named_modules() if isinstance(m, SPARSE_LAYERS)}


def is_depthwise(layer: nn.Module) -> bool:
    """Return whether ``layer`` is a convolution whose every output reads one input channel."""
    groups = getattr(layer, "groups", 1)
    return groups > 1 and groups == layer.in_channels


def per_layer(module: nn.Module, choice: "Choice | dict[str, Choice]") -> "dict[str, Choice]":
    """Return a choice for layers by name: the same for all, or what a dictionary says.

    Raises
    ------
    TwillcoreError
        If the dictionary names a layer that ``module`` does not have: all of them are listed.
    """
    layers = sparse_layers(module)
    if not isinstance(choice, dict):
        return dict.fromkeys(layers, choice)
    if unknown := sorted(choice.keys() - layers.keys()):
        raise TwillcoreError(f"no layers {', '.join(unknown)}; there are {', '.join(layers)}")
    return choice
