"""Low rank: a linear layer as two, with less work if the rank is small.

Truncation is of what the layer *computes* on calibration data: the singular value decomposition of
``W S`` with ``S S^T = X^T X`` (activation-aware). Training keeps weights near low rank as TRP does
(Xu et al. 2020, arXiv 2004.14566). Ranks are multiples of the array's width and chosen by cycles,
which is HALOC's design rule (2023): a rank in between costs as much as the next multiple. They are
chosen by lost energy, or searched as HALOC does, by trained probabilities with cycles in the loss.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from twillcore.config import Config
from twillcore.errors import TwillcoreError
from twillcore.models.cost import LayerShape
from twillcore.models.plain import remove_parametrisations
from twillcore.models.reconstruct import hessians

DAMPING = 1e-6  # of the mean diagonal of X^T X
SHARPEST = 0.05  # temperature at the end of a search of ranks, from 1
OVERDRAFT = 10.0  # loss of expected cycles of twice the budget
TRP_PERIOD = 5  # steps of the optimiser
TRP_STEPS = "trp_steps"  # entry of a parameter group: steps so far


def _square_root(gram: Tensor) -> Tensor:
    """Return S, lower triangular, with ``S @ S.T`` the damped ``gram``, in double precision."""
    gram = gram.double()
    ridge = DAMPING * gram.diagonal().mean().clamp_min(1e-30)
    while True:  # the rounding of sums in single precision may outweigh the damping
        root, failed = torch.linalg.cholesky_ex(gram + ridge * torch.eye(len(gram)))
        if not failed:
            return root
        if not gram.isfinite().all():
            raise TwillcoreError("calibration gives NaN or infinity")
        ridge *= 10


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
        root = _square_root(gram)
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


def gram_matrices(module: nn.Module, batches: Sequence[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    """Return ``X.T @ X`` of what each linear layer receives; batches without padding.

    Raises
    ------
    TwillcoreError
        If there is no data.
    """
    if not batches:
        raise TwillcoreError("no calibration data: activation-aware factors need inputs")
    names = [name for name, m in module.named_modules() if isinstance(m, nn.Linear)]
    return hessians(module, batches, names)


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
    energy = torch.linalg.svdvals(weight.detach().double() @ _square_root(gram)).square()
    total = float(energy.sum())
    return {rank: float(energy[rank:].sum()) / total if rank else 0.0 for rank in ranks}


def rank_costs(
    shapes: Mapping[str, LayerShape], names: Iterable[str], config: Config
) -> dict[str, dict[int, int]]:
    """Return the cycles of every rank that is worth having, by layer; 0 is the whole layer."""
    return {
        name: {
            rank: shapes[name].low_rank_cycles(config, rank)
            if rank
            else shapes[name].cycles(config, config.block)
            for rank in rank_options(shapes[name], config)
        }
        for name in names
    }


def lost_energies(
    module: nn.Module, cost: Mapping[str, Mapping[int, int]], grams: Mapping[str, Tensor]
) -> dict[str, dict[int, float]]:
    """Return the share of output energy that every rank of :func:`rank_costs` loses, by layer."""
    return {
        name: lost_energy(module.get_submodule(name).weight, list(options), grams[name])
        for name, options in cost.items()
    }


class _Gated(nn.Module):
    """Parametrisation: a weight, or its factors up to a rank, in the shares of probabilities.

    The factors of a rank are the first of those of any larger one, so the mixture is one product
    with a gate per chunk of ranks.
    """

    def __init__(self, weight: Tensor, options: Sequence[int], gram: Tensor) -> None:
        super().__init__()
        self.options = list(options)
        self.logits = nn.Parameter(torch.zeros(len(self.options)))
        a, b = truncate(weight, max(max(self.options), 1), gram)
        self.register_buffer("a", a)
        self.register_buffer("b", b)
        reach = torch.arange(a.shape[1])[:, None] < torch.tensor(self.options)
        self.register_buffer("reach", reach.to(a.dtype))  # (ranks, options)
        self.temperature = 1.0

    def probabilities(self) -> Tensor:
        return (self.logits / self.temperature).softmax(0)

    def forward(self, weight: Tensor) -> Tensor:
        shares = self.probabilities()
        return shares[self.options.index(0)] * weight + (self.a * (self.reach @ shares)) @ self.b


def search_ranks(
    module: nn.Module,
    cost: Mapping[str, Mapping[int, int]],
    grams: Mapping[str, Tensor],
    cycles: float,
    loss: Callable[[int], Tensor],
    steps: int = 100,
    rate: float = 0.1,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> dict[str, dict[int, float]]:
    """Return the surprise, -log of the probability, of every layer's ranks as HALOC trains it.

    Each layer computes the mixture of its options, which sharpens, with expected cycles in the
    loss. The ranks of the greatest joint probability are those of the least surprise in all.
    ``module`` stays as it is.

    Parameters
    ----------
    cost : of :func:`rank_costs`
    cycles : of the products, beyond which they cost
    loss : of an iteration's batch, by its number, with gradients to the weights of ``module``

    Raises
    ------
    TwillcoreError
        If the loss is not finite.
    """
    gates = {}
    for name, options in cost.items():
        layer = module.get_submodule(name)
        gates[name] = _Gated(layer.weight.detach(), list(options), grams[name])
        parametrize.register_parametrization(layer, "weight", gates[name])
    optimiser = torch.optim.Adam([gate.logits for gate in gates.values()], lr=rate)
    try:
        for step in range(steps):
            for gate in gates.values():
                gate.temperature = SHARPEST ** (step / max(steps - 1, 1))
            expected = sum(
                gate.probabilities() @ torch.tensor([float(c) for c in cost[name].values()])
                for name, gate in gates.items()
            )
            value = loss(step) + (expected / cycles - 1).relu() * OVERDRAFT
            if not value.isfinite():
                raise TwillcoreError(f"search of ranks: the loss is {value.item()} at step {step}")
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            optimiser.step()
            progress(step + 1, steps, f"loss {value.item():.4f}")
        surprise = {
            name: dict(zip(gate.options, (-gate.probabilities().clamp_min(1e-30).log()).tolist(),
                           strict=True))
            for name, gate in gates.items()
        }  # fmt: skip
    finally:
        for name in gates:
            layer = module.get_submodule(name)
            original = layer.parametrizations["weight"].original
            remove_parametrisations(layer)
            layer.weight = original
    return surprise


@torch.no_grad()
def trp_project(
    module: nn.Module, energy: float = 0.9, layers: Sequence[str] | None = None
) -> dict[str, int]:
    """Replace linear weights by their truncations that keep ``energy``; return the ranks.

    A step of TRP: to be called every few steps of an otherwise ordinary training. ``layers`` are
    names of some; default: all.
    """
    ranks = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and (layers is None or name in layers):
            u, s, vh = torch.linalg.svd(layer.weight, full_matrices=False)
            share = s.square().cumsum(0) / s.square().sum().clamp_min(1e-30)
            rank = min(int((share < energy).sum()) + 1, len(s))
            layer.weight.copy_((u[:, :rank] * s[:rank]) @ vh[:rank])
            ranks[name] = rank
    return ranks


@torch.no_grad()
def trp_nuclear_gradient(
    module: nn.Module, strength: float = 3e-4, layers: Sequence[str] | None = None
) -> None:
    """Add the sub-gradient of the nuclear norm, ``strength * U V^T``, to linear layers' gradients.

    To be called between backward and the optimiser's step.
    """
    for name, layer in module.named_modules():
        if not isinstance(layer, nn.Linear) or (layers is not None and name not in layers):
            continue
        if layer.weight.grad is not None:
            u, s, vh = torch.linalg.svd(layer.weight, full_matrices=False)
            rank = int((s > s[0] * 1e-6).sum())
            layer.weight.grad.add_(u[:, :rank] @ vh[:rank], alpha=strength)


def train_low_rank(
    optimiser: torch.optim.Optimizer,
    module: nn.Module,
    layers: Sequence[str],
    period: int = TRP_PERIOD,
    energy: float = 0.9,
    strength: float = 3e-4,
) -> None:
    """Let every ``period``-th step of ``optimiser`` be one of TRP.

    The steps are counted in the optimiser's first parameter group, so a checkpoint has the count.
    """
    optimiser.param_groups[0].setdefault(TRP_STEPS, 0)

    def before(*_: object) -> None:
        if (optimiser.param_groups[0][TRP_STEPS] + 1) % period == 0:
            trp_nuclear_gradient(module, strength * period, layers)

    def after(*_: object) -> None:
        optimiser.param_groups[0][TRP_STEPS] += 1
        if optimiser.param_groups[0][TRP_STEPS] % period == 0:
            trp_project(module, energy, layers)

    optimiser.register_step_pre_hook(before)
    optimiser.register_step_post_hook(after)
