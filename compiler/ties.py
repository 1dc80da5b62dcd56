"""Which int8 tensors must have the same scale, and which scales must differ by powers of two.

Max pooling and joining keep integers as they are, so their inputs and outputs have one scale. A
residual in int8 is added to the int16 sums of a drain after a shift, so the scales of residual and
result are powers of two apart.
"""

from collections import defaultdict
from collections.abc import Container

from twillcore.compiler.float_graph import (
    FloatConcat,
    FloatConv,
    FloatGraph,
    FloatLinear,
    FloatMap,
    FloatMaxPool,
)


class Ties:
    """Groups of tensors with one scale, and classes of such groups whose scales are related."""

    def __init__(self, graph: FloatGraph, narrow: Container[str]) -> None:
        """``narrow`` are the names of results that are added to an int8 residual, as int8."""
        self._same: dict[str, str] = {}
        self._related: dict[str, str] = {}
        #: Tensors that cannot have factors between their channels.
        self.plain: set[str] = set()
        residuals = []
        for op in graph.ops:
            match op:
                case FloatMaxPool():
                    _join(self._same, op.x, op.out)
                case FloatConcat():
                    for part in op.parts:
                        _join(self._same, part, op.out)
                    self.plain |= {op.out, *op.parts}
                case FloatLinear() | FloatConv() | FloatMap() if op.out in narrow:
                    residuals.append((op.residual, op.out))
                    self.plain |= {op.residual, op.out}
        for a, b in residuals:
            _join(self._related, _root(self._same, a), _root(self._same, b))
        self._names = tuple(graph.tensors)

    def group(self, name: str) -> list[str]:
        """Return the tensors that have the scale of ``name``."""
        return [n for n in self._names if self._key(n) == self._key(name)]

    def related(self, name: str) -> list[list[str]]:
        """Return the groups whose scales are powers of two apart, that of ``name`` included."""
        root = _root(self._related, self._key(name))
        groups = defaultdict(list)
        for other in self._names:
            key = self._key(other)
            if _root(self._related, key) == root:
                groups[key].append(other)
        return list(groups.values())

    def _key(self, name: str) -> str:
        return _root(self._same, name)


def _root(parents: dict[str, str], name: str) -> str:
    while name in parents:
        name = parents[name]
    return name


def _join(parents: dict[str, str], a: str, b: str) -> None:
    a, b = _root(parents, a), _root(parents, b)
    if a != b:
        parents[b] = a
