"""The pitch of every feature map: how many pixels lie from one line to the next.

Pixel (y, x) of a map stands in row ``y * pitch + x``, lane ``row mod lanes`` of row tile ``row div
lanes``. A pitch above the width leaves junk between the lines; nobody reads it (windows mask it by
the width), but computing it takes time. What can be expressed:

* *Stride 1*: the output has the pitch of the input. Every tap is then an offset. Any pitch will do.
* *Stride 2*, output pitch P, input pitch Q, lanes L. Each half of a row tile (L / 2 output pixels)
  must lie in one output line, its input pixels begin in the same lane in every row tile, and the
  input's row tiles advance evenly (within a line and from line to line). That holds if

  * P is a multiple of L, and Q of L / 2, not less than P; or
  * P = L / 2 (a row tile is two lines), and 4 Q is a multiple of L; or
  * P = Q, a multiple of L / 2 (then output pixel p starts at input pixel 2 p; half of it is junk).

* *Other strides*: every output line has an instruction of its own. It must be whole row tiles, and
  its input line must begin one. With s input lines per output line, P is a multiple of L, and so is
  s Q.
* *One line* has no pitch: its pixels follow each other, whatever the neighbours do.
* What is no convolution works on rows: all its maps share a pitch. Matrix products of two
  activations and tensors without a grid know no junk: there the pitch is the width.

Of the pitches that fit all layers of a network, the cheapest are taken.
"""

from collections.abc import Iterator

from twillcore.compiler.errors import CompileError
from twillcore.compiler.graph import (
    Attention,
    Conv,
    Graph,
    MatMul,
    MaxPool,
    Op,
    PerDirection,
    both_directions,
    reads,
    writes,
)
from twillcore.compiler.limits import LARGEST_PITCH, LARGEST_STRIDE


def choose_pitches(graph: Graph) -> dict[str, int]:
    """Return the pitch of every tensor that has a grid of more than one line.

    Raises
    ------
    CompileError
        If a map is too wide, or no pitches fit all layers.
    """
    return _Choice(graph).best()


class _Choice:
    """Maps that must have one pitch form a class; classes are joined by layers with a stride."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.lanes = graph, graph.config.lanes
        self.names = [
            name for name, tensor in graph.tensors.items() if tensor.grid and tensor.grid[0] > 1
        ]
        self._parent = {name: name for name in self.names}
        self.forced: dict[str, int] = {}
        self.strided: list[tuple[str, str, Op]] = []  # (input, output)
        for op in graph.ops:
            self._add(op)
        order = dict.fromkeys(self._find(name) for op in graph.ops for name in
                              (*reads(op), *writes(op)) if name in self._parent)  # fmt: skip
        self.classes = list(order | dict.fromkeys(self._find(name) for name in self.names))
        self.widths = dict.fromkeys(self.classes, 1)
        for name in self.names:
            root = self._find(name)
            self.widths[root] = max(self.widths[root], graph.tensors[name].grid[1])

    def _strides(self, op: Conv | MaxPool) -> tuple[int, int]:
        return window_strides(op.stride, self.graph.tensors[op.out].grid)

    def _find(self, name: str) -> str:
        while self._parent[name] != name:
            name = self._parent[name]
        return name

    def _join(self, names: list[str]) -> None:
        for name in names[1:]:
            self._parent[self._find(name)] = self._find(names[0])

    def _add(self, op: Op) -> None:
        tensors = list(dict.fromkeys([*reads(op), *writes(op)]))
        maps = [name for name in tensors if name in self._parent]
        if isinstance(op, Conv | MaxPool) and self._strides(op) != (1, 1):
            self._join([name for name in maps if name != op.x])
            if op.out in maps:  # the pitch of a single line is that of whatever reads it
                self.strided.append((op.x if op.x in maps else op.out, op.out, op))
            return
        self._join(maps)
        others = (self.graph.tensors[name] for name in tensors if name not in self._parent)
        rows = any(tensor.rows > 1 and not tensor.grid for tensor in others)
        if rows or isinstance(op, Attention | MatMul):
            self.forced |= {name: self.graph.tensors[name].grid[1] for name in maps}

    def _candidates(self, root: str, known: dict[str, int]) -> list[int]:
        width, lanes = self.widths[root], self.lanes
        forced = {pitch for name, pitch in self.forced.items() if self._find(name) == root}
        if forced:
            return sorted(p for p in forced if p >= width and len(forced) == 1)
        steps = {1, lanes, lanes // 2} | ({lanes // 4} if lanes % 4 == 0 else set())
        widths = {width} | {
            self.widths[self._find(out)] for x, out, _ in self.strided if self._find(x) == root
        }
        pitches = {-(-w // step) * step for step in steps for w in widths if w >= width}
        pitches |= {pitch for pitch in known.values() if pitch >= width}
        return sorted(pitch for pitch in pitches if pitch <= LARGEST_PITCH)

    def _cost(self, root: str, pitch: int) -> float:
        """Words of the class's maps, as a measure of the time spent on them."""
        total = 0
        for name in self.names:
            if self._find(name) == root:
                tensor = self.graph.tensors[name]
                total += tensor.batch * tensor.grid[0] * pitch * tensor.channels
        return total

    def _fits(self, known: dict[str, int]) -> bool:
        for x, out, op in self.strided:
            source, target = known.get(self._find(x)), known.get(self._find(out))
            if source and target and not fits_strides(self.lanes, source, target,
                                                      self._strides(op)):  # fmt: skip
                return False
        return True

    def _search(self, index: int, known: dict[str, int], cost: float) -> Iterator[dict[str, int]]:
        """Yield ever cheaper pitches of all classes."""
        if cost >= self._limit or not self._fits(known):
            return
        if index == len(self.classes):
            self._limit = cost
            yield known
            return
        root = self.classes[index]
        for pitch in self._candidates(root, known):
            more = cost + self._cost(root, pitch)
            yield from self._search(index + 1, known | {root: pitch}, more)

    def best(self) -> dict[str, int]:
        self._limit = float("inf")
        found = list(self._search(0, {}, 0.0))
        if not found:
            wide = [n for n in self.names if self.graph.tensors[n].grid[1] > LARGEST_PITCH]
            if wide:
                raise CompileError(f"{', '.join(wide)}: wider than {LARGEST_PITCH} pixels")
            layers = ", ".join(op.name for _, _, op in self.strided)
            raise CompileError(
                f"no pitches of the feature maps fit {layers or 'all layers'} on {self.lanes}"
                " lanes; use maps whose width is a multiple of the lanes"
            )
        return {name: found[-1][self._find(name)] for name in self.names}


def window_strides(stride: PerDirection, grid: tuple[int, int]) -> tuple[int, int]:
    """Return the strides that a window needs to compute ``grid``; one with one output has none."""
    down, right = both_directions(stride)
    if grid[0] == 1:
        down = right
    if grid[1] == 1:
        right = min(down, LARGEST_STRIDE)
    return down, right


def fits_strides(lanes: int, source: int, target: int, strides: tuple[int, int]) -> bool:
    """Whether maps of these pitches can be input and output of a layer with ``strides``."""
    if strides != (2, 2):
        return target % lanes == 0 and strides[0] * source % lanes == 0
    if target % (lanes // 2):
        return False
    if source == target:
        return True
    if target == lanes // 2:
        return 4 * source % lanes == 0
    return target % lanes == 0 and source % (lanes // 2) == 0 and source >= target
