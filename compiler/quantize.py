"""The float graph to the integer graph: integer parameters of ops.

The formats of tensors are chosen in :mod:`twillcore.compiler.formats`.
"""

import math

import numpy as np

from twillcore.compiler.calibrate import ALONE, BEFORE, Calibration
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
from twillcore.compiler.formats import EPSILON_LIMIT, Formats, clip_of
from twillcore.compiler.graph import (
    Attention,
    Concat,
    Conv,
    Elementwise,
    Graph,
    Ints,
    LayerNorm,
    Linear,
    Map,
    MatMul,
    MaxPool,
    Op,
    Softmax,
    Tensor,
    both_directions,
)
from twillcore.compiler.scales import (
    BIAS_LIMIT,
    HEADROOM,
    OCTAVES,
    SPAN,
    TINY,
    Int8Scale,
    QuantisedWeight,
    common_multipliers,
    lane_numerator,
    make_table,
    multipliers,
    plain_scale,
    positive_multiplier,
    quantise_weight,
    table_input_scale,
)
from twillcore.compiler.shares import NO_SHARES, Shares
from twillcore.compiler.sparsify import beats_per_block, window_beats
from twillcore.compiler.split import LayerShape, split_channels
from twillcore.config import Config
from twillcore.isa import ElementwiseOp, Function
from twillcore.numerics import INT8_MAX, INT16_MAX, NORM_FRACTION_BITS

RESIDUAL_SHIFTS = range(-8, 16)
CLIP_TOLERANCE = 1.004  # half a step of int8: where saturation counts as the clip of a function
SMALLEST_LOGIT_FACTOR = 2.0**-13  # below it, the bias of a masked key would not saturate the logit


def quantize(
    graph: FloatGraph, calibration: Calibration, config: Config, shares: Shares = NO_SHARES
) -> Graph:
    """Return the integer graph; ``shares`` say what the LUT core computes.

    Raises
    ------
    CompileError
        If a tensor has no range in ``calibration``, functions need a table that the configuration
        has not (all of them in one message), or a layer cannot be divided as its share says.
    """
    formats = Formats(graph, calibration, config, shares)
    return _Quantizer(graph, formats, config).run()


def wide_name(name: str) -> str:
    """Return the name of the int16 form of a tensor."""
    return name + ".wide"


class _Quantizer:
    """Makes the ops of the integer graph, one of the float graph after the other."""

    def __init__(self, source: FloatGraph, formats: Formats, config: Config) -> None:
        self.source, self.formats, self.config = source, formats, config
        self.tensors: dict[str, Tensor] = {}
        self.ops: list[Op] = []
        self.masks: dict[str, str] = {}  # mask input: mask of the float graph
        self.tableless: list[str] = []  # functions that would need a table

    def run(self) -> Graph:
        for name in self.source.inputs:
            self._input(name)
        for op in self.source.ops:
            _RULES[type(op)](self, op)
        if self.tableless:
            raise CompileError(
                f"configuration {self.config.name!r} has no function table (function_table ="
                f" false): use ReLU instead of {'; '.join(self.tableless)}"
            )
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
        self.tensors[form] = Tensor(form, *tensor.shape, bits, float(scale), shift, tensor.grid)
        return form

    def _declare8(self, name: str, scale: Int8Scale) -> str:
        return self._declare(name, 8, scale.scale, scale.shift)

    def _input(self, name: str) -> None:
        if name in self.formats.need16:
            self._declare(name, 16, self.formats.scale16(name, self.formats.range(name).peak))
        if name in self.formats.need8:
            self._declare8(name, self.formats.scale8(name, SPAN))

    # Ops

    def linear(self, op: FloatLinear | FloatConv) -> None:
        out, scale, tail = self._drain(op)
        quantised, lut = self._weights(op, scale)
        multiplier, shift = multipliers(quantised.unit / scale)
        weight = quantised.weight.reshape(op.weight.shape)
        tail |= {"bias": quantised.bias, "multiplier": multiplier, "shift": shift}
        tail |= {"beats": self._beats(op, weight[: len(weight) - lut])}
        if (share := self.formats.share(op)) is not None:
            tail |= {"lut_channels": lut, "lut_bits": share.bits, "help": share.share is None}
        if isinstance(op, FloatConv):
            geometry = op.stride, op.padding, op.dilation, op.groups
            self.ops.append(Conv(op.name, op.x, out, weight, *geometry, **tail))
        else:
            self.ops.append(Linear(op.name, op.x, out, weight, **tail))
        self._other_form(op, out)

    def _weights(self, op: FloatLinear | FloatConv, scale: float) -> tuple[QuantisedWeight, int]:
        """Return the weights (N, K) of a layer, and how many outputs are the LUT core's."""
        x = self.tensors[op.x]
        rows = op.weight.reshape(len(op.weight), -1)
        factors = np.broadcast_to(_per_input(op, _shift(x)), op.weight.shape).reshape(rows.shape)

        def quantised(part: slice, bits: int = 8) -> QuantisedWeight:
            form = Int8Scale(x.scale, factors[part])
            return quantise_weight(rows[part], op.bias[part], form, scale * INT16_MAX, bits)

        whole = quantised(slice(None))
        share = self.formats.share(op)
        if share is None:
            return whole, 0
        tensor, taps = self.source.tensors[op.out], math.prod(op.weight.shape[1:-1])
        shape = LayerShape(
            rows=tensor.batch * tensor.rows,
            blocks=-(-op.weight.shape[-1] // self.config.block),
            channels=len(rows),
            beats=self._beats(op, whole.weight.reshape(op.weight.shape)),
            lut_bits=share.bits,
            taps=taps,
            stride=both_directions(getattr(op, "stride", 1))[1],
        )
        try:
            lut = split_channels(self.config, shape, share.share)
        except CompileError as error:
            raise CompileError(f"{op.name}: {error}") from None
        if not lut or share.bits == 8:
            return whole, lut
        here = len(rows) - lut
        few = quantised(slice(here, None), share.bits)
        parts = ((getattr(whole, f)[:here], getattr(few, f)) for f in ("weight", "bias", "unit"))
        return QuantisedWeight(*map(np.concatenate, parts)), lut

    def _beats(self, op: FloatLinear | FloatConv, weight: np.ndarray) -> int:
        if isinstance(op, FloatConv):
            return window_beats(weight, op.groups, self.config.block)
        return beats_per_block(weight, self.config.block)

    def max_pool(self, op: FloatMaxPool) -> None:
        out = self._declare8(op.out, self.formats.scale8(op.out, SPAN))
        self.ops.append(MaxPool(op.name, op.x, out, op.kernel, op.stride, op.padding, op.dilation))
        self._other_form(op, out)

    def concat(self, op: FloatConcat) -> None:
        out = self._declare8(op.out, self.formats.scale8(op.out, SPAN))
        self.ops.append(Concat(op.name, op.parts, out))
        self._other_form(op, out)

    def map(self, op: FloatMap) -> None:
        x = self.tensors[op.x]
        out, scale, tail = self._drain(op)
        factor = op.factor.astype(np.float64) * x.scale * 2.0 ** _shift(x)
        smallest = np.maximum(np.abs(op.offset) / BIAS_LIMIT, scale * 2.0**-40)
        factor = np.where(np.abs(factor) < smallest, smallest, factor)
        bias = np.rint(op.offset / factor).astype(np.int64)
        multiplier, shift = multipliers(factor / scale)
        tail |= {"bias": bias, "multiplier": multiplier, "shift": shift}
        self.ops.append(Map(op.name, op.x, out, **tail))
        self._other_form(op, out)

    def _drain(self, op: FloatLinear | FloatConv | FloatMap) -> tuple[str, float, dict]:
        """Choose the output format of a drain.

        Returns the output, the real value of one unit of the scaled accumulator, and the remaining
        fields of the op.
        """
        residual = op.residual
        after = self.formats.range(op.out)
        wide = op.out in self.formats.need16
        narrow_shift = np.zeros(len(after.low), np.int64)
        if wide:
            out8, scale = None, self.formats.scale16(op.out, self._peak(op))
        else:
            out8 = self.formats.scale8(op.out, SPAN)
            spare = SPAN - int(out8.shift.max(initial=0))
            narrow_shift = out8.shift + spare
            scale = out8.scale / 2.0**spare
        function = self._function(op, out8)
        tail: dict = {"function": function}
        before = scale
        if function == Function.TABLE:
            before = table_input_scale(op.function, self.formats.range(op.out + BEFORE))
        if residual is not None:
            bits = 8 if self.formats.narrow_residual(op) else 16
            wide_residual = self.tensors[self._form(residual, bits)]
            if function != Function.TABLE and self.formats.is_tied(op):
                whole = round(math.log2(out8.scale / wide_residual.scale))  # exactly
                finest = self._peak(op) / INT16_MAX
                j = math.ceil(math.log2(max(finest, TINY) / wide_residual.scale) - 1e-9)
                j = min(max(j, RESIDUAL_SHIFTS[0], whole - 15), whole, RESIDUAL_SHIFTS[-1])
                before = scale = wide_residual.scale * 2.0**j
                narrow_shift = np.full_like(narrow_shift, whole - j)
            elif function != Function.TABLE:
                finest = scale if wide else max(scale, self._peak(op) / INT16_MAX)
                before, j = _related(wide_residual.scale, finest)
                if not wide:  # the residual's scale decides, the int8 format follows
                    spare = max(0, math.ceil(math.log2(after.peak / INT8_MAX / before + TINY)))
                    narrow_shift = np.full_like(narrow_shift, min(spare, 15))
                    out8 = Int8Scale(before * 2.0**spare, np.zeros_like(narrow_shift))
                scale = before
            else:
                before, j = _related(wide_residual.scale, before)
            tail |= {"residual": wide_residual.name, "residual_shift": j}
        if function == Function.TABLE:
            tail["table"] = make_table(op.function, before, scale).entries
        out = self._declare(op.out, 16, scale) if wide else self._declare8(op.out, out8)
        return out, before, {"narrow_shift": narrow_shift, **tail}

    def _function(self, op: FloatLinear | FloatConv | FloatMap, out: Int8Scale | None) -> Function:
        """Choose how the drain computes a function; ``out`` is the int8 format of the result."""
        if op.function is None or op.function.name == "relu":
            return Function.NONE if op.function is None else Function.RELU
        clip = clip_of(op.function)
        if clip is not None and out is not None and op.residual is None:
            top = out.scale * 2.0 ** int(out.shift.max(initial=0)) * INT8_MAX
            if top <= clip[1] * CLIP_TOLERANCE:  # int8 saturates there
                return Function.NONE if clip[0] else Function.RELU
        if not self.config.function_table:
            self.tableless.append(f"{op.function} in {op.name}")
        return Function.TABLE

    def _peak(self, op: FloatLinear | FloatConv | FloatMap) -> float:
        """Largest value on the way through a drain."""
        peak = self.formats.range(op.out).peak
        if op.residual is not None and (op.function is None or op.function.name == "relu"):
            peak = max(
                peak, self.formats.range(op.out + ALONE).peak, self.formats.range(op.residual).peak
            )
        return peak

    def _other_form(self, op: FloatOp, out: str) -> None:
        """Convert a result to the form that its op did not write."""
        name = op.out
        tensor = self.tensors[out]
        if tensor.bits == 16 and name in self.formats.need8:
            scale = self.formats.scale8(name, SPAN).scale
            form = self._declare(name, 8, scale)
            self._convert(op.name, out, form, tensor.scale / scale * 256, 8)
        elif tensor.bits == 8 and name in self.formats.need16:
            scale = self.formats.scale16(name, self.formats.range(name).peak)
            form = self._declare(name, 16, scale)
            self._convert(op.name, out, form, tensor.scale / scale, 0)

    def _convert(self, name: str, x: str, out: str, factor: float, narrow_shift: int) -> None:
        multiplier, shift = positive_multiplier(factor)
        self.ops.append(
            Elementwise(name, ElementwiseOp.ADD, x, x, out, multiplier, 0, shift, narrow_shift)
        )

    def layer_norm(self, op: FloatLayerNorm) -> None:
        x = self.tensors[self._form(op.x, 16)]
        values, channels = self.formats.range(op.out), x.channels
        wide, narrow = op.out in self.formats.need16, op.out in self.formats.need8
        out = wide_out = None
        narrow_shift = np.zeros(channels, np.int64)
        scale = values.peak * HEADROOM / INT16_MAX
        if narrow:
            span = SPAN - int(wide)  # one bit of headroom for the residual stream
            out8 = self.formats.scale8(op.out, span)
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
        wide = op.out in self.formats.need16
        peak = self.formats.range(op.out).peak
        channels = self.source.tensors[op.out].channels
        narrow_shift = np.zeros(channels, np.int64)
        if wide:
            scale = self.formats.scale16(op.out, peak)
            out = self._declare(op.out, 16, scale)
        else:
            out8 = self.formats.scale8(op.out, SPAN)
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
        out8 = self.formats.scale8(op.out, SPAN)
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
        scale = max(self.formats.range(op.out).peak, 2.0**-15) / INT8_MAX
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
        values = self.formats.range(op.out)
        if op.out in self.formats.need16:
            scale = self.formats.scale16(op.out, values.peak)
            return self._declare(op.out, 16, scale), scale, 0
        out8 = plain_scale(values)
        return self._declare8(op.out, out8), out8.scale / 2.0**SPAN, SPAN


def _shift(tensor: Tensor) -> Ints:
    if tensor.channel_shift is None:
        return np.zeros(tensor.channels, np.int64)
    return tensor.channel_shift


def _per_input(op: FloatLinear | FloatConv, values: Ints) -> Ints:
    """Return a value per input channel in a shape that broadcasts to the weight of ``op``."""
    if isinstance(op, FloatLinear) or op.groups == 1:
        return values
    grouped = values.reshape(op.groups, 1, 1, -1)
    return np.repeat(grouped, len(op.weight) // op.groups, 0)


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


def _related(scale: float, finest: float) -> tuple[float, int]:
    """Return the finest ``scale * 2**j`` not below ``finest``, and j as residual shift."""
    j = math.ceil(math.log2(finest / scale) - 1e-9)
    j = min(max(j, RESIDUAL_SHIFTS[0]), RESIDUAL_SHIFTS[-1])
    return scale * 2.0**j, j


_RULES = {
    FloatLinear: _Quantizer.linear,
    FloatConv: _Quantizer.linear,
    FloatMaxPool: _Quantizer.max_pool,
    FloatConcat: _Quantizer.concat,
    FloatMap: _Quantizer.map,
    FloatMatMul: _Quantizer.matmul,
    FloatAttention: _Quantizer.attention,
    FloatSoftmax: _Quantizer.softmax,
    FloatLayerNorm: _Quantizer.layer_norm,
    FloatAdd: _Quantizer.add,
    FloatMultiply: _Quantizer.multiply,
}
