"""Low rank: a linear layer as two, with less work if the rank is small.

Truncation is of what the layer *computes* on calibration data: the singular value decomposition of
``W S`` with ``S S^T = X^T X`` (activation-aware). Training keeps weights near low rank as TRP does
(Xu et al. 2020, arXiv 2004.14566). Ranks are multiples of the array's width and chosen by cycles,
which is HALOC's design rule (2023): a rank in between costs as much as the next multiple.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from twillcore.config import Config
from twillcore.errors import TwillcoreError
from twillcore.models.allocation import allocate
from twillcore.models.cost import LayerShape

DAMPING = 1e-6  # of the mean diagonal of X^T X


def truncate(weight: Tensor, rank: int, gram: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return A (outputs, rank) and B (rank, inputs) with ``A @ B`` nearest to ``weight``.

    Parameters
    ----------
    gram : ``X.T @ X`` of the layer's inputs: nearest in the outputs; None: in the weights

    Raises
    ------
    TwillcoreError
        If the rank is not 1..min(outputs, inputs).
    """
    largest = min(weight.shape)
    if not 1 <= rank <= largest:
        raise TwillcoreError(f"rank must be 1..{largest}, not {rank}")
    target, root = weight.double(), None
    if gram is not None:
        gram = gram.double()
        ridge = DAMPING * gram.diagonal().mean().clamp_min(1e-30)
        root = torch.linalg.cholesky(gram + ridge * torch.eye(len(gram), dtype=gram.dtype))
        target = target @ root
    u, s, vh = torch.linalg.svd(target, full_matrices=False)
    left = u[:, :rank] * s[:rank].sqrt()
    right = s[:rank].sqrt()[:, None] * vh[:rank]
    if root is not None:
        right = torch.linalg.solve_triangular(root, right, upper=False, left=False)
    return left.to(weight.dtype), right.to(weight.dtype)


def two_layers(linear: nn.Linear, rank: int, gram: Tensor | None = None) -> nn.Sequential:
    """Return ``linear`` as two layers of ``rank`` between them; the bias is the second's."""
    a, b = truncate(linear.weight.detach(), rank, gram)
    first = nn.Linear(linear.in_features, rank, bias=False)
    second = nn.Linear(rank, linear.out_features, bias=linear.bias is not None)
    with torch.no_grad():
        first.weight.copy_(b)
        second.weight.copy_(a)
        if linear.bias is not None:
            second.bias.copy_(linear.bias)
    return nn.Sequential(first, second).train(linear.training)


def factorise(
    module: nn.Module, ranks: Mapping[str, int], grams: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Replace linear layers by two of the given rank, in place; rank 0 leaves a layer whole.

    Raises
    ------
    TwillcoreError
        If a name is of no linear layer, or a rank too large.
    """
    known = {name for name, m in module.named_modules() if isinstance(m, nn.Linear)}
    if unknown := sorted(ranks.keys() - known):
        raise TwillcoreError(f"no linear layers {', '.join(unknown)}")
    for name, rank in ranks.items():
        if rank:
            parent, _, child = name.rpartition(".")
            layer = module.get_submodule(name)
            factors = two_layers(layer, rank, None if grams is None else grams[name])
            setattr(module.get_submodule(parent), child, factors)
    return module


@torch.no_grad()
def gram_matrices(module: nn.Module, batches: Sequence[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    """Return ``X.T @ X`` of what each linear layer receives; batches without padding.

    Raises
    ------
    TwillcoreError
        If there is no data.
    """
    if not batches:
        raise TwillcoreError("no calibration data: activation-aware factors need inputs")
    grams: dict[str, Tensor] = {}
    names = {m: name for name, m in module.named_modules() if isinstance(m, nn.Linear)}

    def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].reshape(-1, inputs[0].shape[-1])
        grams[names[layer]] = grams.get(names[layer], 0) + x.T @ x

    handles = [layer.register_forward_pre_hook(add) for layer in names]
    try:
        for batch in batches:
            module(*batch)
    finally:
        for handle in handles:
            handle.remove()
    return grams


def rank_options(shape: LayerShape, config: Config) -> list[int]:
    """Return ranks worth having: multiples of the array's width that save cycles; 0 is whole."""
    whole = shape.cycles(config, config.block)
    width = config.dsp_columns
    return [0] + [
        rank
        for rank in range(width, min(shape.inputs, shape.outputs), width)
        if shape.low_rank_cycles(config, rank) < whole
    ]


def lost_energy(weight: Tensor, ranks: Sequence[int], gram: Tensor) -> dict[int, float]:
    """Return the share of a layer's output energy that each rank loses; 0 loses none."""
    ridge = DAMPING * gram.diagonal().mean().clamp_min(1e-30)
    root = torch.linalg.cholesky((gram + ridge * torch.eye(len(gram))).double())
    energy = torch.linalg.svdvals(weight.detach().double() @ root).square()
    total = float(energy.sum())
    return {rank: float(energy[rank:].sum()) / total if rank else 0.0 for rank in ranks}


def choose_ranks(
    module: nn.Module,
    shapes: Mapping[str, LayerShape],
    grams: Mapping[str, Tensor],
    config: Config,
    cycles: float,
) -> dict[str, int]:
    """Return the rank of each linear layer: least energy lost within a budget of cycles."""
    loss, cost = {}, {}
    for name, gram in grams.items():
        options = rank_options(shapes[name], config)
        loss[name] = lost_energy(module.get_submodule(name).weight, options, gram)
        cost[name] = {
            rank: shapes[name].low_rank_cycles(config, rank)
            if rank
            else shapes[name].cycles(config, config.block)
            for rank in options
        }
    return allocate(loss, cost, cycles, "cycles")


@torch.no_grad()
def trp_project(module: nn.Module, energy: float = 0.9) -> dict[str, int]:
    """Replace every linear weight by its truncation that keeps ``energy``; return the ranks.

    A step of TRP: to be called every few steps of an otherwise ordinary training.
    """
    ranks = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            u, s, vh = torch.linalg.svd(layer.weight, full_matrices=False)
            share = s.square().cumsum(0) / s.square().sum().clamp_min(1e-30)
            rank = min(int((share < energy).sum()) + 1, len(s))
            layer.weight.copy_((u[:, :rank] * s[:rank]) @ vh[:rank])
            ranks[name] = rank
    return ranks


@torch.no_grad()
def trp_nuclear_gradient(module: nn.Module, strength: float = 3e-4) -> None:
    """Add the sub-gradient of the nuclear norm, ``strength * U V^T``, to every linear's gradient.

    To be called between backward and the optimiser's step.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and layer.weight.grad is not None:
            u, s, vh = torch.linalg.svd(layer.weight, full_matrices=False)
            rank = int((s > s[0] * 1e-6).sum())
            layer.weight.grad.add_(u[:, :rank] @ vh[:rank], alpha=strength)
