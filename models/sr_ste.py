"""SR-STE: N:M sparse weights that are trained dense (Zhou et al. 2021, arXiv 2102.04010).

The dense weight W stays as a shadow. Every forward keeps of it what is strongest in each group,
``E * W`` with the mask E made anew. The gradient of the masked weight reaches all of W (straight
through), and what is masked decays (equation 8):

    W <- W - rate * (g + decay * (1 - E) * W)

As a parametrisation it works with any optimiser. Adam would divide the decay by its second moment,
which undoes it (STEP, arXiv 2302.01172): :func:`decouple` applies it beside the gradient.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from twillcore.models.layout import mask_of, per_layer
from twillcore.models.pattern import Pattern
from twillcore.models.plain import remove_parametrisations

DECAY = 2e-4  # the paper's, for rates around 0.1


class _Masked(torch.autograd.Function):
    """``E * W``, straight through, with the decay of what is masked in the gradient."""

    @staticmethod
    def forward(ctx, weight: Tensor, mask: Tensor, decay: float) -> Tensor:
        ctx.decay = decay
        ctx.save_for_backward(weight, mask)
        return weight * mask

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        if not ctx.decay:
            return gradient, None, None
        weight, mask = ctx.saved_tensors
        return gradient + ctx.decay * (weight * ~mask), None, None


class SrSte(nn.Module):
    """Parametrisation of one weight; see :func:`sparsify`.

    Attributes
    ----------
    pattern : may be changed between steps, as inherited pruning does
    decay : of masked weights, in the gradient; 0 is the plain straight-through estimator
    mask : of the last forward, boolean, shaped as the weight; None before the first
    """

    def __init__(self, pattern: Pattern, decay: float = DECAY) -> None:
        super().__init__()
        self.pattern, self.decay = pattern, decay
        self.mask: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        mask = mask_of(weight, self.pattern)
        if not torch.compiler.is_exporting():  # which only warns of attributes that change
            self.mask = mask
        return _Masked.apply(weight, mask, self.decay)


def sparsify(
    module: nn.Module, patterns: Pattern | dict[str, Pattern], decay: float = DECAY
) -> nn.Module:
    """Make the weights of ``module`` N:M sparse in every forward, in place, and return it.

    Parameters
    ----------
    patterns : for all linear and convolution layers, or by name for some; kept == group is dense
    decay : see :class:`SrSte`; 0 when :func:`decouple` does it

    Raises
    ------
    TwillcoreError
        If a name is of no such layer.
    """
    for name, pattern in per_layer(module, patterns).items():
        if pattern.kept < pattern.group:
            layer = module.get_submodule(name)
            parametrize.register_parametrization(layer, "weight", SrSte(pattern, decay))
    return module


def parametrised(module: nn.Module) -> Iterator[tuple[str, Tensor, SrSte]]:
    """Yield name, dense shadow weight and parametrisation of every sparse layer."""
    for name, layer in module.named_modules():
        if parametrize.is_parametrized(layer, "weight"):
            entry = layer.parametrizations["weight"]
            if isinstance(entry[0], SrSte):
                yield name, entry.original, entry[0]


def set_patterns(module: nn.Module, patterns: Mapping[str, Pattern]) -> None:
    """Change the patterns of layers that :func:`sparsify` has made sparse."""
    for name, _, parametrisation in parametrised(module):
        if name in patterns:
            parametrisation.pattern = patterns[name]


def decouple(optimiser: torch.optim.Optimizer, module: nn.Module, decay: float) -> None:
    """Let every step of ``optimiser`` decay masked weights: ``W -= rate * decay * (1 - E) * W``.

    For Adam and its like. E is the mask of the forward before the step, and the rate is that of
    the weight's parameter group at that step.
    """

    @torch.no_grad()
    def after_step(*_: object) -> None:
        rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
        for _, weight, parametrisation in parametrised(module):
            if id(weight) in rates and parametrisation.mask is not None:
                weight.sub_(weight * ~parametrisation.mask, alpha=rates[id(weight)] * decay)

    optimiser.register_step_post_hook(after_step)


def freeze(module: nn.Module) -> nn.Module:
    """Replace parametrisations by plain sparse weights, in place, and return the module."""
    for name, _, _ in list(parametrised(module)):
        remove_parametrisations(module.get_submodule(name))
    return module
