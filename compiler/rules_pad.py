"""Rules for padding: pixels around an image, which windows take up, and channels of zeros."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from twillcore.compiler.float_graph import FloatMap, FloatMaxPool
from twillcore.compiler.symbols import Padded
from twillcore.compiler.views import Atom, NoViewError, View, dimension

if TYPE_CHECKING:
    from twillcore.compiler.builder import Builder

#: Functions without negative results.
NON_NEGATIVE = frozenset({"relu", "relu6", "sigmoid", "hardsigmoid", "softplus", "abs"})


def pad(
    low: "Builder", x: Any, pads: Sequence[int], mode: str = "constant", value: float | None = None
) -> View | Padded:
    """Pad with zeros, or, for max pooling, with -inf; the pixels come with what reads them.

    ``pads`` are (before, after) of the last dimension, the one before it and so on.
    """
    fill = 0.0 if value is None else float(value)
    if mode != "constant" or fill not in (0.0, -math.inf):
        what = f"mode {mode!r}" if mode != "constant" else f"a value of {fill:g}"
        raise NoViewError(
            f"{what}: zeros only, or -inf before max pooling; use the padding of the convolution or"
            " pooling that follows"
        )
    if min(pads) < 0:
        raise NoViewError(f"padding of {min(pads)}: an image is not cropped on the chip")
    if isinstance(x, Padded) and x.value == fill and len(pads) <= 2 * x.directions:
        sides = _sides(pads, x.directions)
        return replace(x, sides=tuple(a + b for a, b in zip(x.sides, sides, strict=True)))
    view = low.canonical(low.view(x))
    channels = next(
        (i for i, dim in enumerate(view.dims) if any(atom.axis == "c" for atom in dim)), None
    )
    directions = len(view.dims) - 2 if channels is None else len(view.dims) - 1 - channels
    view, pixels = _channels(low, view, directions, pads, fill)
    if not any(pixels):
        return view
    if directions not in (1, 2):
        raise NoViewError("rows can be padded if they are pixels only")
    return Padded(low.image(view, directions), _sides(pixels, directions), fill, directions)


def _sides(pads: Sequence[int], directions: int) -> tuple[int, int, int, int]:
    """Return padding as (top, bottom, left, right)."""
    left, right, top, bottom = (*pads, 0, 0, 0, 0)[:4]
    return (top, bottom, left, right) if directions == 2 else (0, 0, left, right)


def _channels(
    low: "Builder", view: View, directions: int, pads: Sequence[int], fill: float
) -> tuple[View, Sequence[int]]:
    """Return a view with the channels that ``pads`` adds, and what it adds of pixels."""
    pixels, others = pads[: 2 * directions], pads[2 * directions :]
    if not any(others):
        return view, pixels
    if any(others[2:]) or fill or view.atoms("c") != view.dims[-1 - directions]:
        raise NoViewError("pixels and channels can be padded only, and channels with zeros")
    count = low.tensors[view.base].channels
    index = np.pad(np.arange(count), others[:2], constant_values=-1)
    place = len(view.dims) - 1 - directions
    dims = (*view.dims[:place], dimension(Atom("c", len(index))), *view.dims[place + 1 :])
    return replace(view, base=low.gather(view.base, index), dims=dims), pixels


def padded_image(
    low: "Builder", x: Any, directions: int, takes: Callable[[Padded], bool]
) -> tuple[View, tuple[int, int, int, int]]:
    """Return a canonical image, and what its reader is to add on top, bottom, left and right.

    ``takes`` says whether it can. Otherwise, and if the image is no padded one, that is nothing.
    """
    if isinstance(x, Padded) and x.directions == directions and takes(x):
        return x.image, x.sides
    return low.image(x, directions), (0, 0, 0, 0)


def is_non_negative(low: "Builder", image: View) -> bool:
    """Whether no value of an image can be negative: then padding with 0 changes no maximum."""
    op = low.producers.get(image.base)
    while isinstance(op, FloatMaxPool):
        op = low.producers.get(op.x)
    function = op.function if isinstance(op, FloatMap) and op.residual is None else None
    return image.scale > 0 and function is not None and function.name in NON_NEGATIVE


def constant_pad(low: "Builder", x: Any, pads: Sequence[int], value: float = 0) -> View | Padded:
    """``aten.constant_pad_nd``, which decomposed programs have."""
    return pad(low, x, pads, "constant", value)


PADS: dict[str, Callable] = {"pad": pad, "constant_pad_nd": constant_pad}
