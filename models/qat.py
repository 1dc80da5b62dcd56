"""Fake quantisation for training: the rounding of the chip in the forward, straight through back.

Weights are symmetric per output channel with 2..8 bits, activations symmetric per tensor with 8;
integers come from :func:`twillcore.numerics.saturate` after rounding to nearest. What is zero
stays zero, so the masks of N:M survive.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from twillcore.errors import TwillcoreError
from twillcore.models.layout import per_layer, sparse_layers
from twillcore.models.plain import remove_parametrisations
from twillcore.numerics import saturate

GRID = np.linspace(0.55, 1.0, 19)  # of the largest magnitude: scales tried for few bits


def _rounded(x: Tensor, bits: int) -> Tensor:
    """Return ``x`` rounded to the integers of ``bits``, symmetric: -(2**(bits-1) - 1) and up."""
    limit = (1 << (bits - 1)) - 1
    integers = saturate(np.rint(x.detach().numpy()).astype(np.int64), bits)
    return torch.from_numpy(np.maximum(integers, -limit)).to(x.dtype)


def row_scales(weight: Tensor, bits: int) -> Tensor:
    """Return a scale per row (rows, 1): of those up to the largest magnitude, the least error.

    At 8 bits the largest magnitude itself, which the compiler takes as well.
    """
    limit = (1 << (bits - 1)) - 1
    peak = weight.detach().abs().amax(1, keepdim=True).clamp_min(1e-30)
    if bits == 8:
        return peak / limit
    best, least = peak / limit, torch.full_like(peak, torch.inf)
    for part in GRID:
        scale = peak * float(part) / limit
        rounded = (weight / scale).round().clamp(-limit, limit) * scale
        error = (rounded - weight).square().sum(1, keepdim=True)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best


@torch.no_grad()
def quantise_rows(weight: Tensor, bits: int) -> Tensor:
    """Return ``weight`` (outputs, inputs) on the grid of ``bits`` with a scale per row."""
    scale = row_scales(weight, bits)
    return _rounded(weight / scale, bits) * scale


def on_grid(weight: Tensor, bits: int) -> bool:
    """Return whether every row of ``weight`` has only multiples of a step that ``bits`` can count.

    The row's largest magnitude is an integer of the grid: each one possible is tried.
    """
    peak = weight.detach().abs().amax(1, keepdim=True).clamp_min(1e-30)
    pending = torch.ones(len(weight), dtype=torch.bool)
    for largest in range((1 << (bits - 1)) - 1, 0, -1):
        multiples = weight.detach()[pending] / peak[pending] * largest
        fits = (multiples - multiples.round()).abs().amax(1) < 1e-3
        pending[pending.nonzero()[:, 0][fits]] = False
    return not pending.any()


class FakeQuantised(nn.Module):
    """Parametrisation: a weight on the grid of ``bits``, with gradients straight through.

    The scale is found anew in every forward. Registered after a mask it keeps the mask's zeros.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        if not 2 <= bits <= 8:
            raise TwillcoreError(f"bits must be 2..8, not {bits}")
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        rows = weight.detach().reshape(len(weight), -1)
        return weight + (quantise_rows(rows, self.bits).reshape(weight.shape) - weight).detach()


class FakeActivation(nn.Module):
    """Int8 inputs of a layer, with a static scale from the largest magnitude seen so far.

    While ``module.training`` the range grows; afterwards it is fixed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("peak", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.peak.copy_(torch.maximum(self.peak, x.detach().abs().max()))
        scale = self.peak.clamp_min(1e-30) / 127
        return x + (_rounded(x / scale, 8) * scale - x).detach()


def fake_quantise(
    module: nn.Module, bits: int | dict[str, int] = 8, activations: bool = True
) -> nn.Module:
    """Let the linear and convolution layers of ``module`` compute as on the chip, in place.

    Parameters
    ----------
    bits : of the weights, for all layers or by name for some
    activations : quantise the inputs of these layers to int8, too

    Raises
    ------
    TwillcoreError
        If bits are not 2..8, or a name is of no such layer.
    """
    layers = sparse_layers(module)
    for name, width in per_layer(module, bits).items():
        layer = layers[name]
        parametrize.register_parametrization(layer, "weight", FakeQuantised(width))
        if activations:
            layer.fake_activation = FakeActivation().train(layer.training)
            layer.register_forward_pre_hook(
                lambda layer, inputs: (layer.fake_activation(inputs[0]), *inputs[1:])
            )
    return module


@torch.no_grad()
def unwrap(module: nn.Module) -> nn.Module:
    """Replace fake quantisation by plain weights on their grids, in place."""
    for layer in sparse_layers(module).values():
        if parametrize.is_parametrized(layer, "weight"):
            remove_parametrisations(layer)
        if hasattr(layer, "fake_activation"):
            del layer.fake_activation
            layer._forward_pre_hooks.clear()
    return module
