"""OMPQ: weight bits from the orthogonality of features (Ma et al. 2023, arXiv 2109.07865).

``ORM[i, j] = ||F_i^T F_j||^2 / (||F_i^T F_i|| ||F_j^T F_j||)`` of the centred features of two
layers; a layer like many others is unimportant. Bits follow from a linear program on one batch,
without labels. As published, for comparison: on a transformer the program goes to the corners of
its box, and :mod:`twillcore.models.allocation` on measured loss is far better.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import Tensor, nn

from twillcore.errors import TwillcoreError
from twillcore.models.layout import sparse_layers


@torch.no_grad()
def features(module: nn.Module, batch: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return what every linear or convolution layer makes of a batch, flat (samples, values)."""
    found: dict[str, Tensor] = {}
    names = {layer: name for name, layer in sparse_layers(module).items()}
    handles = [
        layer.register_forward_hook(
            lambda layer, _, out: found.__setitem__(names[layer], out.flatten(1))
        )
        for layer in names
    ]
    try:
        module(*batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


def orthogonality(found: Mapping[str, Tensor]) -> NDArray[np.float64]:
    """Return the ORM (layers, layers) of features (samples, ..): linear CKA; 1 on the diagonal."""
    grams = []
    for x in found.values():
        centred = (x - x.mean(0)).double()
        gram = centred @ centred.T
        grams.append((gram / gram.norm().clamp_min(1e-30)).flatten())
    stacked = torch.stack(grams)
    return (stacked @ stacked.T).numpy()


def importance(orm: NDArray, beta: float) -> NDArray[np.float64]:
    """Return the released objective: means of ``exp(-beta * gamma)`` from a layer to the last.

    gamma is the sum of a layer's ORM to all others.
    """
    theta = np.exp(-beta * (orm.sum(1) - np.diagonal(orm)))
    return np.cumsum(theta[::-1])[::-1] / np.arange(len(theta), 0, -1)


def choose_bits(
    weights: Mapping[str, int],
    importances: NDArray,
    average: float,
    bits: range = range(2, 9),
) -> dict[str, int]:
    """Return bits of each layer from the linear program, rounded down, within the budget.

    Parameters
    ----------
    weights : number of weights of each layer, in the order of ``importances``
    average : bits per weight

    Raises
    ------
    TwillcoreError
        If the average is below the fewest bits.
    """
    low, high = bits[0], bits[-1]
    if average < low:
        raise TwillcoreError(
            f"the target of {average:g} bits on average cannot be met: the best possible is {low}"
        )
    sizes = np.array(list(weights.values()), float)
    solution = linprog(
        -np.asarray(importances) / np.max(importances),
        A_ub=sizes[None] / sizes.sum(),
        b_ub=[average],
        bounds=(low, high),
    )
    floored = np.floor(solution.x + 1e-6).astype(int)
    return dict(zip(weights, floored.tolist(), strict=True))
