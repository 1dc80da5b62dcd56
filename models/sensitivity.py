"""How much each layer's compression costs: one layer changed at a time, the whole network run."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from twillcore.errors import TwillcoreError
from twillcore.models.layout import sparse_layers

Option = TypeVar("Option")
Progress = Callable[[int, int, str], None]
Batches = Sequence[tuple[Tensor, ...]]


def output_error(found: Tensor, wanted: Tensor) -> float:
    """Return the squared error of a network's result, relative to the result."""
    return float((found - wanted).square().sum() / wanted.square().sum().clamp_min(1e-30))


@torch.no_grad()
def measure(
    module: nn.Module,
    batches: Batches,
    candidates: Mapping[str, Mapping[Option, Callable[[], Tensor]]],
    loss: Callable[[Tensor, Tensor], float] = output_error,
    progress: Progress = lambda done, total, name: None,
) -> dict[str, dict[Option, float]]:
    """Return the loss of every option of every layer, all other layers as they are.

    Parameters
    ----------
    batches : inputs of ``module``
    candidates : by layer and option, a function that makes the weight
    loss : of what the changed network makes of a batch, against what it made before

    Raises
    ------
    TwillcoreError
        If there is no data.
    """
    if not batches:
        raise TwillcoreError("no calibration data: sensitivity needs inputs to measure on")
    wanted = [module(*batch) for batch in batches]
    layers = sparse_layers(module)
    total = sum(len(options) for options in candidates.values())
    done, losses = 0, {}
    for name, options in candidates.items():
        weight = layers[name].weight
        before = weight.clone()
        losses[name] = {}
        try:
            for option, make in options.items():
                progress(done, total, f"{name} {option}")
                changed = make().clone()  # of the weight as it was
                weight.copy_(changed)
                values = [loss(module(*b), w) for b, w in zip(batches, wanted, strict=True)]
                weight.copy_(before)
                losses[name][option] = sum(values) / len(values)
                done += 1
        finally:
            weight.copy_(before)
    progress(total, total, "")
    return losses
