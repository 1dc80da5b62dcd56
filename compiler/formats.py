"""The formats of tensors: which have an int8 form, an int16 form or both, and their scales.

A scale follows from the absolute maximum over the calibration inputs. Int8 tensors that only linear
layers read have power-of-two factors between channels (``channel_shift``), which the columns of
those layers' weights take up. The forms that a residual connects differ by powers of two: int16 for
rows of tokens, int8 for images, and without a wide memory for all.
"""

import math

import numpy as np

from twillcore.compiler.calibrate import Calibration, Range
from twillcore.compiler.errors import CompileError
from twillcore.compiler.float_graph import (
    FloatAdd,
    FloatAttention,
    FloatConcat,
    FloatConv,
    FloatGraph,
    FloatLayerNorm,
    FloatLinear,
    FloatMap,
    FloatMatMul,
    FloatMaxPool,
    FloatMultiply,
    FloatOp,
    Floats,
    FloatSoftmax,
)
from twillcore.compiler.float_graph import Function as FloatFunction
from twillcore.compiler.scales import (
    HEADROOM,
    TINY,
    TRIAL_OUTPUTS,
    Int8Scale,
    plain_scale,
    related_scales,
    smooth_scale,
)
from twillcore.compiler.shares import LutShare, Shares
from twillcore.compiler.ties import Ties
from twillcore.config import Config
from twillcore.numerics import INT8_MAX, INT16_MAX

EPSILON_LIMIT = (1 << 32) - 1


class Formats:
    """Chooses the formats of a float graph's tensors.

    ``need8`` and ``need16`` are the tensors that need the one or the other form.
    """

    def __init__(
        self, source: FloatGraph, calibration: Calibration, config: Config, shares: Shares
    ) -> None:
        self.source, self.calibration, self.config = source, calibration, config
        self._shares = shares
        self._producers = {op.out: op for op in source.ops}
        self._scales: dict[str, Int8Scale] = {}
        self.need8, self.need16 = self._needs()
        self._ties = Ties(source, {op.out for op in source.ops if self.is_tied(op)})

    def _needs(self) -> tuple[set[str], set[str]]:
        need8, need16, either = set(), set(), set()
        for op in self.source.ops:
            match op:
                case FloatLinear() | FloatConv() | FloatMap():
                    need8.add(op.x)
                    if op.residual is not None:
                        (need8 if self.narrow_residual(op) else need16).add(op.residual)
                case FloatSoftmax() | FloatMaxPool():
                    need8.add(op.x)
                case FloatConcat():
                    need8 |= set(op.parts)
                case FloatMatMul():
                    need8 |= {op.a, op.b}
                case FloatAttention():
                    need8 |= {op.q, op.k, op.v}
                case FloatLayerNorm():
                    need16.add(op.x)
                case FloatAdd() | FloatMultiply():
                    either |= {op.a, op.b}
        either |= {name for name, _, _ in self.source.outputs}
        for name in either:
            narrow_only = isinstance(
                self._producers.get(name),
                FloatAttention | FloatSoftmax | FloatMaxPool | FloatConcat,
            )
            narrow_only |= not self.config.wide_depth or self._is_image(name)
            (need8 if narrow_only else need16).add(name)
        return need8, need16

    def _is_image(self, name: str) -> bool:
        """Whether a tensor has more than one pixel: such tensors are int8."""
        return self.source.tensors[name].grid not in (None, (1, 1))

    def narrow_residual(self, op: FloatLinear | FloatConv | FloatMap) -> bool:
        """Whether the residual of an op is int8: of images, and without wide memory."""
        return not self.config.wide_depth or self.source.tensors[op.out].grid is not None

    def is_tied(self, op: FloatOp) -> bool:
        """Whether an op adds an int8 residual so that its result has a related scale."""
        return (
            getattr(op, "residual", None) is not None
            and self.narrow_residual(op)
            and op.out not in self.need16
            and (op.function is None or op.function.name == "relu")
        )

    def range(self, name: str) -> Range:
        """Return what calibration saw."""
        try:
            return self.calibration[name]
        except KeyError:
            raise CompileError(f"no calibration of {name}") from None

    def share(self, op: FloatLinear | FloatConv) -> LutShare | None:
        """Return what the LUT core may compute of a layer; it does no groups."""
        if not self.config.lut_columns or getattr(op, "groups", 1) > 1:
            return None
        return self._shares.of(op.name)

    def scale8(self, name: str, span: int) -> Int8Scale:
        """Return the int8 format of a tensor; chooses it, and those of all that are tied to it.

        Factors between channels are up to ``2**span``.
        """
        if name not in self._scales:
            groups = self._ties.related(name)
            if len(groups) > 1:
                peaks = [max(self.range(n).peak for n in group) for group in groups]
                samples = [
                    np.concatenate([self.range(n).sample.reshape(-1) for n in group])
                    for group in groups
                ]
                limits = {self._limit(group) for group in groups} - {None}
                limit = limits.pop() if len(limits) == 1 else None
                scales = related_scales(list(zip(peaks, samples, strict=True)), limit)
            else:
                scales = [None]
            for group, scale in zip(groups, scales, strict=True):
                channels = {n: self.source.tensors[n].channels for n in group}
                if scale is None and len(group) > 1 and len(set(channels.values())) > 1:
                    scale = max(self.range(n).peak for n in group) / INT8_MAX
                if scale is None:
                    form = self._free_scale8(group, span)
                    self._scales |= dict.fromkeys(group, form)
                    continue
                for n in group:
                    zeros = np.zeros(channels[n], np.int64)
                    self._scales[n] = Int8Scale(max(scale, TINY), zeros)
        return self._scales[name]

    def _free_scale8(self, group: list[str], span: int) -> Int8Scale:
        """Choose the format of tensors with one scale, the first of which is pooled to others."""
        values = max((self.range(n) for n in group), key=lambda r: r.peak)
        weights: list[Floats] = []
        plain = any(n in self._ties.plain or self._converted(n) for n in group)
        # channels of a folded image are the same colours: few pixels say little about each
        plain |= any(n in self.source.inputs and self.source.inputs[n].channels for n in group)
        for op in self.source.ops:
            match op:
                case FloatLinear() | FloatConv() if op.x in group:
                    weights.append(_by_inputs(op))
                    share = self.share(op)
                    plain |= share is not None and share.bits < 8  # they would need more bits
                    plain |= op.residual in group and self.narrow_residual(op)
                case FloatLinear() | FloatConv() if op.residual in group:
                    plain |= self.narrow_residual(op)
                case FloatMap() if op.x in group or op.residual in group:
                    plain |= op.x in group or self.narrow_residual(op)
                case FloatMatMul():
                    plain |= op.a in group or op.b in group
                case FloatSoftmax():
                    plain |= op.x in group
                case FloatAttention():
                    plain |= any(n in group for n in (op.q, op.k, op.v))
                case FloatAdd() | FloatMultiply():
                    plain |= any(n in group and n not in self.need16 for n in (op.a, op.b))
        if plain or not weights:
            return plain_scale(values)
        return smooth_scale(values, weights, span, self._limit(group))

    def _limit(self, group: list[str]) -> float | None:
        """Return where a function clips one of the tensors, if it does."""
        clips = (clip_of(getattr(self._producers.get(n), "function", None)) for n in group)
        return next((clip[1] for clip in clips if clip), None)

    def _converted(self, name: str) -> bool:
        """Whether the int8 form of a tensor is made of its int16 form."""
        producer = self._producers.get(name)
        both = name in self.need8 and name in self.need16
        return both and producer is not None and not isinstance(producer, FloatLayerNorm)

    def scale16(self, name: str, peak: float) -> float:
        """Choose the scale of an int16 tensor that holds values up to ``peak``."""
        return max(peak * HEADROOM / INT16_MAX, self._coarse_enough(name), TINY)

    def _coarse_enough(self, name: str) -> float:
        """Return the finest scale with which epsilon fits in the layer norms that read a tensor."""
        channels = self.source.tensors[name].channels
        return max(
            (
                math.sqrt(op.epsilon) * channels / math.sqrt(EPSILON_LIMIT)
                for op in self.source.ops
                if isinstance(op, FloatLayerNorm) and op.x == name
            ),
            default=0.0,
        )


def _by_inputs(op: FloatLinear | FloatConv) -> Floats:
    """Return some rows of the weight of a layer as (rows, inputs): of a convolution, of all taps.

    A row has the weights of one output and tap, 0 for inputs of other groups.
    """
    if isinstance(op, FloatLinear):
        return op.weight
    inputs = op.weight.shape[3]
    rows = op.weight.reshape(-1, inputs)
    if op.groups == 1:
        return rows
    if op.depthwise:  # rows without any other input: one per input is enough
        tallest = np.abs(op.weight).reshape(op.groups, -1).max(1)
        return np.diag(tallest)
    taps = len(rows) // len(op.weight)
    group = np.arange(len(rows)) // taps // (len(op.weight) // op.groups)
    step = -(-len(rows) // (4 * TRIAL_OUTPUTS))
    spread = np.zeros((len(rows[::step]), op.groups * inputs), np.float32)
    columns = group[::step, None] * inputs + np.arange(inputs)
    np.put_along_axis(spread, columns, rows[::step], 1)
    return spread


def clip_of(function: FloatFunction | None) -> tuple[float, float] | None:
    """Return the bounds of a function that clips to (0, high) or (-high, high), else None."""
    if function is None or function.name not in ("relu6", "hardtanh"):
        return None
    low, high = (0.0, 6.0) if function.name == "relu6" else (*function.arguments, -1.0, 1.0)[:2]
    if function.name == "hardtanh" and len(function.arguments) == 1:
        low, high = function.arguments[0], 1.0
    return (low, high) if high > 0 and low in (0.0, -high) else None
