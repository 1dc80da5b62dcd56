"""Rules for norms and elementwise operators."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from twillcore.compiler.builder import Builder
from twillcore.compiler.capture import shape_of
from twillcore.compiler.float_graph import (
    FloatAdd,
    FloatLayerNorm,
    FloatMap,
    FloatMultiply,
    Floats,
    Function,
)
from twillcore.compiler.rules_product import masked, matmul
from twillcore.compiler.symbols import Host, Scores, floats_of
from twillcore.compiler.views import NoViewError, View, size


def layer_norm(
    low: Builder, x: Any, shape: Sequence[int], weight: Any = None, bias: Any = None,
    eps: float = 1e-5, cudnn_enable: bool = True,
) -> View:  # fmt: skip
    """Layer norm over the last dimension."""
    if len(shape) != 1:
        raise NoViewError("layer norm must be over the last dimension")
    if not low.config.norm_depth:
        raise NoViewError(f"configuration {low.config.name!r} has no layer norm")
    view, channels = low.rows_and_channels(low.view(x, True))
    gamma = np.ones(channels, np.float32) if weight is None else floats_of(low.constant(weight))
    beta = np.zeros(channels, np.float32) if bias is None else floats_of(low.constant(bias))
    if view.scale < 0:
        gamma = -gamma
    out = low.tensor(low.node.name, low.tensors[view.base])
    epsilon = eps / view.scale**2
    low.emit(FloatLayerNorm(low.path, out, view.base, gamma, beta, epsilon))
    return View(out, view.dims)


def affine(
    low: Builder, x: View, factor: Any, offset: Any, function: Function | None = None
) -> View:
    """``function(x * factor + offset)``, factor and offset per channel or scalars."""
    x = low.canonical(x)
    channels = low.tensors[x.base].channels
    factor = np.broadcast_to(np.float32(factor) * np.float32(x.scale), channels)
    offset = np.broadcast_to(np.float32(offset), channels)
    out = low.tensor(low.node.name, low.tensors[x.base])
    low.emit(FloatMap(low.path, out, x.base, factor.copy(), offset.copy(), function=function))
    return View(out, x.dims)


def unary(low: Builder, name: str, x: Any, *args: Any, **kwargs: Any) -> View:
    """Apply an elementwise function, later a table."""
    arguments = (*args, *(v for k, v in kwargs.items() if k != "inplace"))
    if not all(isinstance(a, int | float | str) for a in arguments):
        raise NoViewError(f"the arguments of {name} must be constants")
    if name == "gelu" and arguments == ("none",):
        arguments = ()
    return affine(low, low.view(x), 1.0, 0.0, Function(name, tuple(arguments)))


def batch_norm(
    low: Builder, x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool,
    momentum: float, eps: float, cudnn_enable: bool = True,
) -> View:  # fmt: skip
    """Batch norm in inference: a factor and an offset per channel."""
    if training:
        raise NoViewError("batch norm must be in eval mode, with running statistics")
    mean, var = (floats_of(low.constant(v)) for v in (mean, var))
    wrong = int((~(var + eps > 0)).sum())
    if wrong:
        raise NoViewError(
            f"the running variance of {wrong} of {len(var)} channels is not positive: train the"
            " batch norm, or leave it out"
        )
    factor = 1 / np.sqrt(var + eps)
    if weight is not None:
        factor = factor * floats_of(low.constant(weight))
    offset = -mean * factor
    if bias is not None:
        offset = offset + floats_of(low.constant(bias))
    view = low.view(x)
    if len(view.dims) < 2 or tuple(view.dims[1]) != view.atoms("c"):
        raise NoViewError("batch norm must work along the channels, not along rows")
    return affine(low, view, factor, offset)


def add(low: Builder, a: Any, b: Any, alpha: float = 1) -> View | Scores:
    """Return ``a + alpha * b``."""
    if isinstance(a, Host | int | float):
        if isinstance(b, Scores) and isinstance(a, Host):
            return masked(low, b, a.node, "additive")
        if not low.is_constant(a) and isinstance(a, Host) and isinstance(b, Host):
            a = low.view(a)
        else:
            b = replace(low.view(b), scale=low.view(b).scale * alpha)
            a, b, alpha = b, a, 1
    if isinstance(a, Scores):
        if isinstance(b, Host):
            return masked(low, a, b.node, "additive")
        if isinstance(b, Scores):
            raise NoViewError("sum of two attention scores")
    if isinstance(b, int | float):
        return affine(low, low.view(a), 1.0, b * alpha)
    left = low.view(a)
    if isinstance(b, Host):
        vector = _channel_vector(low, left, b)
        if vector is not None:
            return affine(low, left, 1.0, vector * alpha)
        left = low.canonical(left)
        right = _alike(low, left, b)
    else:
        left, right = low.canonical(left), low.canonical(low.view(b))
    _same(low, left, right)
    out = low.tensor(low.node.name, low.tensors[left.base])
    scales = left.scale, right.scale * alpha
    low.emit(FloatAdd(low.path, out, left.base, right.base, *scales))
    return View(out, left.dims)


def _alike(low: Builder, view: View, host: Host) -> View:
    """Return a host operand as chip value with the dimensions of a canonical view."""
    if list(view.shape) == shape_of(host.node) and not low.is_constant(host):
        other = low.canonical(low.input(host.node))
        if other.dims == view.dims:
            return other
    if math.prod(np.broadcast_shapes(view.shape, shape_of(host.node))) != math.prod(view.shape):
        raise NoViewError("an operand would have to be broadcast")
    return low.input_like(host.node, view)


def _same(low: Builder, a: View, b: View) -> None:
    """Check that two operands lie alike."""
    if a.dims != b.dims or low.tensors[a.base].shape != low.tensors[b.base].shape:
        raise NoViewError(
            f"operands {list(a.shape)} and {list(b.shape)} do not lie alike: no broadcasting of"
            " activations, and both in the same order of rows and channels"
        )


def _channel_vector(low: Builder, view: View, value: Host) -> Floats | None:
    """Return a constant as one number per channel of ``view``, if it is that."""
    if not low.is_constant(value):
        return None
    tensor = floats_of(low.constant(value))
    if tensor.ndim > len(view.dims):
        return None
    tensor = tensor.reshape((1,) * (len(view.dims) - tensor.ndim) + tensor.shape)
    for n, dim in zip(tensor.shape, view.dims, strict=True):
        if n > 1 and any(atom.axis != "c" for atom in dim):
            return None
    shape = [size(d) if any(a.axis == "c" for a in d) else 1 for d in view.dims]
    return np.broadcast_to(tensor, shape).reshape(-1)


def baddbmm(
    low: Builder, c: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1
) -> View | Scores:
    """``beta * c + alpha * a @ b``: as :meth:`matmul` with a mask."""
    product = matmul(low, a, b)
    product = replace(product, scale=product.scale * alpha)
    return product if beta == 0 else add(low, product, c)


def sub(low: Builder, a: Any, b: Any, alpha: float = 1) -> View | Scores:
    """Return ``a - alpha * b``."""
    return add(low, a, b, alpha=-alpha)


def rsub(low: Builder, a: Any, b: Any, alpha: float = 1) -> View | Scores:
    """Return ``b - alpha * a``."""
    return add(low, replace(low.view(a), scale=-alpha * low.view(a).scale), b)


def neg(low: Builder, x: Any) -> View:
    """Return ``-x``."""
    return mul(low, x, -1.0)


def mul(low: Builder, a: Any, b: Any) -> View | Scores:
    """Return ``a * b``."""
    if isinstance(a, int | float) or (isinstance(a, Host) and not isinstance(b, Host)):
        a, b = b, a
    if isinstance(b, int | float):
        if isinstance(a, Scores):
            if a.soft or b <= 0:
                raise NoViewError("attention probabilities cannot be scaled")
            return replace(a, scale=a.scale * b)
        view = low.view(a)
        return replace(view, scale=view.scale * b)
    if isinstance(a, Scores) or isinstance(b, Scores):
        raise NoViewError("attention scores can be scaled by constants only")
    left = low.view(a)
    if isinstance(b, Host):
        vector = _channel_vector(low, left, b)
        if vector is not None:
            return affine(low, left, vector, 0.0)
        left = low.canonical(left)
        right = _alike(low, left, b)
    else:
        left, right = low.canonical(left), low.canonical(low.view(b))
    _same(low, left, right)
    low.require_vector_engine()
    out = low.tensor(low.node.name, low.tensors[left.base])
    scale = left.scale * right.scale
    low.emit(FloatMultiply(low.path, out, left.base, right.base, scale))
    return View(out, left.dims)


def div(low: Builder, a: Any, b: Any, rounding_mode: Any = None) -> View | Scores:
    """Return ``a / b`` with a constant ``b``."""
    if isinstance(b, int | float) and rounding_mode is None:
        return mul(low, a, 1 / b)
    if rounding_mode is None and low.is_constant(b) and not isinstance(a, Scores):
        vector = _channel_vector(low, low.view(a), b)
        if vector is not None:
            return affine(low, low.view(a), 1 / vector, 0.0)
    raise NoViewError("division by constants only")


POINTWISE: dict[str, Callable] = {
    "layer_norm": layer_norm,
    "batch_norm": batch_norm,
    "add": add,
    "baddbmm": baddbmm,
    "sub": sub,
    "rsub": rsub,
    "neg": neg,
    "mul": mul,
    "div": div,
}
