"""Rounding of real numbers to the formats of the chip: weights, multipliers, scales, tables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from twillcore.compiler.calibrate import Range, apply
from twillcore.compiler.float_graph import Floats, Function
from twillcore.compiler.graph import Ints
from twillcore.numerics import (
    EXP_STEPS_PER_OCTAVE,
    INT8_MAX,
    INT16_MAX,
    MAX_SHIFT,
    TABLE_ENTRIES,
    TABLE_FRACTION_BITS,
    TABLE_INPUT_BITS,
)

OCTAVES = EXP_STEPS_PER_OCTAVE * math.log2(math.e)  # logit units per unit of a softmax's input
HEADROOM = 2.0  # of int16 tensors above the calibrated range
SPAN = 8  # bits of int16 above int8: factors between channels are 1..2**SPAN
BIAS_LIMIT = float(1 << 30)
TINY = 1e-30
RELATED_STEPS = 16  # per octave: common factors of related scales that are tried
STEP_RANGE, STEP_TRIALS = (0.3, 1.0), 29  # shares of the largest weight that few bits reach
TRIAL_ROWS, TRIAL_OUTPUTS, TRIAL_VALUES = 128, 256, 1 << 16  # on which candidates are compared


def positive_multiplier(factor: float) -> tuple[int, int]:
    """Return ``(multiplier, shift)`` with ``multiplier / 2**shift`` nearest to ``factor`` >= 0.

    The multiplier has 15 bits unless the shift would exceed 63. Factors from 2**15 on saturate.
    """
    if factor <= 0:
        return 0, 0
    shift = 14 - math.frexp(factor)[1] + 1
    shift = min(max(shift, 0), MAX_SHIFT)
    multiplier = round(math.ldexp(factor, shift))
    if multiplier > INT16_MAX and shift > 0:
        shift -= 1
        multiplier = round(math.ldexp(factor, shift))
    return min(multiplier, INT16_MAX), shift


def multipliers(factors: Sequence[float] | NDArray) -> tuple[Ints, Ints]:
    """Return multipliers and shifts for real factors of either sign, one per channel."""
    pairs = [positive_multiplier(abs(float(f))) for f in factors]
    signs = np.where(np.asarray(factors) < 0, -1, 1)
    return np.array([m for m, _ in pairs], np.int64) * signs, np.array([s for _, s in pairs])


def common_multipliers(a: float, b: float) -> tuple[int, int, int]:
    """Return ``(multiplier of a, multiplier of b, shift)``: factors with one shift."""
    _, shift = positive_multiplier(max(abs(a), abs(b)))
    limit = lambda f: max(-INT16_MAX, min(INT16_MAX, round(math.ldexp(f, shift))))  # noqa: E731
    return limit(a), limit(b), shift


def lane_numerator(factor: float) -> tuple[int, int]:
    """Return ``(numerator, lane_shift)``: ``numerator * 2**(24 - lane_shift)`` is ``factor``."""
    factor = min(max(factor, 2.0**-24), 2.0**16)
    exponent = math.frexp(factor)[1] - 1
    numerator = round(math.ldexp(factor, 15 - exponent))
    if numerator == 1 << 16:
        numerator, exponent = 1 << 15, exponent + 1
    lane_shift = 39 - exponent
    if lane_shift < 23:  # factor 2**16 and above
        return (1 << 16) - 1, 23
    return numerator, lane_shift


@dataclass(frozen=True)
class Int8Scale:
    """Format of an int8 tensor: ``real = integer * scale * 2**shift[c]``; shift 0..SPAN."""

    scale: float
    shift: Ints

    def quantise(self, x: Floats) -> Floats:
        """Return ``x`` (.., channels) rounded to integers, as floats."""
        unit = (self.scale * 2.0**self.shift).astype(np.float32)
        return np.clip(np.rint(x / unit), -INT8_MAX, INT8_MAX)


def plain_scale(values: Range) -> Int8Scale:
    """Return the format of one scale for all channels, from the absolute maximum."""
    return Int8Scale(max(values.peak, TINY) / INT8_MAX, np.zeros(len(values.low), np.int64))


def related_scales(
    tensors: Sequence[tuple[float, Floats]], limit: float | None = None
) -> list[float]:
    """Return scales of int8 tensors that differ by powers of two, given (peak, sample) of each.

    The common factor, and for every tensor whether to clip its upper half, are chosen so that the
    sum of the relative errors of the samples is smallest. With a ``limit``, one of the scales that
    int8 can have saturates there.
    """
    best: tuple[float, list[float]] | None = None
    factors = 2.0 ** (np.arange(RELATED_STEPS) / RELATED_STEPS)
    for mantissa in factors if limit is None else (limit / INT8_MAX,):
        scales, total = [], 0.0
        for peak, sample in tensors:
            values = sample.reshape(-1)
            values = values[:: -(-len(values) // TRIAL_VALUES)].astype(np.float64)
            needed = max(peak, TINY) / INT8_MAX
            whole = mantissa * 2.0 ** math.ceil(math.log2(needed / mantissa) - 1e-9)
            errors = {
                scale: float(
                    np.square(
                        np.clip(np.rint(values / scale), -INT8_MAX, INT8_MAX) * scale - values
                    ).sum()
                )
                for scale in (whole, whole / 2)
            }
            chosen = min(errors, key=errors.__getitem__)
            scales.append(chosen)
            total += errors[chosen] / max(float(np.square(values).sum()), TINY)
        if best is None or total < best[0]:
            best = total, scales
    return best[1]


def smooth_scale(
    values: Range, weights: Sequence[Floats], span: int, limit: float | None = None
) -> Int8Scale:
    """Return a format with power-of-two factors between channels, up to ``2**span``.

    ``weights`` (N, K) are those of the linear layers that read the tensor; columns of their weights
    take up the factors. Of several degrees of smoothing the one with the smallest measured error of
    the layers' results is taken. With a ``limit``, int8 saturates there: no channel can hold more.
    """
    magnitude = np.maximum(values.magnitude.astype(np.float64), 0)
    stacked = np.concatenate(weights)
    columns = np.abs(stacked).max(0).astype(np.float64)
    stacked = stacked[:: -(-len(stacked) // TRIAL_OUTPUTS)]
    sample = values.sample[:TRIAL_ROWS]
    wanted = sample @ stacked.T
    best: tuple[float, Int8Scale] | None = None
    for degree in (0.0, 0.5, 0.75, 1.0):
        for offset in (0.0, 0.5) if degree else (0.0,):
            shift = _shifts(magnitude, columns, degree, offset, span)
            scale = float((magnitude / 2.0**shift).max(initial=0.0)) / INT8_MAX
            candidate = _limited(Int8Scale(max(scale, TINY), shift), values.peak, limit)
            error = _error(candidate, sample, stacked, wanted)
            if best is None or error < best[0]:
                best = error, candidate
    return best[1]


def _limited(scale: Int8Scale, peak: float, limit: float | None) -> Int8Scale:
    """Return a format that holds as much, and whose coarsest channel saturates at ``limit``."""
    if limit is None or peak <= limit / 2:  # then no factor reaches it
        return scale
    top = limit / INT8_MAX
    span = max(0, math.floor(math.log2(top / scale.scale) + 1e-9))
    return Int8Scale(top / 2.0**span, np.minimum(scale.shift, span))


def _shifts(magnitude: NDArray, columns: NDArray, degree: float, offset: float, span: int) -> Ints:
    alive = (magnitude > 0) & (columns > 0)
    if not alive.any():
        return np.zeros(len(magnitude), np.int64)
    ideal = np.full(len(magnitude), np.nan)
    ideal[alive] = np.log2(magnitude[alive]) * degree - np.log2(columns[alive]) * (1 - degree)
    if degree == 0:
        ideal[alive] = 0
    top = np.nanmax(ideal)
    ideal = np.where(alive, ideal, top)  # of no consequence; but it must not clip
    shift = np.rint(ideal - top + offset).astype(np.int64) + span
    return np.clip(shift - shift.max() + span, 0, span)


def _error(scale: Int8Scale, sample: Floats, weight: Floats, wanted: Floats) -> float:
    unit = (scale.scale * 2.0**scale.shift).astype(np.float32)
    scaled = weight * (2.0**scale.shift).astype(np.float32)
    step = np.maximum(np.abs(scaled).max(1, keepdims=True) / INT8_MAX, np.float32(TINY))
    rounded = np.rint(scaled / step) * step / (2.0**scale.shift).astype(np.float32)
    return float(np.square(scale.quantise(sample) * unit @ rounded.T - wanted).sum())


@dataclass(frozen=True)
class QuantisedWeight:
    """Int8 weight, int32 bias and the real value of one unit of the accumulator, per output."""

    weight: NDArray[np.int8]
    bias: Ints
    unit: NDArray[np.float64]


def quantise_weight(
    weight: Floats, bias: Floats, x: Int8Scale, coarsest: float, bits: int = 8
) -> QuantisedWeight:
    """Round the weight (N, K) and bias (N,) of a linear layer that reads format ``x``.

    Symmetric per output, of one bit -1 and 0 (with a unit of either sign); weights that lie on a
    coarser grid already (fewer bits) keep it exactly. A unit of the accumulator is at most
    ``coarsest``, and large enough for the bias to fit.
    """
    scaled = weight.astype(np.float64) * 2.0**x.shift
    low, high = (-1, 0) if bits == 1 else (1 - (1 << bits - 1), (1 << bits - 1) - 1)
    peak = np.abs(scaled).max(1, initial=0.0)
    levels = _levels(scaled, peak, max(high, 1))
    step = np.where(peak > 0, peak / np.abs(levels), 0.0)
    if bits < 8:
        exact = (levels > 0) & (bits > 1)
        few = np.where(peak > 0, _step_of_least_error(scaled, peak, low, high), 0.0)
        step = np.where(exact, step, few)
    sign = np.where(step < 0, -1.0, 1.0)
    unit = np.abs(step) * x.scale
    unit = np.where(unit > 0, unit, coarsest / 2**23)  # no weights: only the bias counts
    unit = np.maximum(np.minimum(unit, coarsest), np.abs(bias.astype(np.float64)) / BIAS_LIMIT)
    unit = np.maximum(unit, TINY) * sign
    rounded = np.clip(np.rint(scaled * (x.scale / unit)[:, None]), low, high)
    return QuantisedWeight(
        rounded.astype(np.int8), np.rint(bias / unit).astype(np.int64), unit.astype(np.float64)
    )


def _step_of_least_error(scaled: NDArray, peak: NDArray, low: int, high: int) -> NDArray:
    """Return, per output, the value of integer 1 with the least squared error of the weights."""
    best, least = peak / max(high, 1), np.full(len(scaled), np.inf)
    for part in np.linspace(*STEP_RANGE, STEP_TRIALS):
        for sign in (1, -1) if low == -1 and high == 0 else (1,):
            step = np.maximum(peak, TINY) * part * sign / max(high, 1)
            integers = np.clip(np.rint(scaled / step[:, None]), low, high)
            error = np.square(integers * step[:, None] - scaled).sum(1)
            best, least = np.where(error < least, step, best), np.minimum(error, least)
    return best


def _levels(scaled: NDArray, peak: NDArray, most: int) -> NDArray:
    """Return, per output, the integer for the largest weight: ``most``, or less on a coarser grid.

    It is negative where the weights lie on no such grid.
    """
    levels = np.full(len(scaled), -float(most))
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.abs(scaled) / peak[:, None]
    pending = peak > 0
    probe = relative[:, :48]
    for n in range(1, most + (most < INT8_MAX)):
        product = probe * n
        fits = pending & (np.abs(product - np.rint(product)).max(1, initial=0.0) < 1e-4)
        for row in np.flatnonzero(fits):
            product = relative[row] * n
            if np.abs(product - np.rint(product)).max(initial=0.0) < 1e-4:
                levels[row] = n * (most // n)
                pending[row] = False
    return levels


@dataclass(frozen=True)
class Table:
    """A function table: real value of one unit of its input and of its result, and 256 int16."""

    input_scale: float
    output_scale: float
    entries: Ints


TABLE_REACH = (1 << (TABLE_INPUT_BITS - 1)) - 1
_POSITIONS = (np.arange(TABLE_ENTRIES) - TABLE_ENTRIES // 2) << TABLE_FRACTION_BITS


def table_input_scale(function: Function, before: Range) -> float:
    """Return the unit of a table's input with the smallest error over the calibrated range.

    The last entry stands for ``x = 2032`` units; beyond it the function is constant.
    """
    sample = before.sample.reshape(-1)
    sample = sample[:: -(-len(sample) // TRIAL_VALUES)]
    x = np.concatenate([sample, before.low, before.high]).astype(np.float64)
    reach = max(before.peak, TINY)
    wanted = _values(function, x)
    best: tuple[float, float] | None = None
    for part in (1.1, 1.0, 0.8, 0.6, 0.45, 0.3):
        scale = max(reach * part, 1 / 16) / _POSITIONS[-1]
        got = np.interp(x, _POSITIONS * scale, _values(function, _POSITIONS * scale))
        quadratic = float(np.square(got - wanted).mean())
        if best is None or quadratic < best[0]:
            best = quadratic, scale
    return best[1]


def make_table(function: Function, input_scale: float, output_scale: float) -> Table:
    """Return the table of ``function`` between given units: exact at the entries."""
    values = _values(function, _POSITIONS * input_scale)
    entries = np.clip(np.rint(values / output_scale), -INT16_MAX, INT16_MAX)
    return Table(input_scale, output_scale, entries.astype(np.int64))


def _values(function: Function, x: NDArray) -> NDArray:
    return apply(function, torch.from_numpy(np.asarray(x, np.float64))).numpy()
