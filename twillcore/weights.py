"""How weights lie in DRAM: the single truth of :class:`twillcore.isa.WeightFormat`.

A *weight row* is what one beat of the GEMM core consumes: an int8 per column of the core, with its
position in the current block of K. Rows follow each other column tile by column tile, block by
block, beat by beat. Encoded, they are rows of ``dsp_columns`` bytes, some of which are headers that
hold positions; LOAD expands them (:mod:`twillcore.hw.load`). Each is padded with zeros to whole
beats of the memory port.

One encoded string is one *run* of a LOAD: position counters and headers start afresh with it.

Weights of the LUT core are *bit-planes*: per block, one row per bit of a weight, from the most
significant one, which counts negative, down. A row has ``block`` bits per column of the core: bit k
of a column's bytes (the lowest byte first) is position k of the block. Rows lie in DRAM as they are
in the memory, padded to whole beats like all others.
"""

import numpy as np
from numpy.typing import NDArray

from twillcore.config import Config
from twillcore.isa import LUT_WEIGHT_BITS, WeightFormat


def weight_row_bytes(config: Config) -> int:
    """Return the bytes of one encoded row of weights in DRAM, its padding included."""
    return _whole_beats(config.dsp_columns, config)


def plane_row_bytes(config: Config) -> int:
    """Return the bytes of one row of bit-planes in DRAM, its padding included."""
    return _whole_beats(config.lut_columns * config.block // 8, config)


def _whole_beats(size: int, config: Config) -> int:
    return -(-size // config.axi_bytes) * config.axi_bytes


def encoded_rows(rows: int, beats: int, format: WeightFormat, config: Config) -> int:
    """Return how many rows (:func:`weight_row_bytes`) a run of ``rows`` weight rows is in DRAM."""
    match WeightFormat(format):
        case WeightFormat.DENSE:
            return rows
        case WeightFormat.BITMAP:
            return rows + rows // beats * (config.block // 8)
        case WeightFormat.INDEX:
            return rows + (rows + 1) // 2


def smallest_format(beats: int, config: Config) -> WeightFormat:
    """Return the format in which N:B weights with N = ``beats`` take the fewest bytes of DRAM.

    With all positions kept that is DENSE. Else a block costs ``block / 8`` headers as BITMAP and
    half a header per beat as INDEX; where they are equal it is BITMAP.
    """
    if not 1 <= beats <= config.block:
        raise ValueError(f"beats must be 1..{config.block}, not {beats}")
    if beats == config.block:
        return WeightFormat.DENSE
    return WeightFormat.INDEX if beats < config.block // 4 else WeightFormat.BITMAP


def weight_rows(
    values: NDArray[np.int8], beats: int, config: Config
) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
    """Return the weight rows of ``values``, as (weights, index), both (rows, dsp_columns).

    Parameters
    ----------
    values
        int8, (columns, K), at most ``beats`` non-zeros per column and block. Columns are padded
        with zeros to whole column tiles, K to whole blocks.
    beats
        N of N:B, 1..block. Per column and block there are exactly ``beats`` weights at ascending
        positions: the non-zeros, and zeros at the lowest positions that are not used.

    Raises
    ------
    ValueError
        If a block has more non-zeros than ``beats``.
    """
    block, width = config.block, config.dsp_columns
    if not 1 <= beats <= block:
        raise ValueError(f"beats must be 1..{block}, not {beats}")
    columns, k = values.shape
    tiles, blocks = -(-columns // width), -(-k // block)
    padded = np.zeros((tiles * width, blocks * block), np.int8)
    padded[:columns, :k] = values
    padded = padded.reshape(tiles, width, blocks, block)
    worst = int(np.count_nonzero(padded, axis=-1).max(initial=0))
    if worst > beats:
        raise ValueError(f"a block has {worst} non-zero weights, more than beats={beats}")
    # A stable sort puts the non-zeros first and then the lowest unused positions.
    kept = np.argsort(padded == 0, axis=-1, kind="stable")[..., :beats]
    kept.sort(axis=-1)
    weights = np.take_along_axis(padded, kept, axis=-1)
    rows = tiles * blocks * beats

    def as_rows(array):  # (tile, column, block, beat) -> (row, column)
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).reshape(rows, width)

    return as_rows(weights), as_rows(kept.astype(np.uint8))


def encode_rows(
    values: NDArray[np.int8], beats: int, format: WeightFormat, config: Config
) -> bytes:
    """Return ``values`` as they lie in DRAM: :func:`weight_rows` in ``format``, one run.

    Raises
    ------
    ValueError
        If a block has more non-zeros than ``beats``, or the format is DENSE and ``beats`` is not
        the whole block.
    """
    format = WeightFormat(format)
    if format == WeightFormat.DENSE and beats != config.block:
        raise ValueError(f"DENSE needs beats={config.block}, not {beats}")
    weights, index = weight_rows(values, beats, config)
    stored, width = weights.view(np.uint8), config.dsp_columns
    if format == WeightFormat.BITMAP:
        positions = index.reshape(-1, beats, width)
        bitmaps = (1 << positions.astype(np.uint32)).sum(axis=1, dtype=np.uint32)
        headers = [bitmaps >> 8 * byte & 0xFF for byte in range(config.block // 8)]
        headers = np.stack(headers, axis=1).astype(np.uint8)
        groups = np.concatenate([headers, stored.reshape(-1, beats, width)], axis=1)
        stored = groups.reshape(-1, width)
    elif format == WeightFormat.INDEX:
        rows = len(stored)
        pairs = np.zeros((2, rows + 1 & ~1, width), np.uint8)
        pairs[:, :rows] = stored, index
        weights, index = pairs.reshape(2, -1, 2, width)
        header = index[:, :1] | index[:, 1:] << 4
        groups = np.concatenate([header, weights], axis=1)
        stored = groups.reshape(-1, width)[: encoded_rows(rows, beats, format, config)]
    return _padded(stored, weight_row_bytes(config)).tobytes()


def _padded(rows: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    return np.pad(rows, [(0, 0), (0, size - rows.shape[1])])


def decode_rows(
    data: bytes, rows: int, beats: int, format: WeightFormat, config: Config
) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
    """Return the ``rows`` weight rows of one run, as LOAD writes them: (weights, index).

    Both are (rows, dsp_columns). DENSE rows get an index that counts through the block. ``beats``
    matters for BITMAP only, where ``rows`` is a multiple of it. ``data`` may exceed the run.

    Raises
    ------
    ValueError
        If ``data`` is shorter than the run, or a run of BITMAP ends inside a block.
    """
    format, block, width = WeightFormat(format), config.block, config.dsp_columns
    if format == WeightFormat.BITMAP and (not 1 <= beats <= block or rows % beats):
        raise ValueError(f"BITMAP needs rows={rows} to be a multiple of beats={beats}, 1..{block}")
    row_bytes = weight_row_bytes(config)
    size = encoded_rows(rows, beats, format, config) * row_bytes
    if len(data) < size:
        raise ValueError(f"{rows} {format.name} weight rows are {size} bytes, not {len(data)}")
    stored = np.frombuffer(data, np.uint8, size).reshape(-1, row_bytes)[:, :width]
    if format == WeightFormat.DENSE:
        index = np.repeat(np.arange(rows) % block, width).reshape(rows, width)
        weights = stored
    elif format == WeightFormat.BITMAP:
        headers = block // 8
        groups = stored.reshape(-1, headers + beats, width)
        weights = groups[:, headers:].reshape(rows, width)
        bitmap = np.zeros((len(groups), width), np.uint32)
        for byte in range(headers):
            bitmap |= groups[:, byte].astype(np.uint32) << 8 * byte
        index = np.zeros((len(groups), beats, width), np.uint8)
        for beat in range(beats):
            lowest = bitmap & -bitmap
            bitmap ^= lowest
            index[:, beat] = np.where(lowest, np.log2(np.maximum(lowest, 1)), 0)
        index = index.reshape(rows, width)
    else:
        header_rows = np.arange(len(stored)) % 3 == 0
        weights = stored[~header_rows]
        headers = np.repeat(stored[header_rows], 2, axis=0)[:rows]
        odd = (np.arange(rows) % 2)[:, None].astype(np.uint8)
        index = (headers >> 4 * odd) & (block - 1)
    return weights.view(np.int8).copy(), index.astype(np.uint8)


def encode_planes(values: NDArray[np.int8], bits: int, config: Config) -> NDArray[np.uint8]:
    """Return the bit-planes of ``values``, as LOAD copies them: (rows, :func:`plane_row_bytes`).

    Parameters
    ----------
    values
        int8, (columns, K), each in the range of ``bits``-bit two's complement. Columns are padded
        with zeros to whole column tiles of ``lut_columns``, K to whole blocks.
    bits
        1..8; a weight of one bit is 0 or -1.

    Raises
    ------
    ValueError
        If ``bits`` is not 1..8, or a value does not fit.
    """
    if not 1 <= bits <= LUT_WEIGHT_BITS:
        raise ValueError(f"bits must be 1..{LUT_WEIGHT_BITS}, not {bits}")
    half = 1 << (bits - 1)
    if values.size and not -half <= values.min() <= values.max() < half:
        raise ValueError(f"weights are {values.min()}..{values.max()}, not {bits} bits")
    block, width = config.block, config.lut_columns
    columns, k = values.shape
    tiles, blocks = -(-columns // width), -(-k // block)
    padded = np.zeros((tiles * width, blocks * block), np.uint8)
    padded[:columns, :k] = values.view(np.uint8)
    padded = padded.reshape(tiles, width, blocks, 1, block).transpose(0, 2, 3, 1, 4)
    planes = padded >> np.arange(bits - 1, -1, -1, dtype=np.uint8)[:, None, None] & 1
    rows = np.packbits(planes, axis=-1, bitorder="little")
    return _padded(rows.reshape(tiles * blocks * bits, -1), plane_row_bytes(config))


def decode_planes(rows: NDArray[np.uint8], bits: int, config: Config) -> NDArray[np.int8]:
    """Return the weights of rows of bit-planes, (blocks, block, lut_columns).

    ``rows`` is (blocks * bits, bytes of a row), as :func:`encode_planes` returns them, or without
    their padding.
    """
    columns, column_bytes = config.lut_columns, config.block // 8
    rows = rows[:, : columns * column_bytes].reshape(-1, bits, columns, column_bytes)
    planes = np.unpackbits(rows, axis=-1, bitorder="little")
    significance = 1 << np.arange(bits - 1, -1, -1)
    significance[0] *= -1
    values = (planes * significance[:, None, None].astype(np.int16)).sum(axis=1)
    return values.transpose(0, 2, 1).astype(np.int8)
