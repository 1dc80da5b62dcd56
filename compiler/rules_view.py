"""Rules for views: they make no ops."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from twillcore.compiler.capture import is_float, shape_of
from twillcore.compiler.symbols import Scores, Value
from twillcore.compiler.views import Dimensions, NoViewError, View, reshape

if TYPE_CHECKING:
    from twillcore.compiler.builder import Builder


def identity(low: "Builder", x: Any, name: str, args: tuple) -> Value:
    """Pass a value on: dropout in eval mode, contiguous, casts between real types."""
    if name in ("dropout", "dropout_", "feature_dropout") and len(args) > 1 and args[1]:
        raise NoViewError("dropout in training mode: call module.eval()")
    if not is_float(low.node):
        raise NoViewError("a cast to integers")
    return x


def reshaped(low: "Builder", x: Any, shape: Sequence[int], *_: Any) -> View | Scores:
    """View, reshape, flatten, unflatten, squeeze, unsqueeze: the node knows its shape."""
    return _with_dims(low, x, reshape(_dims(low, x), shape_of(low.node)))


def permuted(low: "Builder", x: Any, order: Sequence[int]) -> View | Scores:
    """Move dimensions."""
    dims = _dims(low, x)
    return _with_dims(low, x, tuple(dims[i] for i in order))


def transposed(low: "Builder", x: Any, a: int = 0, b: int = 1) -> View | Scores:
    """Swap two dimensions."""
    order = list(range(len(_dims(low, x))))
    order[a], order[b] = order[b], order[a]
    return permuted(low, x, order)


def expanded(low: "Builder", x: Any, shape: Any = None, *_: Any, **__: Any) -> View | Scores:
    """Expand to the same shape: nothing."""
    if list(x.shape) != shape_of(low.node):
        raise NoViewError("activations are not broadcast on the chip")
    return x


def selected(low: "Builder", x: Any, dim: int, index: int) -> View:
    """One entry of a dimension of channels."""
    view = low.view(x)
    dim %= len(view.dims)
    return view.narrow(dim, index % view.shape[dim], 1).without(dim)


def sliced(
    low: "Builder", x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> View:
    """Take a slice of a dimension of channels."""
    view = low.view(x)
    dim %= len(view.dims)
    start, end, step = slice(start, end, step).indices(view.shape[dim])
    if step != 1:
        raise NoViewError("slices have step 1")
    return view.narrow(dim, start, end - start)


def split(low: "Builder", x: Any, sizes: Any, dim: int = 0) -> tuple[View, ...]:
    """Pieces of a dimension of channels."""
    view = low.view(x)
    dim %= len(view.dims)
    total = view.shape[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, total - start) for start in range(0, total, sizes)]
    starts = np.cumsum([0, *sizes])
    return tuple(view.narrow(dim, int(s), n) for s, n in zip(starts, sizes, strict=False))


def chunked(low: "Builder", x: Any, chunks: int, dim: int = 0) -> tuple[View, ...]:
    """Equal pieces of a dimension of channels."""
    view = low.view(x)
    return split(low, view, -(-view.shape[dim] // chunks), dim)


def unbound(low: "Builder", x: Any, dim: int = 0) -> tuple[View, ...]:
    """All entries of a dimension of channels."""
    view = low.view(x)
    return tuple(selected(low, view, dim, i) for i in range(view.shape[dim]))


def getitem(low: "Builder", pieces: tuple[View, ...], index: int) -> View:
    """One of several results."""
    return pieces[index]


def _dims(low: "Builder", x: Any) -> Dimensions:
    return x.dims if isinstance(x, Scores) else low.view(x).dims


def _with_dims(low: "Builder", x: Any, dims: Dimensions) -> View | Scores:
    return replace(x if isinstance(x, Scores) else low.view(x), dims=dims)


IDENTITIES = frozenset(
    {"dropout", "feature_dropout", "contiguous", "clone", "to", "_to_copy", "detach", "alias"}
    | {"lift_fresh_copy", "type_as", "float"}
)
VIEWS: dict[str, Callable] = {
    "view": reshaped,
    "reshape": reshaped,
    "_unsafe_view": reshaped,
    "flatten": reshaped,
    "unflatten": reshaped,
    "squeeze": reshaped,
    "unsqueeze": reshaped,
    "permute": permuted,
    "transpose": transposed,
    "t": transposed,
    "numpy_T": lambda low, x: permuted(low, x, range(len(_dims(low, x)))[::-1]),
    "mT": lambda low, x: transposed(low, x, -1, -2),
    "swapaxes": transposed,
    "expand": expanded,
    "expand_as": expanded,
    "select": selected,
    "slice": sliced,
}
PIECES: dict[str, Callable] = {
    "split": split,
    "split_with_sizes": split,
    "chunk": chunked,
    "unbind": unbound,
    "getitem": getitem,
}
