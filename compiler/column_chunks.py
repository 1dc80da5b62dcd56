"""Column tiles whose weights are loaded together, in parts of K if they are too many.

If two column tiles of weights do not fit, they come in parts of the input blocks: each row tile
passes all parts, and the sums wait in the accumulators. So the parts of the next column tile can
arrive while the last row tile consumes these. If not even one column tile fits, row tiles pass the
parts to and fro, so that only some of them have to come again.
"""

import numpy as np
from numpy.typing import NDArray

from twillcore.compiler.column_tiles import Run
from twillcore.compiler.lowering import Lowering
from twillcore.compiler.steps import Buffer, Place, Space
from twillcore.weights import encode_planes, encode_rows, smallest_format


class Chunk:
    """Some column tiles of layer ``name``, whose input blocks come in ``parts`` (first, count).

    ``entries`` are the parameters of all columns of the layer.
    """

    def __init__(
        self, low: Lowering, name: str, entries: NDArray[np.uint64], run: Run,
        parts: list[tuple[int, int]],
    ) -> None:  # fmt: skip
        self.low, self.name, self.entries, self.run, self.parts = low, name, entries, run, parts
        self._places: dict[int, Place] = {}
        self._parameters: Buffer | None = None
        #: Whether all parts can stay for all row tiles: their rows and one part more fit.
        largest = max(blocks for _, blocks in parts)
        self.stays = (run.blocks + largest) * run.block_rows <= run.core.depth or len(parts) == 1

    def afresh(self) -> "Chunk":
        """Return the same column tiles, of which nothing is loaded yet."""
        return Chunk(self.low, self.name, self.entries, self.run, self.parts)

    def weights(self, index: int) -> Place:
        """Return where the weights of a part are; loads them."""
        if index not in self._places:
            self._places[index] = self._load_weights(*self.parts[index])
        return self._places[index]

    def forget(self, order: list[int]) -> None:
        """Forget the parts that cannot stay for the next row tile, those used first."""
        if not self.stays:
            largest = max(blocks for _, blocks in self.parts) * self.run.block_rows
            most = self.run.core.depth // largest - 1  # and room for one that arrives
            self._places = {index: self._places[index] for index in order[len(order) - most :]}

    @property
    def parameters(self) -> Place:
        """Where the parameters of the columns are; loads them."""
        if self._parameters is None:
            run, block = self.run, self.low.config.block
            entries = self.entries[run.word * block : (run.word + run.tiles * run.words) * block]
            part = run.word, run.tiles, run.words
            self._parameters = self.low.parameters(self.name, entries, part)
        return Place(self._parameters)

    def _load_weights(self, start: int, blocks: int) -> Place:
        """Load some input blocks of the weights into a new buffer."""
        low, run, config = self.low, self.run, self.low.config
        core, block = run.core, config.block
        rows = run.tiles * (1 if run.pool else blocks * run.block_rows)
        buffer = low.new(f"{self.name}.weight[{run.word}, {start}]", core.space, rows)

        def columns() -> NDArray[np.int8]:
            part = run.values[..., start * block : (start + blocks) * block]
            gap = core.columns - part.shape[1]
            part = np.pad(part, [(0, 0), (0, gap), (0, 0), (0, 0)])
            return part.reshape(run.tiles * core.columns, -1)

        key = "weights", self.name, core.space, run.word, run.tiles, run.words, start, blocks
        if core.space == Space.LUT_WEIGHT:
            constant = low.constant(
                key, lambda: encode_planes(columns(), run.beats, config).tobytes()
            )
            low.load_constant(Place(buffer), rows, constant)
        else:
            form = smallest_format(run.beats, config)
            constant = low.constant(key, lambda: encode_rows(columns(), run.beats, form, config))
            low.load_constant(Place(buffer), rows, constant, form, run.beats)
        return Place(buffer)
