"""What all ops share when they become steps: tensors in reach, weights, parameters, instructions.

A tensor is *resident* (one on-chip buffer for all its life) or *streamed* (it lives in DRAM; every
user has its own temporary buffers). :meth:`Lowering.read` and :meth:`Lowering.write` hide which.
Row tiles of the batch items follow each other, so for all but attention and windows a batch is just
more rows.

A tensor can be *part* of another one and have no buffer of its own
(:mod:`twillcore.compiler.tensor_parts`).
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twillcore.compiler.errors import CompileError
from twillcore.compiler.graph import (
    Graph,
    Tensor,
    reads,
    writes,
)
from twillcore.compiler.pitches import choose_pitches
from twillcore.compiler.steps import TABLE_UNITS, Buffer, Place, Plan, Region, Space, Step, depth
from twillcore.compiler.tensor_parts import find_parts, is_tiled_exactly
from twillcore.image import MASKED_BIAS, Layer, Slot
from twillcore.isa import ISA, PARAMETER, PARAMETER_BYTES, Memory, Opcode, WeightFormat
from twillcore.weights import encode_rows, smallest_format

PAIRED = 2 / 3  #: of the memory that one layer uses, for each of two interleaved ones


@dataclass(frozen=True)
class Tuning:
    """Heuristics of the schedule; none of them changes a result.

    Attributes
    ----------
    chunk_share : share of the weight memory that one chunk of column tiles may take
    chunk_tiles : most column tiles in a chunk
    chunk_cycles : length of a chunk, for one row tile, when loading takes as long as computing
    pieces : most pieces into which the rows of a layer's first or last chunk are split
    scratch_share : share of a memory that one temporary buffer may take
    input_share : the same for the input of a linear layer: weights are loaded once per such buffer
    """

    chunk_share: float = 1 / 4
    chunk_tiles: int = 8
    chunk_cycles: int = 512
    pieces: int = 8
    scratch_share: float = 1 / 8
    input_share: float = 3 / 8

    def paired(self) -> "Tuning":
        """Return what two layers use that share the memories."""
        return dataclasses.replace(
            self, scratch_share=self.scratch_share * PAIRED, input_share=self.input_share * PAIRED
        )

    def smaller(self) -> "Tuning":
        """Return half the sizes, for a network that does not fit."""
        return dataclasses.replace(
            self,
            chunk_share=self.chunk_share / 2,
            scratch_share=self.scratch_share / 2,
            input_share=self.input_share / 2,
        )


def ceil_div(a: int, b: int) -> int:
    """Return ``a / b``, rounded up."""
    return -(-a // b)


def pieces(count: int, most: int) -> list[tuple[int, int]]:
    """Split ``count`` into at most ``most`` nearly equal (start, length)."""
    most = min(count, most)
    ends = [count * i // most for i in range(most + 1)]
    return [(low, high - low) for low, high in itertools.pairwise(ends)]


def parameter_entries(
    bias: ArrayLike, multiplier: ArrayLike, shift: ArrayLike, narrow_shift: ArrayLike
) -> NDArray[np.uint64]:
    """Return 64-bit parameter entries, vectorised :func:`twillcore.isa.encode_parameter`.

    Raises
    ------
    CompileError
        If a value does not fit its field.
    """
    words, offset = np.uint64(0), 0
    columns = np.broadcast_arrays(bias, multiplier, shift, narrow_shift)
    for part, column in zip(PARAMETER, columns, strict=True):
        column = column.astype(np.int64)
        if column.size and not part.low <= column.min() <= column.max() <= part.high:
            raise CompileError(
                f"parameter {part.name} must be {part.low}..{part.high},"
                f" not {column.min()}..{column.max()}"
            )
        mask = np.uint64((1 << part.bits) - 1)
        words = words | (column.astype(np.uint64) & mask) << np.uint64(offset)
        offset += part.bits
    return words


@dataclass(eq=False)
class Held:
    """Row tiles and words of a tensor that have a place on chip.

    ``row`` and ``word`` are the first ones, ``words`` those of the tensor that hold channels, and
    ``stride`` the words from row tile to row tile. ``pending`` are the row tiles that are still to
    be loaded from DRAM. A scratch buffer has no tensor.
    """

    tensor: Tensor | None
    buffer: Buffer
    row: int
    word: int
    stride: int
    words: int
    pending: set[int] = field(default_factory=set)

    def place(self, row: int, word: int = 0) -> Place:
        """Return the place of a word of the tensor."""
        return Place(self.buffer, (row - self.row) * self.stride + word - self.word)

    def region(self, row: int, rows: int, word: int, words: int, whole: bool = False) -> Region:
        """Return the words of the rows; those beyond the tensor only if ``whole``."""
        if not whole:
            words = min(words, self.words - word)
        return Region(self.buffer, self.place(row, word).offset, words, rows, self.stride)


class Lowering:
    """Collects the steps of a graph. One method per thing that several ops need.

    Parameters
    ----------
    graph
        What to lower.
    streamed
        Names of the tensors that live in DRAM instead of on chip.
    constants
        Encoded constants by key, kept over repeated lowerings of the same graph.
    """

    def __init__(
        self, graph: Graph, streamed: frozenset[str], constants: dict, tuning: Tuning
    ) -> None:
        self.graph, self.config, self.tuning = graph, graph.config, tuning
        self.streamed = streamed
        self.pitches = choose_pitches(graph)
        self._parts = find_parts(graph)
        self.steps: list[Step] = []
        self.layers: list[Layer] = []
        self.number = -1  # of the layer to which steps belong
        self._constants = constants
        self._homes: dict[str, Held] = {}
        self._slots: dict[str, tuple[Slot, Buffer]] = {}
        self._masks: dict[tuple, tuple[Slot, Buffer]] = {}
        self._spills: dict[str, Buffer] = {}
        self._table: tuple[bytes, Buffer] | None = None
        self._windows: dict[Opcode, dict[str, int | Place]] = {}
        for name in (*graph.inputs, *graph.outputs):
            tensor = graph.tensors[name]
            kind = "int16" if tensor.bits == 16 else "int8"
            slot = Slot(name, kind, 0, tensor.batch, tensor.rows, tensor.channels, tensor.scale)
            if self.pitch(tensor) != self.width(tensor):
                slot = dataclasses.replace(slot, width=self.width(tensor), pitch=self.pitch(tensor))
            self._slots.setdefault(
                name, (slot, Buffer(name, Space.DRAM, slot.size_bytes(self.config)))
            )
        self.by_bands: set[int] = set()  # layers whose weights all pass each band
        self._readers = {name: op for op in graph.ops for name in reads(op)}
        self._writers = {name: op for op in graph.ops for name in writes(op)}

    # Shapes

    def tensor(self, name: str) -> Tensor:
        """Return a tensor by name."""
        return self.graph.tensors[name]

    def width(self, tensor: Tensor) -> int:
        """Pixels of a line; rows that are no pixels count as one line."""
        return tensor.grid[1] if tensor.grid else tensor.rows

    def pitch(self, tensor: Tensor) -> int:
        """Rows from one line to the next."""
        return self.pitches.get(tensor.name, self.width(tensor))

    def rows_per_item(self, tensor: Tensor) -> int:
        """Row tiles of one batch item."""
        lines = tensor.rows // self.width(tensor)
        rows = (lines - 1) * self.pitch(tensor) + self.width(tensor)
        return ceil_div(rows, self.config.lanes)

    def rows(self, tensor: Tensor) -> int:
        """Row tiles of all batch items."""
        return tensor.batch * self.rows_per_item(tensor)

    def words(self, tensor: Tensor) -> int:
        """Words per row tile that hold channels."""
        return ceil_div(tensor.channels, self.config.block)

    def column_tiles(self, tensor: Tensor) -> int:
        """Column tiles that cover the channels."""
        return ceil_div(tensor.channels, self.config.dsp_columns)

    def scratch(self, space: Space, share: float | None = None) -> int:
        """Units that one temporary buffer of a space should not exceed."""
        share = self.tuning.scratch_share if share is None else share
        return max(1, int(depth(space, self.config) * share))

    def require_accumulator(self, name: str, largest: int) -> None:
        """Refuse sums that an accumulator cannot hold.

        Raises
        ------
        CompileError
            If ``largest``, the largest magnitude of a sum, does not fit.
        """
        limit = (1 << (self.config.accumulator_bits - 1)) - 1
        if largest > limit:
            raise CompileError(
                f"{name}: its sums reach {largest}, an accumulator of"
                f" {self.config.accumulator_bits} bits holds {limit}; raise accumulator_bits or"
                " split the input channels"
            )

    # Tensors

    def is_late(self, name: str) -> bool:
        """Whether a tensor becomes ready row by row while its first reader starts."""
        writer = self._writers.get(name)
        return writer is None or type(writer).__name__ in ("LayerNorm", "Elementwise")

    def is_loaded(self, name: str) -> bool:
        """Whether a tensor still has to come from DRAM."""
        return self.is_streamed(name) or bool(self._home(name).pending)

    def is_stored(self, name: str) -> bool:
        """Whether a tensor has a place in DRAM, to which it is stored when it is written."""
        return self._dram(name) is not None

    def is_urgent(self, name: str) -> bool:
        """Whether the readers of a tensor can start on its first rows alone."""
        reader = self._readers.get(name)
        return name in self._slots or type(reader).__name__ in ("LayerNorm", "Elementwise")

    def is_part_of(self, name: str, whole: str) -> bool:
        """Whether a tensor lies in ``whole``."""
        return name in self._parts and self._parts[name][0] == whole

    def _whole(self, name: str) -> tuple[str, int]:
        """Return the tensor that a tensor lies in, itself or another, and its first word there."""
        word = 0
        while name in self._parts:
            name, offset = self._parts[name]
            word += offset
        return name, word

    def is_shared(self, name: str) -> bool:
        """Whether a tensor lies in another one or others in it, or more than one op reads it."""
        inside = name in self._parts or any(whole == name for whole, _ in self._parts.values())
        users = sum(name in reads(op) for op in self.graph.ops)
        return inside or users != 1 or name in self._slots

    def is_streamed(self, name: str | None) -> bool:
        """Whether a tensor lives in DRAM."""
        return name is not None and self._whole(name)[0] in self.streamed

    def _space(self, tensor: Tensor) -> Space:
        return Space.WIDE if tensor.bits == 16 else Space.ACTIVATION

    def stride(self, tensor: Tensor) -> int:
        """Words from row tile to row tile where all of a tensor is on chip."""
        writer = self._writers.get(tensor.name)
        exact = tensor.grid if writer is None else is_tiled_exactly(writer, self.graph)
        if exact:
            return self.words(tensor)
        return self.column_tiles(tensor) * self.config.words_per_tile

    def _home(self, name: str) -> Held:
        if name not in self._homes:
            tensor = self.tensor(name)
            whole, word = self._whole(name)
            rows = self.rows(tensor)
            if whole != name:
                home = self._home(whole)
                self._homes[name] = Held(
                    tensor, home.buffer, 0, -word, home.stride, self.words(tensor)
                )
                return self._homes[name]
            stride = self.stride(tensor)
            buffer = Buffer(name, self._space(tensor), rows * stride, tensor=name)
            pending = set() if name in self._writers else set(range(rows))
            self._homes[name] = Held(tensor, buffer, 0, 0, stride, self.words(tensor), pending)
        return self._homes[name]

    def _dram(self, name: str) -> tuple[Buffer, int, int] | None:
        """Return where the tensor lies in DRAM, if it does: buffer, words per row tile, first."""
        name, word = self._whole(name)
        tensor = self.tensor(name)
        if name in self._slots:
            return self._slots[name][1], self.words(tensor), word
        if name in self.streamed:
            if name not in self._spills:
                size = self.rows(tensor) * self.words(tensor) * self._word_bytes(tensor)
                self._spills[name] = Buffer(f"spilled {name}", Space.DRAM, size)
            return self._spills[name], self.words(tensor), word
        return None

    def _word_bytes(self, tensor: Tensor) -> int:
        return self.config.word_bytes * tensor.bits // 8

    def read(self, name: str, row: int, rows: int, word: int = 0, words: int | None = None) -> Held:
        """Return the row tiles of a tensor for reading; :meth:`load` them before use."""
        if not self.is_streamed(name):
            return self._home(name)
        held = self.write(name, row, rows, word, words)
        held.pending = set(range(row, row + rows))
        return held

    def write(
        self, name: str, row: int, rows: int, word: int = 0, words: int | None = None
    ) -> Held:
        """Return a place for words of a tensor; :meth:`store` them when written."""
        if not self.is_streamed(name):
            return self._home(name)
        tensor = self.tensor(name)
        stride = self.stride(tensor) - word if words is None else words
        label = f"{name}[{row}:{row + rows}]"
        buffer = Buffer(label, self._space(tensor), rows * stride, stream=name)
        return Held(tensor, buffer, row, word, stride, self.words(tensor))

    def temporary(self, name: str, space: Space, row: int, rows: int, words: int) -> Held:
        """Return a scratch buffer for ``words`` words of some row tiles."""
        return Held(None, Buffer(name, space, rows * words), row, 0, words, words)

    def load(self, held: Held, row: int, rows: int) -> None:
        """Load those of the row tiles that are pending."""
        todo = sorted(held.pending.intersection(range(row, row + rows)))
        while todo:
            count = next((i for i, r in enumerate(todo) if r != todo[0] + i), len(todo))
            self._transfer(Opcode.LOAD, held, todo[0], count, max(held.word, 0), held.stride)
            held.pending.difference_update(todo[:count])
            todo = todo[count:]

    def store(self, held: Held, row: int, rows: int, word: int = 0, words: int = 1 << 16) -> None:
        """Store words of row tiles, if their tensor has a place in DRAM."""
        if held.tensor is not None and self._dram(held.tensor.name) is not None:
            self._transfer(Opcode.STORE, held, row, rows, word, words)

    def _transfer(
        self, opcode: Opcode, held: Held, row: int, rows: int, word: int, words: int
    ) -> None:
        words = min(words, held.words - word)
        if words <= 0:
            return
        tensor = held.tensor
        dram, row_words, first = self._dram(tensor.name)
        unit = self._word_bytes(tensor)
        stride = row_words * unit
        offset = row * stride + (first + word) * unit
        outside = Region(dram, offset, words * unit, rows, stride)
        inside = held.region(row, rows, word, words)
        self.emit(
            opcode,
            (outside,) if opcode == Opcode.LOAD else (inside,),
            (inside,) if opcode == Opcode.LOAD else (outside,),
            memory=Memory(inside.buffer.space),
            dram=Place(dram, offset),
            dram_stride=stride,
            local=held.place(row, word),
            local_stride=held.stride,
            count=words,
            runs=rows,
        )

    # Constants

    def constant(self, key: tuple, encode: Callable[[], bytes]) -> Buffer:
        """Return the constant of the current layer with that key; ``encode`` gives its bytes."""
        full = self.number, *key
        if full not in self._constants:
            data = encode()
            name = " ".join(str(part) for part in key)
            self._constants[full] = Buffer(name, Space.DRAM, len(data), data)
        return self._constants[full]

    def new(self, name: str, space: Space, size: int) -> Buffer:
        """Return a new on-chip buffer."""
        return Buffer(name, space, size)

    def load_constant(
        self,
        target: Place,
        count: int,
        constant: Buffer,
        format: WeightFormat = WeightFormat.DENSE,
        beats: int = 0,
    ) -> None:
        """Load ``count`` units of a constant."""
        self._load_entries(target, count, Place(constant), (), format, beats)

    def _load_entries(self, target, count, source, reads, format=WeightFormat.DENSE, beats=0):
        self.emit(
            Opcode.LOAD,
            reads,
            (Region(target.buffer, target.offset, count),),
            memory=Memory(target.buffer.space),
            format=format,
            beats=beats,
            dram=source,
            local=target,
            count=count,
            runs=1,
        )

    def weights(self, target: Place, name: str, values: NDArray, beats: int, part: tuple) -> int:
        """Load the rows of (columns, K) weights; return how many. ``part`` tells parts apart."""
        config = self.config
        form = smallest_format(beats, config)
        constant = self.constant(
            ("weights", name, *part), lambda: encode_rows(values, beats, form, config)
        )
        tiles = ceil_div(values.shape[0], config.dsp_columns)
        rows = tiles * ceil_div(values.shape[1], config.block) * beats
        self.load_constant(target, rows, constant, form, beats)
        return rows

    def parameters(self, name: str, entries: NDArray[np.uint64], part: tuple = (),
                   space: Space = Space.PARAMETER) -> Buffer:  # fmt: skip
        """Load parameter entries into a new buffer."""
        constant = self.constant(
            ("parameters", name, *part), lambda: entries.astype("<u8").tobytes()
        )
        assert len(constant.data) == entries.nbytes, f"{constant.name}: {part} is ambiguous"
        buffer = Buffer(constant.name, space, len(entries))
        self.load_constant(Place(buffer), len(entries), constant)
        return buffer

    def mask(self, name: str, item: int, multiplier: int, shift: int) -> Buffer:
        """Load the parameter entries of one batch item of a mask into a new buffer."""
        tensor = self.tensor(name)
        key = (name, multiplier, shift)
        if key not in self._masks:
            slot = Slot(name, "mask", 0, tensor.batch, 1, tensor.channels, 1.0, multiplier, shift)
            size = slot.size_bytes(self.config)
            self._masks[key] = slot, Buffer(f"mask {name}", Space.DRAM, size)
        slot, dram = self._masks[key]
        count = slot.padded_columns(self.config)
        buffer = Buffer(f"mask {name}", Space.PARAMETER, count)
        size = count * PARAMETER_BYTES
        source = Place(dram, item * size)
        self._load_entries(Place(buffer), count, source, (Region(dram, source.offset, size),))
        return buffer

    def key_bias(self, keys: int, multiplier: int, shift: int) -> NDArray[np.uint64]:
        """Return the entries of logits without a mask: only padding keys are excluded."""
        columns = ceil_div(keys, self.config.dsp_columns) * self.config.dsp_columns
        bias = np.where(np.arange(columns) < keys, 0, MASKED_BIAS)
        return parameter_entries(bias, multiplier, shift, 0)

    def table(self, name: str, entries: NDArray) -> Buffer:
        """Return the buffer of a function table, loading it unless it is there."""
        data = np.asarray(entries).astype("<i2").tobytes()
        if self._table is None or self._table[0] != data:
            constant = self.constant(("table", name), lambda: data)
            self._table = data, Buffer(f"table {name}", Space.TABLE, TABLE_UNITS)
            self.load_constant(Place(self._table[1]), TABLE_UNITS, constant)
        return self._table[1]

    # Steps

    def layer(
        self, name: str, macs: int = 0, useful_macs: int | None = None, lut_macs: int = 0,
        lut_work: int = 0,
    ) -> None:  # fmt: skip
        """Start a layer: following steps belong to it; see :class:`twillcore.image.Layer`."""
        useful = macs if useful_macs is None else useful_macs
        self.layers.append(Layer(name, macs, useful, lut_macs, lut_work))
        self.number = len(self.layers) - 1

    def emit(
        self, opcode: Opcode, reads: Iterable[Region], writes: Iterable[Region],
        **operands: int | Place,
    ) -> None:  # fmt: skip
        """Append a step; operands that are not given are 0."""
        values = {part.name: operands.pop(part.name, 0) for part in ISA[opcode].operands}
        if operands:
            raise ValueError(f"{opcode.name} has no operands {sorted(operands)}")
        self.steps.append(Step(opcode, values, tuple(reads), tuple(writes), self.number))

    def replace(self, start: int, steps: Iterable[Step]) -> None:
        """Take ``steps`` for all from ``start`` on."""
        self.steps[start:] = steps
        self._windows.clear()

    def window(self, opcode: Opcode, tap: Buffer, **operands: int) -> None:
        """Append a WINDOW or LUT_WINDOW, unless that is the window that the core has."""
        values = {**operands, "tap": Place(tap)}
        if self._windows.get(opcode) != values:
            self._windows[opcode] = values
            self.emit(opcode, (Region(tap, 0, tap.size),), (), **values)

    def plan(self) -> Plan:
        """Return everything collected."""
        graph = self.graph
        outputs = dict.fromkeys(graph.outputs)
        return Plan(
            config=self.config,
            steps=tuple(self.steps),
            layers=tuple(self.layers),
            inputs=(*(self._slots[name] for name in graph.inputs), *self._masks.values()),
            outputs=tuple(self._slots[name] for name in outputs),
            by_bands=frozenset(self.by_bands),
        )
