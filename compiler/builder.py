"""The float graph under construction: tensors, ops, inputs, and how values become tensors."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, fx

from twillcore.compiler.capture import Captured, is_float, name_of, path_of, shape_of
from twillcore.compiler.float_graph import (
    FloatConv,
    FloatGraph,
    FloatLinear,
    FloatMap,
    FloatMatMul,
    FloatOp,
    FloatSoftmax,
    FloatTensor,
    Layout,
    MaskInput,
    without_dead,
)
from twillcore.compiler.rules_view import VIEWS
from twillcore.compiler.rules_window import check_window
from twillcore.compiler.symbols import Host, Padded, Scores, layout_of
from twillcore.compiler.views import (
    Atom,
    NoViewError,
    View,
    dimension,
    image_dims,
    renumber,
    reshape,
    size,
)
from twillcore.config import Config


class Builder:
    """Makes the ops of one float graph; rules tell it what.

    ``node`` is the node that is being lowered: ops take their names and module paths from it.
    ``rows_first`` reads three-dimensional inputs as (rows, batch, channels).
    """

    def __init__(self, captured: Captured, config: Config, rows_first: bool) -> None:
        self.captured = captured
        self.config = config
        self.rows_first = rows_first
        self.node: fx.Node
        self.values: dict[fx.Node, Any] = {}
        self.tensors: dict[str, FloatTensor] = {}
        self.ops: list[FloatOp] = []
        self.producers: dict[str, FloatOp] = {}
        self.inputs: dict[str, Layout] = {}
        self.input_nodes: dict[str, fx.Node] = {}
        self.masks: dict[str, MaskInput] = {}
        self.mask_nodes: dict[str, fx.Node] = {}
        self._roots: dict[fx.Node, View] = {}
        self._gathered: dict[tuple[str, bytes], str] = {}
        self._padded: dict[tuple[str, tuple[int, ...]], str] = {}

    def operand(self, node: fx.Node) -> Any:
        value = self.values[node]
        constant = self.captured.constants.get(node)
        if isinstance(constant, Tensor) and constant.ndim == 0:
            return constant.item()
        return value

    def tensor(self, name: str, like: FloatTensor | tuple[int, int, int]) -> str:
        """Make a tensor of a shape and return its name, made unique."""
        shape, grid = (like.shape, like.grid) if isinstance(like, FloatTensor) else (like, None)
        unique, n = name, 2
        while unique in self.tensors or unique in self.masks:
            unique, n = f"{name}.{n}", n + 1
        self.tensors[unique] = FloatTensor(unique, *shape, grid)
        return unique

    def emit(self, op: FloatOp) -> None:
        """Append an op."""
        self.ops.append(op)
        self.producers[op.out] = op

    @property
    def path(self) -> str:
        """Module path of the node that is being lowered."""
        return path_of(self.node)

    def view(self, value: Any, along_channels: bool = False) -> View:
        """Return a chip value; a host value becomes an input of the chip.

        ``along_channels``: of a host value, the last dimension must become the channels.
        """
        if isinstance(value, View):
            return value
        if isinstance(value, Host):
            return self.input(value.node, along_channels)
        if isinstance(value, Scores):
            return self.materialise(value)
        if isinstance(value, Padded):
            return self.padded(value)
        raise NoViewError("an operand is no tensor")

    def input(self, node: fx.Node, along_channels: bool = False) -> View:
        """Make a host value an input of the chip, or return the view of the input that it is."""
        if node in self._roots:
            return self._roots[node]
        if not is_float(node):
            raise NoViewError(f"{node.name} is no tensor of real numbers")
        source = self._viewed_input(node)
        if source is not None and (
            not along_channels or all(atom.axis == "c" for atom in source.dims[-1])
        ):
            return source
        shape = shape_of(node)
        view = self._default(node, shape)
        self.inputs[view.base] = layout_of(view.dims, "brc")
        self.input_nodes[view.base] = node
        self._roots[node] = view
        return view

    def _viewed_input(self, node: fx.Node) -> View | None:
        """Return a host value that is all of another one, reordered, as view of that input."""
        name = name_of(node)
        if node.op != "call_function" or node in self.captured.constants or name not in VIEWS:
            return None
        reader, self.node = self.node, node
        try:
            args = fx.map_arg(node.args[1:], self.operand)
            view = VIEWS[name](self, self.input(node.args[0]), *args, **node.kwargs)
        except NoViewError:
            return None
        finally:
            self.node = reader
        whole = math.prod(view.shape) == math.prod(self.tensors[view.base].shape)
        return view if whole and view.dims else None

    def _default(self, node: fx.Node, shape: list[int]) -> View:
        rank = len(shape)
        channels = shape[-1] if rank else 1
        rows = shape[-2] if rank > 1 else 1
        batch = math.prod(shape[:-2])
        dims = list(reshape((dimension(Atom("b", batch)),), shape[:-2]) if rank > 2 else ())
        if rank > 1:
            dims.append(dimension(Atom("r", rows)))
        if self.rows_first and rank == 3:
            rows, batch = shape[0], shape[1]
            dims = [dimension(Atom("r", rows)), dimension(Atom("b", batch))]
        if rank:
            dims.append(dimension(Atom("c", channels)))
        base = self.tensor(node.name, (batch, rows, channels))
        return View(base, tuple(dims))

    def input_like(self, node: fx.Node, view: View) -> View:
        """Make a host value, broadcast to the shape of a canonical ``view``, a chip input."""
        base = self.tensor(node.name, self.tensors[view.base])
        self.inputs[base] = layout_of(view.dims, "brc")
        self.input_nodes[base] = node
        return View(base, view.dims)

    def canonical(self, view: View) -> View:
        """Return ``view`` as view of a tensor with exactly its channels in its order."""
        tensor = self.tensors[view.base]
        for axis, full in (("b", tensor.batch), ("r", tensor.rows)):
            if math.prod(atom.size for atom in view.atoms(axis)) != full:
                raise NoViewError("a part of the rows or of the batch is not on the chip")
        base = self.gather(view.base, view.channel_index())
        return View(base, renumber(view.dims, "c"), 0, view.scale)

    def gather(self, base: str, index: np.ndarray) -> str:
        """Return a tensor with channels ``index`` of ``base``; those of index -1 are zero."""
        tensor = self.tensors[base]
        if np.array_equal(index, np.arange(tensor.channels)):
            return base
        key = base, index.tobytes()
        if key in self._gathered:
            return self._gathered[key]
        out = self.tensor(base, replace(tensor, channels=len(index)))
        self._gathered[key] = out
        producer, kept = self.producers.get(base), (index >= 0).astype(np.float32)
        if isinstance(producer, FloatLinear) or (  # compute these channels only
            isinstance(producer, FloatConv) and producer.groups == 1
        ):
            weight, bias = (
                values[index] * kept.reshape(-1, *[1] * (values.ndim - 1))
                for values in (producer.weight, producer.bias)
            )
            self.emit(replace(producer, out=out, weight=weight, bias=bias))
        elif isinstance(producer, FloatMap) and (index >= 0).all():
            part = self.gather(producer.x, index)
            factor, offset = producer.factor[index], producer.offset[index]
            self.emit(replace(producer, out=out, x=part, factor=factor, offset=offset))
        else:
            weight = np.zeros((len(index), tensor.channels), np.float32)
            weight[np.arange(len(index)), index] = kept
            self.pointwise(out, base, weight, np.zeros_like(kept))
        return out

    def pointwise(self, out: str, x: str, weight: np.ndarray, bias: np.ndarray) -> None:
        """Multiply every row by a matrix (N, K): a linear layer, of an image a convolution."""
        grid = self.tensors[x].grid
        if grid in (None, (1, 1)) or not self.config.tap_depth:
            self.emit(FloatLinear(self.path, out, x, weight, bias))
        else:
            self.emit(FloatConv(self.path, out, x, weight[:, None, None], bias))

    def image(self, value: Any, directions: int) -> View:
        """Return a value as canonical image (batch, channels, height, width).

        With one of two ``directions`` it is (batch, channels, width) and one line high; the batch
        may be missing. A host value becomes an input of the chip that lies so.
        """
        if isinstance(value, Host) and value.node not in self._roots:
            view = self._image_input(value.node, directions)
        else:
            view = self.canonical(self.view(value))
        rank, tensor = len(view.dims), self.tensors[view.base]
        if rank not in (directions + 1, directions + 2):
            raise NoViewError(f"it has {rank} dimensions, and must be (batch, channels, ..)")
        grid = (1,) * (2 - directions) + view.shape[-directions:]
        if view.dims != image_dims(tensor.batch, tensor.channels, grid, directions, rank):
            raise NoViewError(
                "its dimensions do not lie as batch, channels and lines of pixels: no rows and"
                " channels in another order"
            )
        if tensor.grid not in (None, grid):
            raise NoViewError(f"an image of {tensor.grid} pixels cannot be seen as {grid}")
        self.tensors[view.base] = replace(tensor, grid=grid)
        return view

    def _image_input(self, node: fx.Node, directions: int) -> View:
        shape = shape_of(node)
        if not is_float(node) or len(shape) not in (directions + 1, directions + 2):
            raise NoViewError(f"{node.name} is no image of real numbers")
        batch = shape[0] if len(shape) == directions + 2 else 1
        channels = shape[-directions - 1]
        grid = (1,) * (2 - directions) + tuple(shape[-directions:])
        base = self.tensor(node.name, FloatTensor("", batch, math.prod(grid), channels, grid))
        view = View(base, image_dims(batch, channels, grid, directions, len(shape)))
        self.inputs[base] = layout_of(view.dims, "brc")
        self.input_nodes[base] = node
        self._roots[node] = view
        return view

    def padded(self, value: Padded) -> View:
        """Compute the pixels of an image and around it, for what cannot take up the padding."""
        if value.value:
            raise NoViewError("padding with -inf is for max pooling")
        key = value.image.base, value.sides
        view, source = value.image, self.tensors[value.image.base]
        if key not in self._padded:
            top, _, left, _ = value.sides
            check_window(self, source.grid, (1, 1), (top, left))
            self._padded[key] = out = self.tensor(
                self.node.name,
                FloatTensor("", source.batch, math.prod(value.grid), source.channels, value.grid),
            )
            ones = np.ones((source.channels, 1, 1, 1), np.float32)
            self.emit(
                FloatConv(self.path, out, view.base, ones, np.zeros(source.channels, np.float32),
                          padding=(top, left), groups=source.channels)
            )  # fmt: skip
        dims = image_dims(source.batch, source.channels, value.grid, value.directions,
                          len(view.dims))  # fmt: skip
        return View(self._padded[key], dims, 0, view.scale)

    def unscaled(self, view: View) -> View:
        """Return a canonical view with factor 1: a factor of its own becomes an op."""
        if view.scale == 1:
            return view
        tensor = self.tensors[view.base]
        factor = np.full(tensor.channels, view.scale, np.float32)
        out = self.tensor(self.node.name, tensor)
        self.emit(FloatMap(self.path, out, view.base, factor, np.zeros_like(factor)))
        return View(out, view.dims)

    def complete(self, view: View) -> None:
        """Check that a view has all rows and the whole batch of its base."""
        tensor = self.tensors[view.base]
        for axis, full in (("b", tensor.batch), ("r", tensor.rows)):
            if math.prod(atom.size for atom in view.atoms(axis)) != full:
                raise NoViewError("a part of the rows or of the batch is not on the chip")

    def rows_and_channels(self, view: View) -> tuple[View, int]:
        """Check that the last dimension is all channels; return canonical view and count."""
        if not view.dims or view.atoms("c") != tuple(view.dims[-1]):
            if any(atom.axis != "c" for atom in view.dims[-1] if view.dims) or not view.dims:
                raise NoViewError("it does not work along the channels: the last dimension is rows")
            raise NoViewError("channels are in more than the last dimension")
        canonical = self.canonical(view)
        return canonical, size(view.dims[-1])

    def constant(self, value: Any) -> Tensor:
        """Return the tensor of a constant operand."""
        if isinstance(value, Host) and value.node in self.captured.constants:
            return self.captured.constants[value.node]
        raise NoViewError("weights must be constants")

    def is_constant(self, value: Any) -> bool:
        """Whether an operand is a constant tensor."""
        return isinstance(value, Host) and value.node in self.captured.constants

    def require_vector_engine(self) -> None:
        """Check that the configuration has a vector engine."""
        if not self.config.wide_depth:
            raise NoViewError(
                f"configuration {self.config.name!r} has no vector engine, which this needs: set"
                " wide_depth and lane_depth"
            )

    def require_operand_memory(self) -> None:
        """Check that the configuration can multiply two activations."""
        if not self.config.operand_depth:
            raise NoViewError(
                f"configuration {self.config.name!r} has no operand memory, which a product of two"
                " activations needs: set operand_depth"
            )

    def batch_product(self, a: View, b: View, transpose_b: bool) -> View:
        """Product of two activations, per batch item."""
        self.require_operand_memory()
        a, b = self.canonical(a), self.canonical(b)
        last = b.dims[-2] if transpose_b else b.dims[-1]
        inner = b.dims[-1] if transpose_b else b.dims[-2]
        simple = (
            a.dims[:-2] == b.dims[:-2]
            and all(atom.axis == "b" for dim in a.dims[:-2] for atom in dim)
            and all(atom.axis == "r" for atom in a.dims[-2])
            and all(atom.axis == "c" for atom in a.dims[-1])
            and all(atom.axis == ("r" if transpose_b else "c") for atom in last)
            and all(atom.axis == ("c" if transpose_b else "r") for atom in inner)
        )
        if not simple:
            raise NoViewError(
                "a product of activations must be (batch, rows, channels) by (batch, channels,"
                " columns), or an attention: softmax(q @ k.T) @ v"
            )
        tensor = self.tensors[a.base]
        out = self.tensor(self.node.name, replace(tensor, channels=size(last)))
        scale = a.scale * b.scale
        self.emit(FloatMatMul(self.path, out, a.base, b.base, transpose_b, scale))
        return View(out, (*a.dims[:-1], dimension(Atom("c", size(last)))))

    def materialise(self, scores: Scores) -> View:
        """Compute scores (of one head) for another use than attention."""
        if scores.heads > 1 or scores.mask is not None:
            raise NoViewError("scores of several heads, or masked ones, are for attention only")
        order = tuple(scores.dims)
        product = self.batch_product(
            replace(scores.q, scale=1.0), replace(scores.k, scale=1.0), True
        )
        product = replace(product, scale=scores.scale)
        if scores.soft:
            out = self.tensor(self.node.name, self.tensors[product.base])
            self.emit(FloatSoftmax(self.path, out, product.base, product.scale))
            product = View(out, product.dims)
        dims = tuple(
            dimension(*(replace(a, axis="c") if a.axis == "s" else a for a in dim)) for dim in order
        )
        return replace(product, dims=dims)

    def finish(self, outputs: Sequence[fx.Node]) -> FloatGraph:
        """Return the graph that computes ``outputs``, without what they do not need."""
        results = []
        for node in outputs:
            self.node = node
            view = self.canonical(self.view(self.values[node]))
            results.append((view.base, layout_of(view.dims, "brc"), view.scale))
        graph = FloatGraph(self.tensors, tuple(self.ops), self.inputs, self.masks, tuple(results))
        return without_dead(graph)
