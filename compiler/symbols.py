"""What a node of the exported program is to the chip: values of symbolic evaluation."""

from dataclasses import dataclass

from torch import Tensor, fx

from twillcore.compiler.float_graph import Floats, Layout
from twillcore.compiler.views import Dimensions, View, size


@dataclass(frozen=True)
class Host:
    """A value that the host computes: a constant, or a function of the inputs."""

    node: fx.Node


@dataclass(frozen=True)
class Scores:
    """Attention scores ``q @ k.T * scale``, or, if ``soft``, their softmax: not computed yet.

    Axes of ``dims``: batch b, heads h (row-major in the order of q's dimensions), rows r, keys s.
    """

    dims: Dimensions
    q: View
    k: View
    heads: int
    channels: int
    scale: float = 1.0
    soft: bool = False
    mask: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the framework's tensor."""
        return tuple(size(dim) for dim in self.dims)


@dataclass(frozen=True)
class Padded:
    """A canonical image with pixels of one value around it, which are not computed yet.

    ``sides`` are (top, bottom, left, right), ``value`` is 0 or -inf. With one of two
    ``directions`` the image is one line high.
    """

    image: View
    sides: tuple[int, int, int, int]
    value: float
    directions: int

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width."""
        top, bottom, left, right = self.sides
        height = self.image.shape[-2] if self.directions == 2 else 1
        return height + top + bottom, self.image.shape[-1] + left + right

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the framework's tensor."""
        return (*self.image.shape[: -self.directions], *self.grid[-self.directions :])


@dataclass(frozen=True)
class Elsewhere:
    """A value that the chip does not have: not supported, or computed after the chip."""


Value = View | Scores | Padded | Host | Elsewhere | tuple


def layout_of(dims: Dimensions, axes: str) -> Layout:
    """Return the layout of a view with ``dims`` in a canonical array with ``axes``."""
    atoms = [atom for dim in dims for atom in dim]
    ordered = sorted(atoms, key=lambda atom: (axes.index(atom.axis), -atom.stride))
    return Layout(
        tuple(atom.size for atom in ordered),
        tuple(ordered.index(atom) for atom in atoms),
        tuple(size(dim) for dim in dims),
    )


def floats_of(value: Tensor) -> Floats:
    """Return a tensor as float32 array."""
    return value.detach().to("cpu").float().numpy()
