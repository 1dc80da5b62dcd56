"""The float graph to the integer graph: formats of tensors, integer parameters of ops.

Every float tensor gets an int8 form, an int16 form or both, as its readers need. A scale follows
from the absolute maximum over the calibration inputs. Int8 tensors that only linear layers read
have power-of-two factors between channels (``channel_shift``), which the columns of those layers'
weights take up. The int16 forms that a residual connects differ by powers of two.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from twillcore.compiler.calibrate import ALONE, BEFORE, Calibration, Range
from twillcore.compiler.errors import CompileError
from twillcore.compiler.float_graph import (
    FloatAdd,
    FloatAttention,
    FloatGraph,
    FloatLayerNorm,
    FloatLinear,
    FloatMap,
    FloatMatMul,
    FloatMultiply,
    FloatOp,
    Floats,
    FloatSoftmax,
)
from twillcore.compiler.graph import (
    Attention,
    Elementwise,
    Graph,
    Ints,
    LayerNorm,
    Linear,
    Map,
    MatMul,
    Op,
    Softmax,
    Tensor,
)
from twillcore.compiler.scales import (
    BIAS_LIMIT,
    HEADROOM,
    OCTAVES,
    SPAN,
    TINY,
    Int8Scale,
    common_multipliers,
    lane_numerator,
    make_table,
    multipliers,
    plain_scale,
    positive_multiplier,
    quantise_weight,
    smooth_scale,
    table_input_scale,
)
from twillcore.compiler.sparsify import beats_per_block
from twillcore.config import Config
from twillcore.isa import ElementwiseOp, Function
from twillcore.numerics import INT8_MAX, INT16_MAX, NORM_FRACTION_BITS

EPSILON_LIMIT = (1 << 32) - 1
RESIDUAL_SHIFTS = range(-8, 16)
SMALLEST_LOGIT_FACTOR = 2.0**-13  # below it, the bias of a masked key would not saturate the logit


def quantize(graph: FloatGraph, calibration: Calibration, config: Config) -> Graph:
    """Return the integer graph.

    Raises
    ------
    CompileError
        If a tensor has no range in ``calibration``.
    """
    return _Quantizer(graph, calibration, config).run()


def wide_name(name: str) -> str:
    """Return the name of the int16 form of a tensor."""
    return name + ".wide"


@dataclass
class _Quantizer:
    source: FloatGraph
    calibration: Calibration
    config: Config
    tensors: dict[str, Tensor] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    masks: dict[str, str] = field(default_factory=dict)  # mask input: mask of the float graph

    def run(self) -> Graph:
        self.producers = {op.out: op for op in self.source.ops}
        self.need8, self.need16 = self._needs()
        for name in self.source.inputs:
            self._input(name)
        for op in self.source.ops:
            _RULES[type(op)](self, op)
        outputs = tuple(dict.fromkeys(self._form(name, 16) for name, _, _ in self.source.outputs))
        inputs = tuple(
            form
            for name in self.source.inputs
            for form in (name, wide_name(name))
            if form in self.tensors
        )
        return Graph(
            self.config, self.tensors, tuple(self.ops), inputs, outputs, tuple(self.masks),
            {"masks": dict(self.masks)},
        )  # fmt: skip

    # Which forms a tensor has

    def _needs(self) -> tuple[set[str], set[str]]:
        need8, need16, either = set(), set(), set()
        for op in self.source.ops:
            match op:
                case FloatLinear():
                    need8.add(op.x)
                    if op.residual is not None:
                        need16.add(op.residual)
                case FloatMap() | FloatSoftmax():
                    need8.add(op.x)
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
            narrow_only = isinstance(self.producers.get(name), FloatAttention | FloatSoftmax)
            (need8 if narrow_only else need16).add(name)
        return need8, need16

    def _form(self, name: str, bits: int) -> str:
        """Return the form of a tensor that has ``bits``, or else the one there is."""
        if bits == 16 and wide_name(name) in self.tensors:
            return wide_name(name)
        return name if name in self.tensors else wide_name(name)

    def _declare(self, name: str, bits: int, scale: float, shift: Ints | None = None) -> str:
        tensor = self.source.tensors[name]
        form = name if bits == 8 else wide_name(name)
        if shift is not None and not shift.any():
            shift = None
        self.tensors[form] = Tensor(form, *tensor.shape, bits, float(scale), shift)
        return form

    def _declare8(self, name: str, scale: Int8Scale) -> str:
        return self._declare(name, 8, scale.scale, scale.shift)

    def range(self, name: str) -> Range:
        """Return what calibration saw."""
        try:
            return self.calibration[name]
        except KeyError:
            raise CompileError(f"no calibration of {name}") from None

    def _input(self, name: str) -> None:
        if name in self.need16:
            self._declare(name, 16, self._scale16(name, self.range(name).peak))
        if name in self.need8:
            self._declare8(name, self._scale8(name, SPAN))

    # Scales

    def _scale8(self, name: str, span: int) -> Int8Scale:
        """Choose the int8 format of a tensor."""
        weights: list[Floats] = []
        for op in self.source.ops:
            match op:
                case FloatLinear() if op.x == name:
                    weights.append(op.weight)
                case FloatMap() if op.x == name:
                    return plain_scale(self.range(name))
                case FloatMatMul() if name in (op.a, op.b):
                    return plain_scale(self.range(name))
                case FloatSoftmax() if op.x == name:
                    return plain_scale(self.range(name))
                case FloatAttention() if name in (op.q, op.k, op.v):
                    return plain_scale(self.range(name))
                case FloatAdd() | FloatMultiply() if name in (op.a, op.b) and not self._wide(name):
                    return plain_scale(self.range(name))
        if not weights:
            return plain_scale(self.range(name))
        return smooth_scale(self.range(name), weights, span)

    def _wide(self, name: str) -> bool:
        return name in self.need16

    def _scale16(self, name: str, peak: float) -> float:
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

    def _related(self, scale: float, finest: float) -> tuple[float, int]:
        """Return the finest ``scale * 2**j`` not below ``finest``, and j as residual shift."""
        j = math.ceil(math.log2(finest / scale) - 1e-9)
        j = min(max(j, RESIDUAL_SHIFTS[0]), RESIDUAL_SHIFTS[-1])
        return scale * 2.0**j, j

    # Ops

    def linear(self, op: FloatLinear) -> None:
        x = self.tensors[op.x]
        x_scale = Int8Scale(x.scale, _shift(x))
        out, scale, tail = self._drain(op)
        quantised = quantise_weight(op.weight, op.bias, x_scale, scale * INT16_MAX)
        multiplier, shift = multipliers(quantised.unit / scale)
        beats = beats_per_block(quantised.weight, self.config.block)
        self.ops.append(
            Linear(op.name, op.x, out, quantised.weight, beats, quantised.bias, multiplier, shift,
                   **tail)
        )  # fmt: skip
        self._other_form(op, out)

    def map(self, op: FloatMap) -> None:
        x = self.tensors[op.x]
        out, scale, tail = self._drain(op)
        factor = op.factor.astype(np.float64) * x.scale * 2.0 ** _shift(x)
        smallest = np.maximum(np.abs(op.offset) / BIAS_LIMIT, scale * 2.0**-40)
        factor = np.where(np.abs(factor) < smallest, smallest, factor)
        bias = np.rint(op.offset / factor).astype(np.int64)
        multiplier, shift = multipliers(factor / scale)
        self.ops.append(Map(op.name, op.x, out, bias, multiplier, shift, **tail))
        self._other_form(op, out)

    def _drain(self, op: FloatLinear | FloatMap) -> tuple[str, float, dict]:
        """Choose the output format of a drain.

        Returns the output, the real value of one unit of the scaled accumulator, and the remaining
        fields of the op.
        """
        residual = getattr(op, "residual", None)
        after = self.range(op.out)
        wide = op.out in self.need16
        narrow_shift = np.zeros(len(after.low), np.int64)
        if wide:
            out8, scale = None, self._scale16(op.out, self._peak(op))
        else:
            out8 = self._scale8(op.out, SPAN)
            spare = SPAN - int(out8.shift.max(initial=0))
            narrow_shift = out8.shift + spare
            scale = out8.scale / 2.0**spare
        tail: dict = {"function": Function.NONE}
        before = scale
        if op.function is not None and op.function.name == "relu":
            tail["function"] = Function.RELU
        elif op.function is not None:
            before = table_input_scale(op.function, self.range(op.out + BEFORE))
        if residual is not None:
            wide_residual = self.tensors[self._form(residual, 16)]
            if op.function is None or op.function.name == "relu":
                finest = scale if wide else max(scale, self._peak(op) / INT16_MAX)
                before, j = self._related(wide_residual.scale, finest)
                if not wide:  # the residual's scale decides, the int8 format follows
                    spare = max(0, math.ceil(math.log2(after.peak / INT8_MAX / before + TINY)))
                    narrow_shift = np.full_like(narrow_shift, min(spare, 15))
                    out8 = Int8Scale(before * 2.0**spare, np.zeros_like(narrow_shift))
                scale = before
            else:
                before, j = self._related(wide_residual.scale, before)
            tail |= {"residual": wide_residual.name, "residual_shift": j}
        if op.function is not None and op.function.name != "relu":
            tail["function"] = Function.TABLE
            tail["table"] = make_table(op.function, before, scale).entries
        out = self._declare(op.out, 16, scale) if wide else self._declare8(op.out, out8)
        return out, before, {"narrow_shift": narrow_shift, **tail}

    def _peak(self, op: FloatLinear | FloatMap) -> float:
        """Largest value on the way through a drain."""
        peak = self.range(op.out).peak
        if getattr(op, "residual", None) is not None and (
            op.function is None or op.function.name == "relu"
        ):
            peak = max(peak, self.range(op.out + ALONE).peak, self.range(op.residual).peak)
        return peak

    def _other_form(self, op: FloatOp, out: str) -> None:
        """Convert a result to the form that its op did not write."""
        name = op.out
        tensor = self.tensors[out]
        if tensor.bits == 16 and name in self.need8:
            scale = plain_scale(self.range(name)).scale
            form = self._declare(name, 8, scale)
            self._convert(op.name, out, form, tensor.scale / scale * 256, 8)
        elif tensor.bits == 8 and name in self.need16:
            scale = self._scale16(name, self.range(name).peak)
            form = self._declare(name, 16, scale)
            self._convert(op.name, out, form, tensor.scale / scale, 0)

    def _convert(self, name: str, x: str, out: str, factor: float, narrow_shift: int) -> None:
        multiplier, shift = positive_multiplier(factor)
        self.ops.append(
            Elementwise(name, ElementwiseOp.ADD, x, x, out, multiplier, 0, shift, narrow_shift)
        )

    def layer_norm(self, op: FloatLayerNorm) -> None:
        x = self.tensors[self._form(op.x, 16)]
        values, channels = self.range(op.out), x.channels
        wide, narrow = op.out in self.need16, op.out in self.need8
        out = wide_out = None
        narrow_shift = np.zeros(channels, np.int64)
        scale = values.peak * HEADROOM / INT16_MAX
        if narrow:
            span = SPAN - int(wide)  # one bit of headroom for the residual stream
            out8 = self._scale8(op.out, span)
            spare = span - int(out8.shift.max(initial=0))
            narrow_shift = out8.shift + spare
            scale = out8.scale / 2.0**spare
            out = self._declare8(op.out, out8)
        scale = max(scale, TINY)
        if wide:
            wide_out = self._declare(op.out, 16, scale)
        gamma, beta, shift = _norm_parameters(op.gamma / scale, op.beta / scale)
        epsilon = min(round(op.epsilon * (channels / x.scale) ** 2), EPSILON_LIMIT)
        self.ops.append(
            LayerNorm(op.name, x.name, out, wide_out, epsilon, gamma, beta, shift, narrow_shift)
        )

    def matmul(self, op: FloatMatMul) -> None:
        a, b = self.tensors[op.a], self.tensors[op.b]
        wide = op.out in self.need16
        peak = self.range(op.out).peak
        channels = self.source.tensors[op.out].channels
        narrow_shift = np.zeros(channels, np.int64)
        if wide:
            scale = self._scale16(op.out, peak)
            out = self._declare(op.out, 16, scale)
        else:
            out8 = self._scale8(op.out, SPAN)
            spare = SPAN - int(out8.shift.max(initial=0))
            narrow_shift = out8.shift + spare
            scale = out8.scale / 2.0**spare
            out = self._declare8(op.out, out8)
        multiplier, shift = positive_multiplier(abs(op.scale) * a.scale * b.scale / scale)
        multiplier = -multiplier if op.scale < 0 else multiplier
        self.ops.append(
            MatMul(op.name, op.a, op.b, out, op.transpose_b, multiplier, shift, narrow_shift)
        )
        self._other_form(op, out)

    def attention(self, op: FloatAttention) -> None:
        q, k, v = (self.tensors[name] for name in (op.q, op.k, op.v))
        factor = q.scale * k.scale * op.scale * OCTAVES
        multiplier, shift = positive_multiplier(max(factor, SMALLEST_LOGIT_FACTOR))
        out8 = self._scale8(op.out, SPAN)
        spare = SPAN - int(out8.shift.max(initial=0))
        out = self._declare8(op.out, out8)
        numerator, lane_shift = lane_numerator(v.scale / (out8.scale / 2.0**spare))
        mask = None if op.mask is None else self._mask(op.mask, multiplier, shift)
        self.ops.append(
            Attention(
                op.name, q.name, k.name, v.name, out, op.heads, op.head_channels,
                multiplier, shift, numerator, lane_shift, out8.shift + spare, mask,
            )
        )  # fmt: skip
        self._other_form(op, out)

    def _mask(self, mask: str, multiplier: int, shift: int) -> str:
        """Return the mask input with the parameters of a logit's drain; one for every pair."""
        name = f"{mask}.{multiplier}.{shift}"
        source = self.source.masks[mask]
        self.tensors[name] = Tensor(name, source.batch, 1, source.keys, 1, 1.0)
        self.masks[name] = mask
        return name

    def softmax(self, op: FloatSoftmax) -> None:
        x = self.tensors[op.x]
        scale = max(self.range(op.out).peak, 2.0**-15) / INT8_MAX
        multiplier, shift = positive_multiplier(
            max(x.scale * op.scale * OCTAVES, SMALLEST_LOGIT_FACTOR)
        )
        numerator, lane_shift = lane_numerator(1 / scale)
        out = self._declare(op.out, 8, scale)
        self.ops.append(Softmax(op.name, x.name, out, multiplier, shift, numerator, lane_shift))
        self._other_form(op, out)

    def add(self, op: FloatAdd) -> None:
        a, b = (self.tensors[self._form(name, 16)] for name in (op.a, op.b))
        out, scale, narrow_shift = self._vector_output(op)
        a_multiplier, b_multiplier, shift = common_multipliers(
            a.scale * op.a_scale / scale, b.scale * op.b_scale / scale
        )
        self.ops.append(
            Elementwise(op.name, ElementwiseOp.ADD, a.name, b.name, out, a_multiplier,
                        b_multiplier, shift, narrow_shift)
        )  # fmt: skip
        self._other_form(op, out)

    def multiply(self, op: FloatMultiply) -> None:
        a, b = (self.tensors[self._form(name, 16)] for name in (op.a, op.b))
        out, scale, narrow_shift = self._vector_output(op)
        multiplier, _, shift = common_multipliers(a.scale * b.scale * op.scale / scale, 0.0)
        self.ops.append(
            Elementwise(op.name, ElementwiseOp.MULTIPLY, a.name, b.name, out, multiplier, 0,
                        shift, narrow_shift)
        )  # fmt: skip
        self._other_form(op, out)

    def _vector_output(self, op: FloatAdd | FloatMultiply) -> tuple[str, float, int]:
        """Declare the output of an elementwise op; return it, its int16 scale and narrow_shift."""
        values = self.range(op.out)
        if op.out in self.need16:
            scale = self._scale16(op.out, values.peak)
            return self._declare(op.out, 16, scale), scale, 0
        out8 = plain_scale(values)
        return self._declare8(op.out, out8), out8.scale / 2.0**SPAN, SPAN


def _shift(tensor: Tensor) -> Ints:
    if tensor.channel_shift is None:
        return np.zeros(tensor.channels, np.int64)
    return tensor.channel_shift


def _norm_parameters(gamma: Floats, beta: Floats) -> tuple[Ints, Ints, Ints]:
    """Return integer gamma, beta and shift; ``gamma`` and ``beta`` are in units of the output."""
    gamma, beta = gamma.astype(np.float64), beta.astype(np.float64)
    largest_gamma = np.maximum(np.abs(gamma), 2.0**-20)
    largest_beta = np.maximum(np.abs(beta), 2.0**-20)
    by_gamma = np.floor(np.log2(INT16_MAX / largest_gamma)) + NORM_FRACTION_BITS
    by_beta = np.floor(np.log2(BIAS_LIMIT / largest_beta))
    shift = np.clip(np.minimum(by_gamma, by_beta), 0, 40).astype(np.int64)
    rounded = np.rint(gamma * 2.0 ** (shift - NORM_FRACTION_BITS))
    return (
        np.clip(rounded, -INT16_MAX, INT16_MAX).astype(np.int64),
        np.clip(np.rint(beta * 2.0**shift), -BIAS_LIMIT, BIAS_LIMIT).astype(np.int64),
        shift,
    )


_RULES = {
    FloatLinear: _Quantizer.linear,
    FloatMap: _Quantizer.map,
    FloatMatMul: _Quantizer.matmul,
    FloatAttention: _Quantizer.attention,
    FloatSoftmax: _Quantizer.softmax,
    FloatLayerNorm: _Quantizer.layer_norm,
    FloatAdd: _Quantizer.add,
    FloatMultiply: _Quantizer.multiply,
}
