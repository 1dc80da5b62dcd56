"""Rules for images: convolutions, pooling, joining of channels."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from twillcore.compiler.capture import shape_of
from twillcore.compiler.float_graph import (
    FloatConcat,
    FloatConv,
    FloatMaxPool,
    FloatTensor,
)
from twillcore.compiler.graph import PerDirection, both_directions, windows_see_pixels
from twillcore.compiler.limits import MOST_PIXELS, MOST_TAPS, TAP_REACH, WINDOW_STRIDES
from twillcore.compiler.rules_pad import is_non_negative, padded_image
from twillcore.compiler.symbols import Elsewhere, Host, Padded, Value, floats_of
from twillcore.compiler.views import Atom, NoViewError, View, dimension, image_dims

if TYPE_CHECKING:
    from twillcore.compiler.builder import Builder


def check_window(
    low: "Builder",
    grid: tuple[int, int],
    kernel: tuple[int, int],
    padding: tuple[int, int] = (0, 0),
    dilation: PerDirection = 1,
) -> None:
    """Check that the chip can gather a window: its taps, their distances, the image's size."""
    if not low.config.tap_depth:
        raise NoViewError(
            f"configuration {low.config.name!r} has no windows, which convolution and pooling need:"
            " set tap_depth; without, a patch embedding (kernel = stride) is unfold + nn.Linear"
        )
    if max(grid) > MOST_PIXELS:
        raise NoViewError(f"an image of {grid} pixels: at most {MOST_PIXELS} in each direction")
    taps, most = math.prod(kernel), min(MOST_TAPS, low.config.tap_depth)
    if taps > most:
        raise NoViewError(f"a kernel of {taps} taps: at most {most}, use several smaller ones")
    for before, length, distance, (low_end, high_end) in zip(
        padding, kernel, both_directions(dilation), TAP_REACH, strict=True
    ):
        last = (length - 1) * distance - before
        if -before < low_end or last > high_end:
            raise NoViewError(
                f"a window from {-before} to {last} pixels: at most {low_end} to {high_end}"
            )


def convolution(
    low: "Builder", x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> View:  # fmt: skip
    """Convolution in one or two directions, with constant weight and bias."""
    kernel = floats_of(low.constant(weight))
    directions = kernel.ndim - 2
    if directions not in (1, 2):
        raise NoViewError(f"convolution in {directions} directions: one or two only")
    kernel = kernel.reshape(*kernel.shape[:2], *[1] * (2 - directions), *kernel.shape[2:])
    kernel = np.ascontiguousarray(kernel.transpose(0, 2, 3, 1))
    size = kernel.shape[1:3]
    image, sides = padded_image(low, x, directions, _zeros)
    distances = _pair(dilation, directions, 1)
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(distances, size, strict=True)]
        before = tuple(n // 2 if padding == "same" else 0 for n in reach)
    else:
        before = _pair(padding, directions, 0)
    vector = np.zeros(len(kernel), np.float32) if bias is None else floats_of(low.constant(bias))
    step = _steps(_output_grid(low, directions), _pair(stride, directions, 1))
    return _convolve(
        low, image, kernel, vector, step, _before(before, sides), _steps(size, distances),
        groups, directions,
    )  # fmt: skip


def general_convolution(
    low: "Builder", x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int,
) -> View:  # fmt: skip
    """``aten.convolution``, which decomposed programs have."""
    if transposed:
        raise NoViewError("no transposed convolution: enlarge the image and use nn.Conv2d")
    return convolution(low, x, weight, bias, stride, padding, dilation, groups)


def _convolve(
    low: "Builder", image: View, kernel: np.ndarray, bias: np.ndarray, stride: PerDirection,
    padding: tuple[int, int], dilation: PerDirection, groups: int, directions: int,
) -> View:  # fmt: skip
    """Emit a convolution of a canonical image; ``kernel`` is (N, height, width, C / groups)."""
    source, grid = low.tensors[image.base], _output_grid(low, directions)
    foldable = (dilation, groups) == (1, 1) and image.base in low.inputs
    if not foldable or stride in WINDOW_STRIDES:  # else the host folds the image
        check_window(low, source.grid, kernel.shape[1:3], padding, dilation)
    out = low.tensor(
        low.node.name, FloatTensor("", source.batch, math.prod(grid), len(kernel), grid)
    )
    kernel = kernel * np.float32(image.scale)
    low.emit(FloatConv(low.path, out, image.base, kernel, bias, stride, padding, dilation, groups))
    return View(out, image_dims(source.batch, len(kernel), grid, directions, len(image.dims)))


def max_pool(
    low: "Builder", x: Any, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False,
) -> View:  # fmt: skip
    """Maximum over windows."""
    directions = _directions(low)
    size, before = _pair(kernel, directions, 1), _pair(padding, directions, 0)
    spread = _steps(size, _pair(dilation, directions, 1))
    grid = _output_grid(low, directions)
    step = _steps(grid, _pair(stride or kernel, directions, 1))

    def takes(padded: Padded) -> bool:
        """Whether pixels around the image do not matter: windows contain others, too."""
        if padded.value == 0 and not is_non_negative(low, padded.image):
            return False
        first = _before(before, padded.sides)
        pixels = low.tensors[padded.image.base].grid
        return windows_see_pixels(pixels, size, grid, step, first, spread)

    image, sides = padded_image(low, x, directions, takes)
    padded_grid = _padded_grid(low, image, sides)
    _check_ceil(low, padded_grid, grid, size, step, before, spread, ceil_mode)
    return _pool(low, image, grid, size, step, _before(before, sides), spread, directions)


def max_pool_with_indices(low: "Builder", *args: Any, **kwargs: Any) -> tuple[Value, ...]:
    """Maximum over windows; nobody may read where it is."""
    _no_indices(low)
    return max_pool(low, *args, **kwargs), Elsewhere()


def adaptive_max_pool(low: "Builder", x: Any, output: Any) -> tuple[Value, ...]:
    """Maximum over windows that divide the image evenly; nobody may read where it is."""
    _no_indices(low)
    directions = _directions(low)
    image = low.image(x, directions)
    size = _even_windows(low, image, directions)
    sizes = [size] if math.prod(size) > 1 else []
    if math.prod(size) > min(MOST_TAPS, low.config.tap_depth):  # columns first, then lines
        sizes = [(size[0], 1), (1, size[1])]
    for part in sizes:
        source = low.tensors[image.base].grid
        grid = tuple(n // k for n, k in zip(source, part, strict=True))
        image = _pool(low, image, grid, part, _steps(grid, part), (0, 0), 1, directions)
    return image, Elsewhere()


def _no_indices(low: "Builder") -> None:
    for user in low.node.users:
        if user.args[1:] != (0,) and user.users:
            raise NoViewError("the indices of maxima are not on the chip")


def _pool(
    low: "Builder", image: View, grid: tuple[int, int], size: tuple[int, int], stride: PerDirection,
    padding: tuple[int, int], dilation: PerDirection, directions: int,
) -> View:  # fmt: skip
    """Emit a max pooling of a canonical image to ``grid`` pixels."""
    if image.scale <= 0:
        image = low.unscaled(image)
    source = low.tensors[image.base]
    check_window(low, source.grid, size, padding, dilation)
    out = low.tensor(
        low.node.name, FloatTensor("", source.batch, math.prod(grid), source.channels, grid)
    )
    low.emit(FloatMaxPool(low.path, out, image.base, size, stride, padding, dilation))
    dims = image_dims(source.batch, source.channels, grid, directions, len(image.dims))
    return View(out, dims, 0, image.scale)


def avg_pool(
    low: "Builder", x: Any, kernel: Any, stride: Any = (), padding: Any = 0,
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: Any = None,
) -> View:  # fmt: skip
    """Mean over windows: a depthwise convolution with equal weights."""
    directions = _directions(low)
    size, before = _pair(kernel, directions, 1), _pair(padding, directions, 0)
    image, sides = padded_image(low, x, directions, _zeros)
    if any(before) and not count_include_pad:
        raise NoViewError("average pooling with padding must have count_include_pad=True")
    source = low.tensors[image.base]
    grid = _output_grid(low, directions)
    step = _steps(grid, _pair(stride or kernel, directions, 1))
    _check_ceil(low, _padded_grid(low, image, sides), grid, size, step, before, 1, ceil_mode)
    weights = _equal(source.channels, size, divisor_override or math.prod(size))
    before = _before(before, sides)
    return _convolve(low, image, *weights, step, before, 1, source.channels, directions)


def adaptive_avg_pool(low: "Builder", x: Any, output: Any) -> View:
    """Mean over windows that divide the image evenly."""
    directions = _directions(low)
    image = low.image(x, directions)
    source, grid = low.tensors[image.base], _output_grid(low, directions)
    if grid == source.grid:
        return image
    size = _even_windows(low, image, directions)
    if grid == (1, 1):
        out = _mean(low, image)
        dims = image_dims(source.batch, source.channels, grid, directions, len(image.dims))
        return View(out, dims)
    step = _steps(grid, size)
    weights = _equal(source.channels, size, math.prod(size))
    return _convolve(low, image, *weights, step, (0, 0), 1, source.channels, directions)


def _even_windows(low: "Builder", image: View, directions: int) -> tuple[int, int]:
    """Return the size of the windows that divide an image into the pixels of the node's result."""
    source, grid = low.tensors[image.base].grid, _output_grid(low, directions)
    if any(n % m for n, m in zip(source, grid, strict=True)):
        raise NoViewError(f"{source} pixels do not divide evenly into {grid}")
    return tuple(n // m for n, m in zip(source, grid, strict=True))


def mean(low: "Builder", x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> View:
    """Mean over all pixels of an image."""
    view = low.canonical(low.view(x))
    rank, tensor = len(view.dims), low.tensors[view.base]
    listed = range(rank) if dim is None else [dim] if isinstance(dim, int) else dim
    chosen = {d % rank for d in listed}
    over = [atom.axis for d in chosen for atom in view.dims[d]]
    left = [atom.axis for d in range(rank) if d not in chosen for atom in view.dims[d]]
    if tensor.grid is None or set(over) - {"r"} or "r" in left:
        raise NoViewError(
            "a mean over the pixels of an image only; over channels use nn.LayerNorm, over rows it"
            " runs on the host, after the last layer"
        )
    dims = [() if d in chosen else view.dims[d] for d in range(rank) if keepdim or d not in chosen]
    if tensor.rows == 1:
        return replace(view, dims=tuple(dims))
    return View(_mean(low, view), tuple(dims))


def _mean(low: "Builder", image: View) -> str:
    """Emit the mean over all pixels; in two steps if they are more than a window has taps."""
    source = low.tensors[image.base]
    height, width = source.grid
    kernels = [(height, width)]
    if height * width > min(MOST_TAPS, low.config.tap_depth):
        kernels = [(height, 1), (1, width)]
    x, scale = image.base, np.float32(image.scale)
    for kernel in kernels:
        grid = low.tensors[x].grid
        check_window(low, grid, kernel)
        after = tuple(n // k for n, k in zip(grid, kernel, strict=True))
        out = low.tensor(
            low.node.name, FloatTensor("", source.batch, math.prod(after), source.channels, after)
        )
        weight, bias = _equal(source.channels, kernel, math.prod(kernel))
        low.emit(FloatConv(low.path, out, x, weight * scale, bias, groups=source.channels))
        x, scale = out, np.float32(1)
    return x


def cat(low: "Builder", parts: Sequence[Any], dim: int = 0) -> View:
    """Join along the channels."""
    if not parts or not all(isinstance(part, View | Host | Padded) for part in parts):
        raise NoViewError("only tensors can be joined")
    images = any(
        isinstance(p, Padded) or (isinstance(p, View) and low.tensors[p.base].grid) for p in parts
    )
    rank = len(shape_of(low.node))
    views = []
    for part in parts:
        host = isinstance(part, Host)
        view = low.image(part, rank - 2) if host and images and rank > 2 else low.view(part)
        views.append(low.unscaled(low.canonical(view)))
    dim %= rank
    rest = [tuple(d for i, d in enumerate(v.dims) if i != dim) for v in views]
    if any(v.dims[dim] != v.atoms("c") for v in views):
        raise NoViewError("tensors can be joined along their channels only")
    first = low.tensors[views[0].base]
    if any(r != rest[0] for r in rest) or any(
        (low.tensors[v.base].batch, low.tensors[v.base].rows) != (first.batch, first.rows)
        for v in views
    ):
        raise NoViewError("tensors that are joined must lie alike: batch, rows or pixels")
    channels = sum(low.tensors[v.base].channels for v in views)
    out = low.tensor(low.node.name, replace(first, channels=channels))
    low.emit(FloatConcat(low.path, out, tuple(v.base for v in views)))
    dims = views[0].dims
    return View(out, (*dims[:dim], dimension(Atom("c", channels)), *dims[dim + 1 :]))


def _zeros(padded: Padded) -> bool:
    """Whether a convolution can take up a padding."""
    return padded.value == 0


def _before(padding: tuple[int, int], sides: tuple[int, int, int, int]) -> tuple[int, int]:
    """Return (top, left) of a window's own padding and of that of its image."""
    return padding[0] + sides[0], padding[1] + sides[2]


def _padded_grid(low: "Builder", image: View, sides: tuple[int, int, int, int]) -> tuple[int, int]:
    height, width = low.tensors[image.base].grid
    return height + sides[0] + sides[1], width + sides[2] + sides[3]


def _directions(low: "Builder") -> int:
    """Directions of a pooling operator, from its name."""
    return 1 if "1d" in str(low.node.target) else 2


def _equal(channels: int, kernel: tuple[int, int], divisor: float) -> tuple[np.ndarray, np.ndarray]:
    """Return weight and bias of a depthwise convolution that sums over ``divisor``."""
    weight = np.full((channels, *kernel, 1), 1 / divisor, np.float32)
    return weight, np.zeros(channels, np.float32)


def _output_grid(low: "Builder", directions: int) -> tuple[int, int]:
    """Height and width of the result of the node that is being lowered."""
    return tuple([1] * (2 - directions) + shape_of(low.node)[-directions:])


def _pair(value: Any, directions: int, missing: int) -> tuple[int, int]:
    """Return a value per direction as (vertical, horizontal)."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    if len(values) == 1:
        values *= directions
    return tuple([missing] * (2 - directions) + values)


def _steps(counts: tuple[int, int], pair: tuple[int, int]) -> PerDirection:
    """Return strides or dilations (vertical, horizontal) as one number, if they are.

    A direction in which there is only one output, or tap, has none of its own.
    """
    steps = {s for s, n in zip(pair, counts, strict=True) if n > 1}
    if len(steps) > 1:
        return pair
    return steps.pop() if steps else 1


def _check_ceil(
    low: "Builder", grid: tuple[int, int], output: tuple[int, int], kernel: tuple[int, int],
    stride: PerDirection, padding: tuple[int, int], dilation: PerDirection, ceil_mode: bool,
) -> None:  # fmt: skip
    """Refuse windows that reach beyond the padding, where they make a difference."""
    if not ceil_mode:
        return
    for n, m, k, before, step, distance in zip(
        grid, output, kernel, padding, both_directions(stride), both_directions(dilation),
        strict=True,
    ):  # fmt: skip
        if (n + 2 * before - distance * (k - 1) - 1) // step + 1 != m:
            raise NoViewError("ceil_mode=True makes windows that reach beyond the padding: pad")


WINDOWS: dict[str, Callable] = {
    "conv1d": convolution,
    "conv2d": convolution,
    "convolution": general_convolution,
    "max_pool1d": max_pool,
    "max_pool2d_with_indices": max_pool_with_indices,
    "adaptive_max_pool1d": adaptive_max_pool,
    "adaptive_max_pool2d": adaptive_max_pool,
    "max_pool2d": max_pool,
    "avg_pool1d": avg_pool,
    "avg_pool2d": avg_pool,
    "adaptive_avg_pool1d": adaptive_avg_pool,
    "adaptive_avg_pool2d": adaptive_avg_pool,
    "mean": mean,
    "cat": cat,
}
