"""The arithmetic contract against exact Python integers and fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twillcore import numerics
from twillcore.numerics import (
    EXP_TABLE,
    add_residual,
    elementwise_add,
    elementwise_multiply,
    exponential,
    isqrt,
    lane_scale,
    layer_norm,
    look_up,
    narrow,
    norm_statistics,
    relu,
    round_shift,
    saturate,
    scale_accumulator,
)


def signed(bits: int) -> st.SearchStrategy[int]:
    """Log-uniform in magnitude: uniform numbers saturate nearly always and test nothing else."""
    return st.builds(
        lambda value, drop: value >> drop,
        st.integers(-(1 << (bits - 1)), (1 << (bits - 1)) - 1),
        st.integers(0, bits - 1),
    )


def rounded(x: Fraction) -> int:
    """Nearest integer, ties away from zero."""
    return int(math.copysign(math.floor(abs(x) + Fraction(1, 2)), x))


def clamped(x: int, bits: int) -> int:
    return max(-(1 << (bits - 1)), min((1 << (bits - 1)) - 1, x))


tables = st.binary(min_size=512, max_size=512).map(lambda b: np.frombuffer(b, "<i2").tolist())
int8s, int16s, int32s = signed(8), signed(16), signed(32)


@given(signed(52), st.integers(0, 63))
def test_round_shift(x, shift):
    assert round_shift(x, shift) == rounded(Fraction(x, 1 << shift))


@pytest.mark.parametrize(("x", "result"), [(3, 2), (1, 1), (-1, -1), (-3, -2), (5, 3), (-5, -3)])
def test_ties_go_away_from_zero(x, result):
    assert round_shift(x, 1) == result


@given(signed(40), st.integers(2, 33))
def test_saturate(x, bits):
    assert saturate(x, bits) == clamped(x, bits)


@given(int32s, int32s, st.one_of(int16s, st.integers(0, (1 << 17) - 1)), st.integers(0, 63))
def test_scale_accumulator(acc, bias, multiplier, shift):
    exact = Fraction((acc + bias) * multiplier, 1 << shift)
    assert scale_accumulator(acc, bias, multiplier, shift) == clamped(rounded(exact), 16)


def test_extremes_of_the_accumulator_are_exact():
    low = -(1 << 31)
    assert scale_accumulator(low, low, -(1 << 15), 47) == 1
    assert scale_accumulator(low, low, (1 << 17) - 1, 34) == -(1 << 15)


@given(int16s, int16s, st.integers(-8, 15))
def test_add_residual(x, residual, shift):
    scaled = rounded(Fraction(residual) / Fraction(2) ** shift)
    assert add_residual(x, residual, shift) == clamped(x + scaled, 16)


@given(int16s)
def test_relu(x):
    assert relu(x) == max(x, 0)


@given(int16s, st.integers(0, 15))
def test_narrow(x, shift):
    assert narrow(x, shift) == clamped(rounded(Fraction(x, 1 << shift)), 8)


@given(int16s, tables)
def test_look_up_interpolates(x, table):
    x12 = clamped(x, 12)
    entry, fraction = divmod(x12 + 2048, 16)
    low, high = table[entry], table[min(entry + 1, 255)]
    assert look_up(x, table) == low + rounded(Fraction((high - low) * fraction, 16))


@given(tables, int16s)
def test_look_up_stays_within_its_table(table, x):
    assert min(table) <= look_up(x, table) <= max(table)


def test_exponential_table():
    assert EXP_TABLE[0] == 127
    assert EXP_TABLE[16] == 64  # an octave below; 63.5 rounds to even
    assert EXP_TABLE[-1] == 0
    assert (np.diff(EXP_TABLE) <= 0).all()


@given(int16s, int16s)
def test_exponential(x, y):
    x, maximum = min(x, y), max(x, y)
    if x == numerics.INT16_MIN:
        assert exponential(x, maximum) == 0
        return
    exact = 127 * 2.0 ** (-(maximum - x) / 16)
    assert abs(int(exponential(x, maximum)) - exact) <= 0.5


def test_masked_logits_have_no_share():
    lowest = numerics.INT16_MIN
    assert exponential(lowest, lowest) == 0
    assert exponential(lowest + 1, lowest + 1) == exponential(5, 5) == 127


@given(st.integers(0, (1 << 24) - 1), st.integers(1 << 15, (1 << 16) - 1), st.integers(23, 63))
def test_lane_scale(total, numerator, shift):
    multiplier, right = (int(x) for x in lane_scale(total, numerator, shift))
    exact = Fraction(numerator << 24, max(total, 1) << shift)  # what acc is multiplied by
    assert 0 < multiplier < 1 << 17
    assert 0 <= right <= 63
    assert Fraction(multiplier, 1 << right) <= exact < Fraction(multiplier + 1, 1 << right)
    assert multiplier >= 1 << 15  # so it has 15 bits of precision at least


@given(st.integers(0, (1 << 56) - 1))
def test_isqrt(x):
    assert isqrt(x) == math.isqrt(x)


@given(st.integers(0, (1 << 28) - 1), st.integers(-2, 2))
def test_isqrt_around_squares(root, offset):
    x = max(0, min(root * root + offset, (1 << 56) - 1))
    assert isqrt(x) == math.isqrt(x)


rows = st.lists(int16s, min_size=1, max_size=40)


@given(rows, st.integers(0, (1 << 32) - 1))
def test_norm_statistics(q, epsilon):
    total, multiplier, shift = (int(x) for x in norm_statistics(q, len(q), epsilon))
    v = len(q) * sum(x * x for x in q) - sum(q) ** 2 + epsilon
    root = max(math.isqrt(v), 1)
    assert total == sum(q)
    exact = Fraction(1 << 14, root)
    assert Fraction(multiplier, 1 << shift) <= exact < Fraction(multiplier + 1, 1 << shift)
    assert multiplier < 1 << 17


@given(rows, st.integers(0, 1000), int16s, int32s, st.integers(0, 40))
def test_layer_norm_is_near_the_real_one(q, epsilon, gamma, beta, shift):
    got = layer_norm(q, len(q), epsilon, gamma, beta, shift)
    v = len(q) * sum(x * x for x in q) - sum(q) ** 2 + epsilon
    root = max(math.sqrt(v), 1)
    for x, y in zip(q, got.tolist(), strict=True):
        z = max(-(1 << 21), min((1 << 21) - 1, (len(q) * x - sum(q)) / root * (1 << 14)))
        # z is rounded, and 1 / sqrt(v) is cut to 16 bits and v's root to an integer
        error = (0.5 + abs(z) * (2.0**-15 + 1 / root)) * abs(gamma) / 2.0**shift
        exact = clamped(round((z * gamma + beta) / 2.0**shift), 16)
        assert abs(y - exact) <= error + 1.5


def test_padding_channels_do_not_count():
    q = [5, -7, 100, 3]
    padded = layer_norm([*q, 0, 0], 4, 1, 1000, 0, 14)
    assert np.array_equal(padded[:4], layer_norm(q, 4, 1, 1000, 0, 14))


def test_constant_rows_give_beta():
    assert layer_norm([300] * 8, 8, 0, 12345, 64, 4).tolist() == [4] * 8


@given(int16s, int16s, int16s, int16s, st.integers(0, 63))
def test_elementwise(a, b, a_multiplier, b_multiplier, shift):
    total = Fraction(a * a_multiplier + b * b_multiplier, 1 << shift)
    assert elementwise_add(a, b, a_multiplier, b_multiplier, shift) == clamped(rounded(total), 16)
    product = Fraction(a * b * a_multiplier, 1 << shift)
    assert elementwise_multiply(a, b, a_multiplier, shift) == clamped(rounded(product), 16)


def test_every_function_works_on_arrays():
    x = np.arange(-6, 6).reshape(3, 4)
    assert numerics.narrow(x, np.arange(4)).shape == (3, 4)
    assert numerics.round_shift(x[:, :1], np.arange(4)).shape == (3, 4)
