"""Rules for products: linear layers, attention, softmax."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from torch import fx

from twillcore.compiler.builder import Builder
from twillcore.compiler.capture import is_float, shape_of
from twillcore.compiler.float_graph import (
    FloatAttention,
    FloatConv,
    Floats,
    FloatSoftmax,
    FloatTensor,
    MaskInput,
)
from twillcore.compiler.rules_window import check_window
from twillcore.compiler.symbols import Host, Scores, floats_of, layout_of
from twillcore.compiler.views import (
    Atom,
    Dimensions,
    NoViewError,
    View,
    dimension,
    renumber,
    size,
    strided,
)

EXCLUDED = -1e3  # an additive mask below this excludes a key


def linear(low: Builder, x: Any, weight: Any, bias: Any = None) -> View:
    """``x @ weight.T + bias`` with constant weight and bias."""
    weight, bias = low.constant(weight), None if bias is None else low.constant(bias)
    return _product(
        low, low.view(x, True), floats_of(weight), None if bias is None else floats_of(bias)
    )


def _product(low: Builder, x: View, weight: Floats, bias: Floats | None) -> View:
    """``x @ weight.T + bias``; weight (N, K)."""
    if weight.ndim != 2:
        raise NoViewError(f"the constant factor must be a matrix, not {list(weight.shape)}")
    if x.dims and {a.axis for a in x.dims[-1]} in ({"r"}, {"r", "c"}):
        return _whole_map(low, x, weight, bias)
    if not x.dims or any(a.axis != "c" for a in x.dims[-1]) or x.atoms("c") != x.dims[-1]:
        raise NoViewError("a linear layer must work along the channels, not along rows or heads")
    index, channels = x.channel_index(), low.tensors[x.base].channels
    if 2 * len(index) <= channels:
        x, channels = low.canonical(x), len(index)
    else:
        low.complete(x)
        spread = np.zeros((weight.shape[0], channels), np.float32)
        spread[:, index] = weight
        weight = spread
    tensor = low.tensors[x.base]
    outputs = weight.shape[0]
    out = low.tensor(low.node.name, replace(tensor, channels=outputs))
    bias = np.zeros(outputs, np.float32) if bias is None else bias
    low.pointwise(out, x.base, weight * np.float32(x.scale), bias)
    return View(out, (*x.dims[:-1], dimension(Atom("c", outputs))))


def _whole_map(low: Builder, x: View, weight: Floats, bias: Floats | None) -> View:
    """Linear layer on all pixels and channels of an image: a convolution with as large a kernel."""
    x = low.canonical(x)
    tensor, outputs = low.tensors[x.base], len(weight)
    if tensor.grid is None or x.dims[:-1] != (dimension(Atom("b", tensor.batch)),):
        raise NoViewError("a linear layer must work along the channels, not along rows or heads")
    order = layout_of(x.dims[-1:], "rc")
    index = order.from_framework(np.arange(weight.shape[1]), (tensor.rows, tensor.channels))
    kernel = (weight[:, index] * np.float32(x.scale)).reshape(outputs, *tensor.grid, -1)
    check_window(low, tensor.grid, tensor.grid)
    out = low.tensor(low.node.name, FloatTensor("", tensor.batch, 1, outputs, (1, 1)))
    bias = np.zeros(outputs, np.float32) if bias is None else bias
    low.emit(FloatConv(low.path, out, x.base, kernel, bias))
    return View(out, (*x.dims[:-1], dimension(Atom("c", outputs))))


def addmm(low: Builder, bias: Any, x: Any, weight: Any, beta: float = 1, alpha: float = 1) -> View:
    """``beta * bias + alpha * x @ weight``."""
    weight = floats_of(low.constant(weight)).T * np.float32(alpha)
    vector = floats_of(low.constant(bias)) * np.float32(beta)
    return _product(
        low, low.view(x, True), weight, np.broadcast_to(vector, weight.shape[:1]).copy()
    )


def matmul(low: Builder, a: Any, b: Any) -> View | Scores:
    """Make a linear layer, scores of an attention, their product with values, or a product."""
    if low.is_constant(b) and low.constant(b).ndim == 2:
        return _product(low, low.view(a, True), floats_of(low.constant(b)).T, None)
    if isinstance(a, Scores) and a.soft:
        return _attend(low, a, low.view(b))
    left, right = low.view(a), low.view(b)
    if len(left.dims) != len(right.dims) or len(left.dims) < 2:
        raise NoViewError("both factors must have the same number of dimensions, at least 2")
    if all(atom.axis == "c" for atom in right.dims[-2]) and right.dims[-2]:
        return _scores(low, left, right.permute(_swapped(right.dims)))
    if size(right.dims[-2]) == 1 and all(atom.axis == "r" for atom in right.dims[-1]):
        return _scores(low, left, right.permute(_swapped(right.dims)))
    return low.batch_product(left, right, False)


def _scores(low: Builder, q: View, k: View) -> Scores:
    """Scores of q (.., rows, channels) and k (.., keys, channels)."""
    for view, what in ((q, "q"), (k, "k")):
        rows = low.tensors[view.base].rows
        if not np.array_equal(strided(view.dims[-2]), np.arange(rows)) or any(
            atom.axis != "r" for atom in view.dims[-2]
        ):
            raise NoViewError(f"{what} of an attention must be (batch, heads, rows, channels)")
        if any(atom.axis != "c" for atom in view.dims[-1]):
            raise NoViewError(f"{what} of an attention must be (batch, heads, rows, channels)")
        low.complete(view)
    lead_q, lead_k = (renumber(v.dims[:-2], "c", "h") for v in (q, k))
    if lead_q != lead_k or size(q.dims[-1]) != size(k.dims[-1]):
        raise NoViewError("the factors of an attention differ in batch, heads or channels")
    heads = math.prod(a.size for dim in lead_q for a in dim if a.axis == "h")
    keys = dimension(Atom("s", low.tensors[k.base].rows))
    return Scores((*lead_q, q.dims[-2], keys), q, k, heads, size(q.dims[-1]), q.scale * k.scale)


def softmax(low: Builder, x: Any, dim: int, dtype: Any = None) -> View | Scores:
    """Softmax over the last dimension."""
    if dim not in (-1, len(x.shape if not isinstance(x, Host) else shape_of(x.node)) - 1):
        raise NoViewError("softmax must be over the last dimension")
    if isinstance(x, Scores):
        if x.soft or any(atom.axis != "s" for atom in x.dims[-1]):
            raise NoViewError("softmax must be over the keys")
        return replace(x, soft=True)
    low.require_vector_engine()
    view, _ = low.rows_and_channels(low.view(x, True))
    out = low.tensor(low.node.name, low.tensors[view.base])
    low.emit(FloatSoftmax(low.path, out, view.base, view.scale))
    return View(out, view.dims)


def _attend(low: Builder, scores: Scores, v: View) -> View:
    """Product of probabilities with values (.., keys, channels)."""
    lead = renumber(v.dims[:-2], "c", "h")
    keys = low.tensors[v.base].rows
    fits = (
        lead == scores.dims[:-2]
        and np.array_equal(strided(v.dims[-2]), np.arange(keys))
        and all(atom.axis == "r" for atom in v.dims[-2])
        and all(atom.axis == "c" for atom in v.dims[-1])
        and keys == low.tensors[scores.k.base].rows
    )
    if not fits:
        raise NoViewError("probabilities and values of an attention do not fit each other")
    low.complete(v)
    low.require_operand_memory()
    columns = low.config.dsp_columns
    real = size(v.dims[-1])
    padded = -(-max(scores.channels, real) // columns) * columns
    q, k, values = (_heads(low, x, padded) for x in (scores.q, scores.k, v))
    tensor = low.tensors[scores.q.base]
    out = low.tensor(low.node.name, (tensor.batch, tensor.rows, scores.heads * padded))
    low.emit(
        FloatAttention(
            low.path, out, q, k, values, scores.heads, padded, max(scores.channels, real),
            scores.scale, scores.mask,
        )
    )  # fmt: skip
    lead = renumber(scores.dims[:-2], "h", "c", padded)
    return View(out, (*lead, scores.dims[-2], dimension(Atom("c", real))), 0, v.scale)


def _heads(low: Builder, view: View, padded: int) -> str:
    """Return a tensor with the heads of ``view`` one after the other, padded with zeros."""
    per_head = strided(view.dims[-1])
    heads = view.offset + strided([a for dim in view.dims[:-2] for a in dim if a.axis == "c"])
    index = np.full((len(heads), padded), -1)
    index[:, : len(per_head)] = heads[:, None] + per_head
    return low.gather(view.base, index.reshape(-1))


def attention(
    low: Builder, q: Any, k: Any, v: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> View:  # fmt: skip
    """Scaled dot-product attention."""
    if is_causal or enable_gqa or dropout_p:
        raise NoViewError("no causal or grouped attention and no dropout: padding masks only")
    q, k, v = low.view(q), low.view(k), low.view(v)
    scores = _scores(low, q, k)
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = replace(scores, scale=scores.scale * factor)
    if attn_mask is not None:
        if not isinstance(attn_mask, Host):
            raise NoViewError("the mask of an attention must come from the inputs")
        kind = "additive" if is_float(attn_mask.node) else "keep"
        scores = masked(low, scores, attn_mask.node, kind)
    return _attend(low, replace(scores, soft=True), v)


def masked(low: Builder, scores: Scores, node: fx.Node, kind: str) -> Scores:
    """Exclude keys."""
    if scores.mask is not None:
        raise NoViewError("an attention has one mask: combine several into one")
    if scores.soft:
        raise NoViewError("a mask must be applied before the softmax")
    layout = layout_of(scores.dims, "bhrs")
    for mask in low.masks.values():
        if low.mask_nodes[mask.name] is node and (mask.layout, mask.kind) == (layout, kind):
            return replace(scores, mask=mask.name)
    name = f"mask.{len(low.masks)}"
    q, k = low.tensors[scores.q.base], low.tensors[scores.k.base]
    low.masks[name] = MaskInput(name, layout, kind, q.batch, scores.heads, q.rows, k.rows)
    low.mask_nodes[name] = node
    return replace(scores, mask=name)


def masked_fill(low: Builder, x: Any, mask: Any, value: float) -> Scores:
    """Exclude keys where ``mask`` is true."""
    if not isinstance(x, Scores) or not isinstance(mask, Host) or not value <= EXCLUDED:
        raise NoViewError("masked_fill is for attention masks: -inf in scores")
    return masked(low, x, mask.node, "drop")


def where(low: Builder, condition: Any, x: Any, other: Any) -> Scores:
    """Exclude keys where ``condition`` is false."""
    if not isinstance(x, Scores) or not isinstance(condition, Host):
        raise NoViewError("where is for attention masks: scores or -inf")
    if not (isinstance(other, int | float) and other <= EXCLUDED):
        raise NoViewError("where is for attention masks: scores or -inf")
    return masked(low, x, condition.node, "keep")


def _swapped(dims: Dimensions) -> list[int]:
    order = list(range(len(dims)))
    return [*order[:-2], order[-1], order[-2]]


PRODUCTS: dict[str, Callable] = {
    "linear": linear,
    "addmm": addmm,
    "mm": matmul,
    "bmm": matmul,
    "matmul": matmul,
    "scaled_dot_product_attention": attention,
    "softmax": softmax,
    "_softmax": softmax,
    "masked_fill": masked_fill,
    "where": where,
}
