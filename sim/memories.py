"""Memories of the functional engine: numpy rows with checked addresses."""

import numpy as np
from numpy.typing import NDArray

from twillcore.config import Config
from twillcore.isa import Cause


class Fault(Exception):
    """An instruction cannot be executed; the engine adds which one and raises ``MachineError``."""

    def __init__(self, cause: Cause, detail: str) -> None:
        self.cause, self.detail = cause, detail
        super().__init__(detail)


class Memory:
    """``depth`` rows of any shape.

    Parameters
    ----------
    name, depth, row_shape, dtype
        What it is. All rows are zero at the start.
    strict
        Refuse to read a row that was never written.
    garbage
        Fill it with random bits from this generator instead, as a run before this one may have.
    """

    def __init__(
        self,
        name: str,
        depth: int,
        row_shape: tuple[int, ...],
        dtype: type,
        *,
        strict: bool = False,
        garbage: np.random.Generator | None = None,
    ) -> None:
        self.name = name
        self.rows = np.zeros((depth, *row_shape), dtype)
        if garbage is not None:
            raw = garbage.integers(0, 256, self.rows.nbytes, np.uint8)
            self.rows = raw.view(dtype).reshape(self.rows.shape)
        self._written = np.zeros(depth, bool) if strict else None

    def read(self, addresses: NDArray) -> NDArray:
        """Return the rows at ``addresses`` (any shape), copied.

        Raises
        ------
        Fault
            If an address is out of range, or strict and never written.
        """
        self._check(addresses)
        self._check_written(addresses)
        return self.rows[addresses]

    def read_lanes(self, addresses: NDArray, lanes: NDArray, inside: NDArray, fill: int) -> NDArray:
        """Return lane ``lanes`` of the rows at ``addresses``, all of one broadcast shape, copied.

        Where not ``inside``, and where there is no such address, ``fill`` is in its place.

        Raises
        ------
        Fault
            If strict and the row of a lane that counts was never written.
        """
        addresses, lanes, inside = np.broadcast_arrays(addresses, lanes, inside)
        inside = inside & (addresses >= 0) & (addresses < len(self.rows))
        addresses = np.where(inside, addresses, 0)
        self._check_written(addresses[inside])
        depth, width, *shape = self.rows.shape
        found = self.rows.reshape(depth * width, *shape)[addresses * width + lanes]
        found[~inside] = fill
        return found

    def write(self, addresses: NDArray, values: NDArray) -> None:
        """Write ``values`` to the rows at ``addresses``, later ones last. Raises :class:`Fault`."""
        self._check(addresses)
        self.rows[addresses] = values
        if self._written is not None:
            self._written[addresses] = True

    def _check(self, addresses: NDArray) -> None:
        if addresses.size and addresses.max() >= len(self.rows):
            raise Fault(
                Cause.ADDRESS_OUT_OF_RANGE,
                f"{self.name} address {addresses.max()}, there are {len(self.rows)}",
            )

    def _check_written(self, addresses: NDArray) -> None:
        if self._written is not None and not (known := self._written[addresses]).all():
            missing = addresses[~known]
            raise Fault(
                Cause.ILLEGAL_INSTRUCTION,
                f"reads {self.name} {_ranges(missing)}, which nobody has written",
            )


class Memories:
    """All memories of one machine, as ``docs/architecture.md`` section 2 lists them.

    Parameter and norm entries are kept as 64-bit words, lane scales as (multiplier, shift).
    """

    def __init__(self, config: Config, *, strict: bool = False, garbage: int | None = None) -> None:
        rng = None if garbage is None else np.random.default_rng(garbage)

        def memory(name, depth, row_shape, dtype, exempt=False):
            return Memory(name, depth, row_shape, dtype, strict=strict and not exempt, garbage=rng)

        word, columns = (config.lanes, config.block), config.dsp_columns
        self.activation = memory("activation word", config.activation_depth, word, np.int8)
        self.wide = memory("wide word", config.wide_depth, word, np.int16)
        self.weight = memory("weight row", config.weight_depth, (columns,), np.int8)
        self.index = memory("weight row", config.weight_depth, (columns,), np.uint8)
        self.index.rows %= config.block
        planes = config.lut_columns * config.block // 8
        self.lut_weight = memory("row of bit-planes", config.lut_weight_depth, (planes,), np.uint8)
        self.tap = memory("tap", config.tap_depth, (), np.uint64)
        # Rows of keys and values beyond the last are multiplied by exponentials of 0.
        self.operand = memory("operand row", config.operand_depth, (columns,), np.int8, exempt=True)
        self.parameter = memory("parameter", config.parameter_depth, (), np.uint64)
        self.norm = memory("norm parameter", config.norm_depth, (), np.uint64)
        entries = 256 if config.function_table else 0
        self.table = memory("table entry", entries, (), np.int16)
        self.maximum = memory("row maximum", config.lane_depth, (config.lanes,), np.int16)
        self.lane = memory("lane scale", config.lane_depth, (config.lanes, 2), np.int64)
        self.lane.rows &= (1 << 17) - 1, (1 << 6) - 1


def _ranges(addresses: NDArray) -> str:
    """Return the smallest and the largest address as text."""
    low, high = addresses.min(), addresses.max()
    return str(low) if low == high else f"{low}..{high}"
