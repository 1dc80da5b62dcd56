"""Views: how a framework tensor of any rank lies in a canonical (batch, rows, channels) tensor.

Every dimension of the framework's tensor is a row-major product of *atoms*; an atom is a run along
one canonical axis: batch ``b``, rows ``r``, channels ``c`` (of attention scores also heads ``h``
and keys ``s``). Reshape splits and merges atoms, permute moves dimensions, and no data.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


class NoViewError(Exception):
    """An operation that is no view of a canonical tensor; the message says why."""


@dataclass(frozen=True)
class Atom:
    """``size`` steps of ``stride`` along a canonical axis."""

    axis: str
    size: int
    stride: int = 1


Dimension = tuple[Atom, ...]
Dimensions = tuple[Dimension, ...]


def dimension(*atoms: Atom) -> Dimension:
    """Return a dimension in normal form: no atom of size 1, contiguous neighbours merged."""
    result: list[Atom] = []
    for atom in atoms:
        if atom.size == 1:
            continue
        last = result[-1] if result else None
        if last and last.axis == atom.axis and last.stride == atom.size * atom.stride:
            result[-1] = Atom(atom.axis, last.size * atom.size, atom.stride)
        else:
            result.append(atom)
    return tuple(result)


def size(dim: Dimension) -> int:
    """Elements along a dimension."""
    return math.prod(atom.size for atom in dim)


def reshape(dims: Dimensions, shape: Sequence[int]) -> Dimensions:
    """Return ``dims`` reshaped to ``shape`` (no -1). Raises :class:`NoViewError`."""
    pending = [atom for dim in dims for atom in dim]
    result = []
    for wanted in shape:
        taken: list[Atom] = []
        left = wanted
        while left > 1:
            atom = pending.pop(0)
            if left % atom.size == 0:
                taken.append(atom)
                left //= atom.size
            elif atom.size % left == 0:
                inner = atom.size // left
                taken.append(Atom(atom.axis, left, atom.stride * inner))
                pending.insert(0, Atom(atom.axis, inner, atom.stride))
                left = 1
            else:
                raise NoViewError(f"shape {list(shape)} cuts across batch, rows or channels")
        result.append(dimension(*taken))
    return tuple(result)


@dataclass(frozen=True)
class View:
    """``scale`` times a part of tensor ``base``, from channel ``offset`` on."""

    base: str
    dims: Dimensions
    offset: int = 0
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the framework's tensor."""
        return tuple(size(dim) for dim in self.dims)

    def permute(self, order: Sequence[int]) -> "View":
        """Return the view with dimensions in another order."""
        return replace(self, dims=tuple(self.dims[i] for i in order))

    def reshape(self, shape: Sequence[int]) -> "View":
        """Return the view in another shape."""
        return replace(self, dims=reshape(self.dims, shape))

    def narrow(self, dim: int, start: int, length: int) -> "View":
        """Return ``length`` entries of a dimension of channels, from ``start`` on."""
        atoms = self.dims[dim]
        if start == 0 and length == size(atoms):
            return self
        if any(atom.axis != "c" for atom in atoms):
            raise NoViewError("a slice of rows or of the batch is not on the chip")
        inner = size(atoms[1:])
        if start % inner or length % inner:
            raise NoViewError("a slice cuts across heads")
        outer = atoms[0]
        cut = dimension(Atom("c", length // inner, outer.stride), *atoms[1:])
        dims = (*self.dims[:dim], cut, *self.dims[dim + 1 :])
        return replace(self, dims=dims, offset=self.offset + start // inner * outer.stride)

    def without(self, dim: int) -> "View":
        """Return the view without a dimension of size 1."""
        return replace(self, dims=self.dims[:dim] + self.dims[dim + 1 :])

    def atoms(self, axis: str) -> tuple[Atom, ...]:
        """Return the atoms of an axis, in the order of the dimensions."""
        return tuple(a for dim in self.dims for a in dim if a.axis == axis)

    def channel_index(self) -> NDArray[np.int64]:
        """Return the channels of the base that the view has, in the order of its dimensions."""
        return self.offset + strided(self.atoms("c"))


def strided(atoms: Sequence[Atom]) -> NDArray[np.int64]:
    """Return the positions along the axis of ``atoms``, row-major."""
    index = np.zeros(1, np.int64)
    for atom in atoms:
        index = (index[:, None] + np.arange(atom.size) * atom.stride).reshape(-1)
    return index


def image_dims(
    batch: int, channels: int, grid: tuple[int, int], directions: int, rank: int
) -> Dimensions:
    """Return the dimensions of an image: (batch, channels, height, width), row-major.

    With one of two ``directions`` there is no height; ``rank`` says whether there is a batch.
    """
    height, width = grid
    dims = [Atom("b", batch), Atom("c", channels), Atom("r", height, width), Atom("r", width)]
    if directions == 1:
        del dims[2]
    return tuple(dimension(atom) for atom in dims[len(dims) - rank :])


def renumber(dims: Dimensions, axis: str, to: str | None = None, unit: int = 1) -> Dimensions:
    """Give the atoms of ``axis`` row-major strides in the order of the dimensions.

    The innermost has stride ``unit``; the axis is renamed ``to``.
    """
    result = [list(dim) for dim in dims]
    stride = unit
    for i in range(len(dims) - 1, -1, -1):
        for j in range(len(dims[i]) - 1, -1, -1):
            atom = dims[i][j]
            if atom.axis == axis:
                result[i][j] = Atom(to or axis, atom.size, stride)
                stride *= atom.size
    return tuple(dimension(*dim) for dim in result)
