"""N:M pruning that repairs what it removes: layer-wise reconstruction on calibration data.

Layer by layer, in the order of computation, the weights that remain are changed so that the layer's
output on calibration data changes least (optimal brain surgeon, swept over the columns as
SparseGPT does, arXiv 2301.00774). Later layers see the inputs that the pruned earlier ones make.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from scipy.linalg import cholesky, lapack
from torch import Tensor, nn

from twillcore.errors import TwillcoreError
from twillcore.models.nm import strongest
from twillcore.models.pattern import Pattern

DAMPING = 0.01  # of the mean diagonal of the Hessian
COLUMNS_AT_ONCE = 128  # columns whose corrections reach the rest of the row in one product

Progress = Callable[[int, int, str], None]  # layers done, layers in all, name of the next one


class _Reached(Exception):
    pass


def inverse_factor(hessian: Tensor) -> Tensor:
    """Return U, upper triangular, with ``U.T @ U`` the inverse of the damped ``hessian``."""
    h = hessian.double().numpy().copy()
    diagonal = np.einsum("ii->i", h)
    diagonal += DAMPING * diagonal.mean()
    lower = cholesky(h, lower=True, check_finite=False)
    inverse, info = lapack.dpotri(lower, lower=True)
    if info:
        raise TwillcoreError("calibration data make no invertible Hessian: are they all zero?")
    return torch.from_numpy(cholesky(inverse, lower=True, check_finite=False).T.copy()).float()


def prune_weight(weight: Tensor, hessian: Tensor, pattern: Pattern) -> Tensor:
    """Return ``weight`` (outputs, inputs), pruned and repaired.

    ``hessian`` is ``X.T @ X`` (times any constant) of the layer's inputs X (samples, inputs).
    """
    weight = weight.clone()
    unused = hessian.diagonal() == 0
    weight[:, unused] = 0
    hessian = hessian + torch.diag(unused.to(hessian.dtype))
    u = inverse_factor(hessian)
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
            errors[:, j] = (block[:, j] - kept) / local[j, j]
            block[:, j:] -= errors[:, j, None] * local[j, j:]
            block[:, j] = kept
        weight[:, stop:] -= errors @ u[start:stop, stop:]
    return weight


def _hessian(module: nn.Module, layer: nn.Linear, batches: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """Sum ``X.T @ X`` over what ``layer`` receives."""
    total = torch.zeros(layer.in_features, layer.in_features)

    def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].reshape(-1, layer.in_features)
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
def prune_by_reconstruction(
    module: nn.Module,
    batches: Sequence[tuple[Tensor, ...]],
    pattern: Pattern | Mapping[str, Pattern],
    progress: Progress = lambda done, total, name: None,
) -> None:
    """Prune linear layers of ``module``, in place and in the order of registration.

    ``batches`` are inputs of the module without padding: every row that reaches a layer counts.
    ``pattern`` is for every layer, or by name for some.

    Raises
    ------
    TwillcoreError
        If calibration data have no finite statistics at some layer, or there is none of a name.
    """
    layers = [(name, m) for name, m in module.named_modules() if isinstance(m, nn.Linear)]
    if isinstance(pattern, Pattern):
        pattern = dict.fromkeys((name for name, _ in layers), pattern)
    if unknown := pattern.keys() - dict(layers).keys():
        raise TwillcoreError(f"no linear layers {', '.join(sorted(unknown))}")
    layers = [(name, layer) for name, layer in layers if name in pattern]
    for done, (name, layer) in enumerate(layers):
        progress(done, len(layers), name)
        hessian = _hessian(module, layer, batches)
        if not hessian.isfinite().all():
            raise TwillcoreError(f"{name}: calibration gives NaN or infinity")
        layer.weight.copy_(prune_weight(layer.weight, hessian, pattern[name]))
    progress(len(layers), len(layers), "")
