"""DominoSearch: N of each layer from a dense model (Sun et al. 2021, NeurIPS).

Groups lose weights where a penalty pushes them below a threshold. A layer whose groups have mostly
lost one gives up one; the penalty turns to layers that are far from their share of the sparsity
(ERK) or cost much. It ends when the whole network is sparse enough. The weights it leaves are
discarded: the scheme is trained afterwards, with SR-STE.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from twillcore.errors import TwillcoreError
from twillcore.models.checkpoint import Checkpoint
from twillcore.models.layout import as_rows, mask_of, sparse_layers
from twillcore.models.pattern import Pattern
from twillcore.models.plain import remove_parametrisations


@dataclass(frozen=True)
class Search:
    """Constants of the search, the paper's unless said otherwise.

    Attributes
    ----------
    group : M
    rate : of SGD without momentum
    decay : of the penalty, doubled every ``doubling`` iterations (the paper waits 30,000 before)
    every : iterations from one penalty to the next
    review : iterations from one look at the groups to the next
    share : of the groups that must have lost a weight before their layer gives one up
    iterations : at most
    """

    group: int = 8
    rate: float = 0.01
    decay: float = 0.1
    doubling: int = 2000
    every: int = 5
    review: int = 100
    share: float = 0.75
    iterations: int = 20_000


class _Top(nn.Module):
    """Only the strongest N of each group, and gradients only for these."""

    def __init__(self, group: int) -> None:
        super().__init__()
        self.pattern = Pattern(group, group)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * mask_of(weight, self.pattern)


def erk_densities(shapes: Mapping[str, tuple[int, ...]], density: float) -> dict[str, float]:
    """Return densities by Erdos-Renyi-Kernel that keep ``density`` of all weights.

    A layer's is proportional to (sum of dimensions) / (product of dimensions); those that would
    exceed 1 are dense, and the others share what is left.
    """
    weights = {name: float(torch.Size(shape).numel()) for name, shape in shapes.items()}
    raw = {name: sum(shape) / weights[name] for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        left = density * sum(weights.values()) - sum(weights[name] for name in dense)
        others = [name for name in shapes if name not in dense]
        scale = left / max(sum(raw[name] * weights[name] for name in others), 1e-30)
        if not (full := {name for name in others if scale * raw[name] > 1}):
            return {name: 1.0 if name in dense else scale * raw[name] for name in shapes}
        dense |= full


def _grouped(weight: Tensor, group: int) -> Tensor:
    rows = as_rows(weight).abs()
    return functional.pad(rows, (0, -rows.shape[1] % group)).reshape(-1, group)


def search_scheme(
    module: nn.Module,
    loss: Callable[[int], Tensor],
    density: float,
    macs: Mapping[str, float],
    search: Search = Search(),
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
    names: Sequence[str] | None = None,
    checkpoint: Checkpoint | None = None,
) -> dict[str, Pattern]:
    """Return a pattern for each layer with at most ``density`` of the weights in all.

    ``module`` is trained and dense; its weights are changed.

    Parameters
    ----------
    loss : of an iteration's batch, by its number, with gradients
    macs : multiplications of each layer when dense
    names : of the layers that count; default: all
    checkpoint : to save to at every review and to resume from

    Raises
    ------
    TwillcoreError
        If the density is not reached: what it came to is named. If the group cannot express it, or
        the checkpoint is damaged or of another search.
    """
    group, layers = search.group, sparse_layers(module)
    layers = {n: layer for n, layer in layers.items() if names is None or n in names}
    if not 1 / group <= density <= 1:
        raise TwillcoreError(
            f"density {density:g} cannot be met: the best possible of N:{group} is {1 / group:g}"
        )
    decisions = dict.fromkeys(layers, group)
    sizes = {name: layer.weight.numel() for name, layer in layers.items()}
    shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items()}
    wanted = erk_densities(shapes, density)
    thresholds, tops = {}, {}
    for name, layer in layers.items():
        weakest = _grouped(layer.weight.detach(), group).sort(-1).values[:, : max(group // 2, 1)]
        thresholds[name] = weakest.mean(-1, keepdim=True)
        tops[name] = _Top(group)
        parametrize.register_parametrization(layer, "weight", tops[name])
    originals = {name: layer.parametrizations["weight"].original for name, layer in layers.items()}
    trained = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=search.rate)
    first = 0
    if checkpoint is not None:
        checkpoint = checkpoint.of(density=density, **asdict(search))
        if (state := checkpoint.resume(module, optimiser)) is not None:
            first, decisions = state["step"], state["decisions"]
            for name, kept in state["kept"].items():
                tops[name].pattern = Pattern(kept, group)
    factors = _factors(decisions, group, wanted, macs)

    def reached() -> float:
        return sum(sizes[n] * kept / group for n, kept in decisions.items()) / sum(sizes.values())

    try:
        for step in range(first, search.iterations):
            if reached() <= density + 0.001:
                break
            optimiser.zero_grad(set_to_none=True)
            loss(step).backward()
            if step % search.every == 0:
                strength = search.decay * 2 ** (step // search.doubling)
                for name, weight in originals.items():
                    with torch.no_grad():
                        mask = mask_of(weight, tops[name].pattern)
                        weight.grad.add_(weight * mask, alpha=strength * factors[name])
            optimiser.step()
            if (step + 1) % search.review == 0:
                changed = False
                for name, weight in originals.items():
                    kept = tops[name].pattern.kept
                    if kept == 1:
                        continue
                    alive = (_grouped(weight.detach(), group) > thresholds[name]).sum(-1)
                    if (alive < kept).float().mean() >= search.share:
                        kept -= 1
                        tops[name].pattern = Pattern(kept, group)
                        if kept & (kept - 1) == 0:
                            decisions[name], changed = kept, True
                if changed:
                    factors = _factors(decisions, group, wanted, macs)
                if checkpoint is not None:
                    kept = {name: top.pattern.kept for name, top in tops.items()}
                    state = {"step": step + 1, "decisions": decisions, "kept": kept}
                    checkpoint.save(module, optimiser, state)
                progress(step + 1, search.iterations, f"density {reached():.3f}")
    finally:
        for layer in layers.values():
            remove_parametrisations(layer)
    if reached() > density + 0.001:
        raise TwillcoreError(
            f"DominoSearch came to a density of {reached():.3f}, not {density:g}, in"
            f" {search.iterations} iterations: allow more, or a stronger decay"
        )
    return {name: Pattern(kept, group) for name, kept in decisions.items()}


def _factors(
    decisions: Mapping[str, int],
    group: int,
    wanted: Mapping[str, float],
    macs: Mapping[str, float],
) -> dict[str, float]:
    """Return the penalty of each layer: half from its cost, half from its distance to ERK."""
    cost = {name: macs[name] * kept / group for name, kept in decisions.items()}
    gap = {name: kept / group - wanted[name] for name, kept in decisions.items()}
    largest_cost = max(cost.values())
    largest_gap = max(abs(value) for value in gap.values())
    return {
        name: 0.5 * cost[name] / largest_cost
        + (0.5 * gap[name] / largest_gap if largest_gap >= 0.01 else 0.0)
        for name in decisions
    }
