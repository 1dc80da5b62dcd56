"""The arithmetic contract: every number format and rounding rule, once.

Hardware, simulators, compiler and training-time fake quantisation all answer to these functions.
All work on integer numpy arrays of any shape, in int64, and broadcast. ``docs/numerics.md`` says it
in words. Rounding is to nearest with **ties away from zero** everywhere; saturation is to the
two's-complement range.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

IntArray = NDArray[np.int64]

INT8_MIN, INT8_MAX = -128, 127
INT16_MIN, INT16_MAX = -(1 << 15), (1 << 15) - 1
TABLE_INPUT_BITS = 12  # input of a function table: 8 bits of entry, 4 bits of interpolation
TABLE_FRACTION_BITS = 4
TABLE_ENTRIES = 256
EXP_ONE = 127  # the largest exponential, e(0)
EXP_STEPS_PER_OCTAVE = 16  # unit of a logit: 1/16 octave
LANE_MULTIPLIER_BITS = 17  # unsigned
MAX_SHIFT = 63
NORM_FRACTION_BITS = 14  # of a normalised value z = y / sqrt(v)


def saturate(x: ArrayLike, bits: int) -> IntArray:
    """Clamp to the range of ``bits``-bit two's complement."""
    return np.clip(np.asarray(x, np.int64), -(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def round_shift(x: ArrayLike, shift: ArrayLike) -> IntArray:
    """Return ``x / 2**shift`` rounded to nearest, ties away from zero; ``shift`` in 0..63."""
    x = np.asarray(x, np.int64)
    shift = np.asarray(shift, np.int64)
    half = np.where(shift > 0, np.int64(1) << np.maximum(shift - 1, 0), 0)
    return (x + half - ((x < 0) & (shift > 0))) >> shift


def scale_accumulator(
    acc: ArrayLike, bias: ArrayLike, multiplier: ArrayLike, shift: ArrayLike
) -> IntArray:
    """Return ``(acc + bias) * multiplier / 2**shift`` as int16: the first step of every drain.

    ``acc`` and ``bias`` are int32 (their sum keeps 33 bits), ``multiplier`` is int16 per column or
    17-bit unsigned per lane. The 50-bit product is exact. Rounded, saturated to 16 bits.
    """
    total = np.asarray(acc, np.int64) + np.asarray(bias, np.int64)
    return saturate(round_shift(total * np.asarray(multiplier, np.int64), shift), 16)


def add_residual(x: ArrayLike, residual: ArrayLike, shift: int) -> IntArray:
    """Return int16 ``x + residual * 2**-shift``; ``shift`` in -8..15, left if negative."""
    residual = np.asarray(residual, np.int64)
    scaled = residual << -shift if shift < 0 else round_shift(residual, shift)
    return saturate(np.asarray(x, np.int64) + scaled, 16)


def relu(x: ArrayLike) -> IntArray:
    """Return ``max(x, 0)``."""
    return np.maximum(np.asarray(x, np.int64), 0)


def look_up(x: ArrayLike, table: ArrayLike) -> IntArray:
    """Interpolate a function table linearly.

    ``x`` is int16 and saturated to 12 bits first. The upper 8 bits, plus 128, choose entry ``i`` of
    256 int16 entries, the lower 4 bits the position between entry ``i`` and ``i + 1``; above the
    last entry the function is constant. Returns int16.
    """
    x = saturate(x, TABLE_INPUT_BITS)
    table = np.asarray(table, np.int64)
    entry = (x >> TABLE_FRACTION_BITS) + TABLE_ENTRIES // 2
    fraction = x & ((1 << TABLE_FRACTION_BITS) - 1)
    low, high = table[entry], table[np.minimum(entry + 1, TABLE_ENTRIES - 1)]
    return low + round_shift((high - low) * fraction, TABLE_FRACTION_BITS)


def narrow(x: ArrayLike, shift: ArrayLike) -> IntArray:
    """Return int16 ``x`` as int8: ``x / 2**shift``, rounded, saturated; ``shift`` in 0..15."""
    return saturate(round_shift(x, shift), 8)


#: e(d) = round(127 * 2**(-d / 16)) for a distance d = 0..255 below the row's maximum.
EXP_TABLE: IntArray = np.rint(EXP_ONE * 2.0 ** (-np.arange(256) / EXP_STEPS_PER_OCTAVE)).astype(
    np.int64
)


def exponential(x: ArrayLike, maximum: ArrayLike) -> IntArray:
    """Return ``EXP_TABLE[min(maximum - x, 255)]`` (0..127) for int16 logits in 1/16 octave.

    A logit at the bottom of int16 is masked: its exponential is 0 even in a row that has no other,
    so that such a row is 0 and not the mean of what was excluded.
    """
    x = np.asarray(x, np.int64)
    distance = np.asarray(maximum, np.int64) - x
    return np.where(x == INT16_MIN, 0, EXP_TABLE[np.minimum(distance, 255)])


def _leading_zeros(x: IntArray, bits: int) -> IntArray:
    """Shift that brings the leading one of ``x`` in 1..2**bits-1 to bit ``bits - 1``; exact."""
    shift = np.zeros_like(x)
    for step in (32, 16, 8, 4, 2, 1):
        move = (x << shift) < (np.int64(1) << max(bits - step, 0))
        if step < bits:
            shift = np.where(move, shift + step, shift)
    return shift


def lane_scale(total: ArrayLike, numerator: int, shift: int) -> tuple[IntArray, IntArray]:
    """Return multiplier (17 bits) and shift so that ``acc * m >> s`` is ``acc * k / total``.

    ``k = numerator * 2**(24 - shift)``. ``total`` (a row's sum of exponentials) is 1..2**24-1; a
    total of 0 counts as 1. ``numerator`` is 2**15..2**16-1, ``shift`` 23..63. The multiplier is
    ``floor(numerator * 2**24 / (total << n))`` with n the leading zeros of total in 24 bits, the
    result's shift is ``shift - n``: one restoring division, one bit per cycle.
    """
    total = np.maximum(np.asarray(total, np.int64), 1)
    n = _leading_zeros(total, 24)
    return (np.int64(numerator) << 24) // (total << n), np.int64(shift) - n


def isqrt(x: ArrayLike) -> IntArray:
    """Return the exact floor of the square root, 0 <= x < 2**56."""
    x = np.asarray(x, np.int64)
    root = np.sqrt(x.astype(np.float64)).astype(np.int64)
    root -= root * root > x
    root += (root + 1) * (root + 1) <= x
    return root


def norm_statistics(q: ArrayLike, channels: int, epsilon: int) -> tuple[IntArray, ...]:
    """Return ``(S, m, s)`` of a layer norm over the last axis of int16 ``q``.

    Exact integer form: ``S = sum(q)``, ``v = C * sum(q**2) - S**2 + epsilon``, ``root = isqrt(v)``
    (a root of 0 counts as 1), ``m = floor(2**43 / (root << n))`` with n the leading zeros of root
    in 28 bits (17 bits), ``s = 29 - n``. Padding channels hold zeros and so do not count. C is
    1..4095, so v is below 2**56; epsilon, in units of v, is 0..2**32-1.
    """
    q = np.asarray(q, np.int64)
    total = q.sum(-1)
    v = channels * (q * q).sum(-1) - total * total + epsilon
    root = np.maximum(isqrt(v), 1)
    n = _leading_zeros(root, 28)
    return total, (np.int64(1) << 43) // (root << n), 29 - n


def layer_norm(
    q: ArrayLike,
    channels: int,
    epsilon: int,
    gamma: ArrayLike,
    beta: ArrayLike,
    shift: ArrayLike,
) -> IntArray:
    """Return the int16 layer norm of int16 ``q`` over its last axis.

    ``y = C * q - S`` (exact); ``z = y / sqrt(v)`` with 14 fraction bits, rounded, saturated to 22
    bits; result ``(z * gamma + beta) / 2**shift``, rounded, saturated to 16. gamma int16, beta
    int32 and shift 0..63 are per channel.
    """
    q = np.asarray(q, np.int64)
    total, multiplier, right = (a[..., None] for a in norm_statistics(q, channels, epsilon))
    y = channels * q - total
    z = saturate(round_shift(y * multiplier, right), 22)
    t = z * np.asarray(gamma, np.int64) + np.asarray(beta, np.int64)
    return saturate(round_shift(t, shift), 16)


def elementwise_add(
    a: ArrayLike, b: ArrayLike, a_multiplier: int, b_multiplier: int, shift: int
) -> IntArray:
    """Return int16 ``(a * a_multiplier + b * b_multiplier) / 2**shift``; all int16."""
    a, b = np.asarray(a, np.int64), np.asarray(b, np.int64)
    return saturate(round_shift(a * a_multiplier + b * b_multiplier, shift), 16)


def elementwise_multiply(a: ArrayLike, b: ArrayLike, multiplier: int, shift: int) -> IntArray:
    """Return int16 ``a * b * multiplier / 2**shift``; all int16."""
    a, b = np.asarray(a, np.int64), np.asarray(b, np.int64)
    return saturate(round_shift(a * b * multiplier, shift), 16)
