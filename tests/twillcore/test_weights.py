import numpy as np
import pytest

from twillcore.config import PRESETS
from twillcore.isa import WeightFormat
from twillcore.weights import (
    decode_planes,
    decode_rows,
    encode_planes,
    encode_rows,
    encoded_rows,
    plane_row_bytes,
    smallest_format,
    weight_row_bytes,
    weight_rows,
)

TINY = PRESETS["tiny"]
BLOCK16 = TINY.replace(block=16, dsp_columns=16)
#: A row of weights is one and a half beats, one of bit-planes half a beat.
PADDED = TINY.replace(
    dsp_columns=24, lut_columns=8, lut_weight_depth=64, axi_data_bits=128, operand_depth=0
)
CONFIGS = pytest.mark.parametrize(
    "config", [TINY, BLOCK16, PADDED], ids=["block8", "block16", "padded"]
)


def sparse(rng, columns, k, beats, block):
    """Random int8 weights with at most ``beats`` non-zeros per column and block."""
    values = rng.integers(-128, 128, (columns, -(-k // block), block), dtype=np.int8)
    order = rng.random(values.shape).argsort(axis=-1)
    values[order >= beats] = 0
    return values.reshape(columns, -1)[:, :k]


def formats(beats, config):
    return [f for f in WeightFormat if f != WeightFormat.DENSE or beats == config.block]


@CONFIGS
def test_every_format_decodes_to_the_same_rows(config):
    rng = np.random.default_rng(1)
    for beats in range(1, config.block + 1):
        values = sparse(rng, config.dsp_columns * 2 - 3, config.block * 3 - 1, beats, config.block)
        weights, index = weight_rows(values, beats, config)
        assert len(weights) == 2 * 3 * beats
        for format in formats(beats, config):
            data = encode_rows(values, beats, format, config)
            assert len(data) == (
                encoded_rows(len(weights), beats, format, config) * weight_row_bytes(config)
            )
            got_weights, got_index = decode_rows(data, len(weights), beats, format, config)
            np.testing.assert_array_equal(got_weights, weights)
            np.testing.assert_array_equal(got_index, index)


def test_rows_are_padded_to_whole_beats():
    assert (weight_row_bytes(PADDED), plane_row_bytes(PADDED)) == (32, 16)
    rng = np.random.default_rng(3)
    values = sparse(rng, 40, 21, 3, 8)
    unpadded = PADDED.replace(axi_data_bits=64)
    for format in formats(3, PADDED):
        data = encode_rows(values, 3, format, PADDED)
        rows = np.frombuffer(data, np.uint8).reshape(-1, 32)
        assert rows[:, :24].tobytes() == encode_rows(values, 3, format, unpadded)
        assert not rows[:, 24:].any()
    small = rng.integers(-4, 4, (8, 21), dtype=np.int8)
    planes = encode_planes(small, 3, PADDED)
    assert (planes[:, :8] == encode_planes(small, 3, unpadded)).all()
    assert not planes[:, 8:].any()
    assert (decode_planes(planes, 3, PADDED) == decode_planes(planes[:, :8], 3, PADDED)).all()


def test_rows_hold_the_matrix():
    rng = np.random.default_rng(2)
    values = sparse(rng, 8, 24, 3, 8)
    weights, index = weight_rows(values, 3, TINY)
    back = np.zeros((8, 3, 8), np.int8)
    for row, (w, p) in enumerate(zip(weights, index, strict=True)):
        back[np.arange(8), row // 3, p] = w
    np.testing.assert_array_equal(back.reshape(8, 24), values)
    assert (np.diff(index.reshape(3, 3, 8).astype(int), axis=1) > 0).all()  # ascending


def test_layout_byte_by_byte():
    values = np.zeros((8, 8), np.int8)
    values[0, 5], values[1, 2] = 7, -1
    bitmap = encode_rows(values, 1, WeightFormat.BITMAP, TINY)
    assert bitmap == bytes([1 << 5, 1 << 2, 1, 1, 1, 1, 1, 1, 7, 255, 0, 0, 0, 0, 0, 0])
    index = encode_rows(np.hstack([values, values]), 1, WeightFormat.INDEX, TINY)
    assert index == bytes([0x55, 0x22] + [0] * 6 + ([7, 255] + [0] * 6) * 2)


@CONFIGS
def test_smallest_format_is_smallest(config):
    for beats in range(1, config.block + 1):
        sizes = {f: encoded_rows(64 * beats, beats, f, config) for f in formats(beats, config)}
        assert sizes[smallest_format(beats, config)] == min(sizes.values())


def test_too_many_nonzeros_are_refused():
    with pytest.raises(ValueError, match=r"^a block has 8 non-zero weights, more than beats=2$"):
        encode_rows(np.ones((8, 8), np.int8), 2, WeightFormat.BITMAP, TINY)


def test_dense_needs_the_whole_block():
    with pytest.raises(ValueError, match=r"^DENSE needs beats=8, not 4$"):
        encode_rows(np.zeros((8, 8), np.int8), 4, WeightFormat.DENSE, TINY)
    with pytest.raises(ValueError, match=r"^beats must be 1\.\.8, not 9$"):
        smallest_format(9, TINY)


def test_short_data_is_refused():
    with pytest.raises(ValueError, match=r"^3 DENSE weight rows are 24 bytes, not 23$"):
        decode_rows(bytes(23), 3, 8, WeightFormat.DENSE, TINY)
    with pytest.raises(ValueError, match=r"^BITMAP needs rows=3 to be a multiple of beats=2"):
        decode_rows(bytes(99), 3, 2, WeightFormat.BITMAP, TINY)
