"""N:M sparsity: of every M consecutive inputs of an output channel, at most N weights are kept."""

import torch
from torch import Tensor, nn

from twillcore.models.pattern import Pattern

COMPARED = 16  # largest group whose members are ranked by comparing all pairs: faster than a sort


def _rank(grouped: Tensor) -> Tensor:
    """Return how many members of its row (rows, group) beat each one; the lower index wins ties."""
    columns = grouped.T.contiguous()
    rank = torch.zeros(columns.shape, dtype=torch.uint8)
    for i, one in enumerate(columns):
        for j, other in enumerate(columns[:i]):
            wins = other >= one
            rank[i] += wins
            rank[j] += ~wins
    return rank.T


def _rank_by_sort(grouped: Tensor) -> Tensor:
    order = grouped.sort(dim=-1, descending=True, stable=True).indices
    return torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[1]).expand_as(order)
    )


def strongest(score: Tensor, pattern: Pattern) -> Tensor:
    """Return where each row's groups have their highest scores, as a boolean mask.

    ``score`` is (outputs, inputs). Of equal scores the lowest index wins. Inputs need not be a
    multiple of the group: the last one is then short, and keeps as many as it has, up to N.
    """
    outputs, inputs = score.shape
    groups = -(-inputs // pattern.group)
    padded = score.new_full((outputs, groups * pattern.group), -torch.inf)
    padded[:, :inputs] = score
    grouped = padded.reshape(-1, pattern.group)
    mask = (_rank(grouped) if pattern.group <= COMPARED else _rank_by_sort(grouped)) < pattern.kept
    return mask.reshape(outputs, -1)[:, :inputs]


def project(weight: Tensor, pattern: Pattern) -> Tensor:
    """Return ``weight`` (outputs, inputs) with only its largest magnitudes kept in each group."""
    return torch.where(strongest(weight.abs(), pattern), weight, torch.zeros_like(weight))


def satisfies(weight: Tensor, pattern: Pattern) -> bool:
    """Return whether ``weight`` (outputs, inputs) already has the pattern."""
    return bool((project(weight, pattern) == weight).all())


@torch.no_grad()
def prune_by_magnitude(module: nn.Module, pattern: Pattern) -> None:
    """Project every linear layer of ``module``, in place."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            child.weight.copy_(project(child.weight, pattern))
