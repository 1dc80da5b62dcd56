"""Pruning and rounding that repair what they do: layer-wise reconstruction on calibration data.

Layer by layer, in the order of computation, the weights that remain are changed so that the layer's
output on calibration data changes least (optimal brain surgeon, swept over the columns as
SparseGPT does, arXiv 2301.00774). Where a layer also has few bits, each column is pruned and
rounded in the same sweep, and the columns to come make up for both. Later layers see the inputs
that the earlier ones make. Convolutions count as products of their unfolded inputs, tap by tap.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from scipy.linalg import cholesky, lapack
from torch import Tensor, nn
from torch.nn import functional

from twillcore.errors import TwillcoreError
from twillcore.models.nm import strongest
from twillcore.models.pattern import Pattern
from twillcore.models.qat import row_scales

DAMPING = 0.01  # of the mean diagonal of the Hessian
ROUNDING_DAMPING = 0.3  # when rounding: there is little data, and small errors follow it too far
COLUMNS_AT_ONCE = 128  # columns whose corrections reach the rest of the row in one product

Progress = Callable[[int, int, str], None]  # layers done, layers in all, name of the next one


class _Reached(Exception):
    pass


def inverse_factor(hessian: Tensor, damping: float = DAMPING) -> Tensor:
    """Return U, upper triangular, with ``U.T @ U`` the inverse of the damped ``hessian``."""
    h = hessian.double().numpy().copy()
    diagonal = np.einsum("ii->i", h)
    diagonal += damping * diagonal.mean()
    lower = cholesky(h, lower=True, check_finite=False)
    inverse, info = lapack.dpotri(lower, lower=True)
    if info:
        raise TwillcoreError("calibration data make no invertible Hessian: are they all zero?")
    return torch.from_numpy(cholesky(inverse, lower=True, check_finite=False).T.copy()).float()


def prune_weight(weight: Tensor, hessian: Tensor, pattern: Pattern, bits: int = 8) -> Tensor:
    """Return ``weight`` (outputs, inputs), pruned and repaired.

    Parameters
    ----------
    hessian : ``X.T @ X`` (times any constant) of the layer's inputs X (samples, inputs)
    bits : below 8, weights also lie on the grid of so many bits, with a scale per row; 8: any value
    """
    weight = weight.clone()
    limit = (1 << (bits - 1)) - 1
    scale = row_scales(weight, bits)[:, 0] if bits < 8 else None
    unused = hessian.diagonal() == 0
    weight[:, unused] = 0
    hessian = hessian + torch.diag(unused.to(hessian.dtype))
    u = inverse_factor(hessian, DAMPING if scale is None else ROUNDING_DAMPING)
    step = max(COLUMNS_AT_ONCE // pattern.group, 1) * pattern.group
    inputs = weight.shape[1]
    for start in range(0, inputs, step):
        stop = min(start + step, inputs)
        block, errors = weight[:, start:stop], torch.zeros(len(weight), stop - start)
        local = u[start:stop, start:stop]
        for j in range(stop - start):
            if j % pattern.group == 0:
                group = slice(j, min(j + pattern.group, stop - start))
                keep = strongest((block[:, group] / local.diagonal()[group]) ** 2, pattern)
            kept = torch.where(keep[:, j % pattern.group], block[:, j], 0.0)
            if scale is not None:
                kept = (kept / scale).round().clamp(-limit, limit) * scale
            errors[:, j] = (block[:, j] - kept) / local[j, j]
            block[:, j:] -= errors[:, j, None] * local[j, j:]
            block[:, j] = kept
        weight[:, stop:] -= errors @ u[start:stop, stop:]
    return weight


def as_product(layer: nn.Module) -> Tensor:
    """Return the weight of a linear layer or convolution as (outputs, taps * inputs), tap by tap.

    Groups along the inputs lie inside a tap, as in :mod:`twillcore.models.layout`.
    """
    return layer.weight.movedim(1, -1).reshape(len(layer.weight), -1)


def refusal(layer: nn.Module, pattern: Pattern) -> str:
    """Return why a layer cannot be reconstructed, or nothing."""
    if isinstance(layer, nn.Linear):
        return ""
    if not isinstance(layer, nn.Conv2d) or layer.groups > 1 or layer.padding_mode != "zeros":
        return "only linear layers and ungrouped 2-d convolutions with zero padding can be"
    if isinstance(layer.padding, str):
        return "its padding must be numbers"
    if layer.in_channels % pattern.group:
        return f"groups of {pattern.group} do not divide {layer.in_channels} input channels"
    return ""


def _product_inputs(layer: nn.Module, x: Tensor) -> Tensor:
    """Return what reaches ``layer`` as the rows of its product (samples, taps * inputs)."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, layer.in_features)
    unfolded = functional.unfold(
        x, layer.kernel_size, layer.dilation, layer.padding, layer.stride
    )  # (batch, inputs * taps, positions)
    columns = unfolded.reshape(len(x), layer.in_channels, -1, unfolded.shape[-1])
    return columns.permute(0, 3, 2, 1).reshape(-1, unfolded.shape[1])


def _hessian(module: nn.Module, layer: nn.Module, batches: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """Sum ``X.T @ X`` over what ``layer`` receives."""
    inputs = layer.weight[0].numel()
    total = torch.zeros(inputs, inputs)

    def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = _product_inputs(layer, inputs[0])
        total.addmm_(x.T, x)
        raise _Reached

    handle = layer.register_forward_pre_hook(add)
    try:
        for batch in batches:
            try:
                module(*batch)
            except _Reached:
                continue
    finally:
        handle.remove()
    return total


@torch.no_grad()
def hessians(
    module: nn.Module, batches: Sequence[tuple[Tensor, ...]], names: Iterable[str]
) -> dict[str, Tensor]:
    """Return ``X.T @ X`` of what each named layer receives while the network is as it is."""
    found: dict[str, Tensor] = {}
    layers = {module.get_submodule(name): name for name in names}

    def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = _product_inputs(layer, inputs[0])
        found[layers[layer]] = found.get(layers[layer], 0) + x.T @ x

    handles = [layer.register_forward_pre_hook(add) for layer in layers]
    try:
        for batch in batches:
            module(*batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


def with_product(layer: nn.Module, product: Tensor) -> Tensor:
    """Return what :func:`as_product` made of a layer's weight back in the weight's shape."""
    return product.reshape(layer.weight.movedim(1, -1).shape).movedim(-1, 1)


@torch.no_grad()
def prune_by_reconstruction(
    module: nn.Module,
    batches: Sequence[tuple[Tensor, ...]],
    pattern: Pattern | Mapping[str, Pattern],
    progress: Progress = lambda done, total, name: None,
    bits: Mapping[str, int] | None = None,
) -> None:
    """Prune and round layers of ``module``, in place and in the order of registration.

    ``batches`` are inputs of the module without padding: every row that reaches a layer counts.

    Parameters
    ----------
    pattern : for every linear layer, or by name for some, also convolutions
    bits : by name, of layers that ``pattern`` names; others are not rounded

    Raises
    ------
    TwillcoreError
        If calibration data have no finite statistics at some layer, there is none of a name, or it
        is of a kind that cannot be reconstructed.
    """
    known = {name: m for name, m in module.named_modules() if hasattr(m, "weight")}
    if isinstance(pattern, Pattern):
        linear = [name for name, m in known.items() if isinstance(m, nn.Linear)]
        pattern = dict.fromkeys(linear, pattern)
    if unknown := pattern.keys() - known.keys():
        raise TwillcoreError(f"no layers {', '.join(sorted(unknown))}")
    layers = {name: layer for name, layer in known.items() if name in pattern}
    for name, layer in layers.items():
        if reason := refusal(layer, pattern[name]):
            raise TwillcoreError(f"{name} cannot be reconstructed: {reason}")
    for done, (name, layer) in enumerate(layers.items()):
        progress(done, len(layers), name)
        hessian = _hessian(module, layer, batches)
        if not hessian.isfinite().all():
            raise TwillcoreError(f"{name}: calibration gives NaN or infinity")
        width = 8 if bits is None else bits.get(name, 8)
        pruned = prune_weight(as_product(layer), hessian, pattern[name], width)
        layer.weight.copy_(with_product(layer, pruned))
    progress(len(layers), len(layers), "")
