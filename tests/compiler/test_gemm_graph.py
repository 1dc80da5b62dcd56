"""Random layers of ``twillcore gemm`` and ``conv``: as torch has them, and what is refused."""

import numpy as np
import pytest
import torch

from twillcore.compiler.errors import CompileError
from twillcore.compiler.gemm_graph import LutPart, conv_graph, gemm_graph
from twillcore.config import PRESETS
from twillcore.numerics import narrow, scale_accumulator
from twillcore.sim.reference import run_graph, window_sums

TINY = PRESETS["tiny"]
BOTH = TINY.replace(name="both", lut_columns=8, lut_weight_depth=64, tap_depth=64)

CONVOLUTIONS = [  # (height, width, inputs, outputs, kernel), options
    ((5, 7, 8, 16, 3), {"padding": 1}),
    ((9, 6, 3, 8, 5), {"stride": 2, "padding": 2}),
    ((8, 8, 16, 16, 3), {"groups": 16, "padding": 1}),
    ((7, 7, 12, 24, 3), {"groups": 3, "stride": 2}),
    ((11, 10, 8, 8, 3), {"dilation": 3, "padding": 3}),
    ((9, 12, 8, 16, (2, 3)), {"dilation": (1, 3), "padding": (0, 2)}),
    ((12, 9, 8, 16, (3, 1)), {"dilation": (2, 1), "stride": (3, 2)}),
    ((4, 4, 20, 9, 1), {}),
    ((4, 4, 20, 9, 4), {}),
]


@pytest.mark.parametrize(("sizes", "options"), CONVOLUTIONS)
@pytest.mark.parametrize("lut", [LutPart(), LutPart(8, 3)])
def test_convolutions_are_torchs(sizes, options, lut):
    height, width, inputs, outputs, _ = sizes
    graph, feed = conv_graph(*sizes, BOTH, 3, seed=4, lut=lut, **options)
    (op,) = graph.ops
    x = torch.from_numpy(feed["x"]).double().reshape(1, height, width, inputs).permute(0, 3, 1, 2)
    weight = torch.from_numpy(op.weight).double().permute(0, 3, 1, 2)
    expected = torch.nn.functional.conv2d(x, weight, **options)
    assert graph.tensors["y"].grid == tuple(expected.shape[2:])
    sums = window_sums(graph, op, feed["x"])
    assert np.array_equal(sums[0].T, expected.reshape(outputs, -1).long().numpy())
    y = run_graph(graph, feed)["y"]
    assert 10 < y.std() < 60
    assert (np.abs(y) == 127).mean() < 0.05
    dsp = op.weight[: outputs - lut.channels]
    each = inputs // options.get("groups", 1)
    for block in range(0, each, BOTH.block):
        assert (dsp[..., block : block + BOTH.block] != 0).sum(-1).max(initial=0) <= op.beats


@pytest.mark.parametrize(
    ("stride", "strides"),
    [(3, [(3, 1), (1, 3)]), (4, [(4, 2), (1, 2)]), (6, [(6, 2), (1, 3)]), (20, [(20, 2)])],
)
def test_large_strides_take_a_second_layer(stride, strides):
    graph, feed = conv_graph(20, 17, 8, 8, 3, BOTH, 8, stride=stride, padding=1)
    assert [op.stride for op in graph.ops] == strides
    op = graph.ops[0]
    x = torch.from_numpy(feed["x"].astype(float)).unflatten(1, (20, 17)).permute(0, 3, 1, 2)
    weight = torch.from_numpy(op.weight.astype(float)).permute(0, 3, 1, 2)
    sums = torch.nn.functional.conv2d(x, weight, None, stride, 1).flatten(2).transpose(1, 2)
    scaled = scale_accumulator(sums.numpy().astype(int), op.bias, op.multiplier, op.shift)
    assert np.array_equal(run_graph(graph, feed)["y"], narrow(scaled, op.narrow_shift))


@pytest.mark.parametrize("bits", range(1, 9))
def test_weights_of_the_lut_core_span_their_bits(bits):
    graph, feed = gemm_graph(40, 64, 32, BOTH, 8, lut=LutPart(16, bits))
    (op,) = graph.ops
    found = np.unique(op.weight[16:])
    half = 1 << bits - 1
    assert -half <= found[0] < -0.9 * half
    assert half - 1 >= found[-1] >= 0.9 * half - 1
    y = run_graph(graph, feed)["y"]
    assert 10 < y[..., 16:].std() < 60


def test_a_linear_layer_is_the_same_without_a_lut_core():
    alone, both = (gemm_graph(4, 20, 16, BOTH, 3, lut=lut)[0].ops[0] for lut in
                   (LutPart(), LutPart(8, 4)))  # fmt: skip
    for name in ("weight", "bias", "multiplier", "shift"):
        assert np.array_equal(getattr(alone, name)[:8], getattr(both, name)[:8])


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ((4, 4, 8, 8, 3), {"stride": 0}, "stride must be at least 1, not 0"),
        ((4, 4, 8, 8, 3), {"padding": -1}, "padding must be at least 0, not -1"),
        (
            (0, 4, 8, 8, 0),
            {"dilation": 0, "groups": 0},
            (
                "height must be at least 1, not 0; kernel must be at least 1, not 0;"
                " dilation must be at least 1, not 0; groups must be at least 1, not 0"
            ),
        ),
        (
            (4, 4, 8, 9, 7),
            {"groups": 3, "padding": 1},
            (
                "8 input channels are not divisible by 3 groups; the kernel of 7 x 7 pixels"
                " (dilation counted)"
                " is larger than the padded image of 6 x 6"
            ),
        ),
        (
            (4, 4, 9, 8, 3),
            {"groups": 3, "dilation": 2},
            (
                "8 output channels are not divisible by 3 groups; the kernel of 5 x 5 pixels"
                " (dilation counted)"
                " is larger than the padded image of 4 x 4"
            ),
        ),
        (
            (9, 4, 8, 8, (3, 2)),
            {"dilation": (2, 4), "stride": (0, 1), "padding": (0, -1)},
            "stride must be at least 1, not (0, 1); padding must be at least 0, not (0, -1)",
        ),
        (
            (9, 4, 8, 8, (3, 2)),
            {"dilation": (2, 4)},
            (
                "the kernel of 5 x 5 pixels (dilation counted)"
                " is larger than the padded image of 9 x 4"
            ),
        ),
        ((4, 4, 8, 8, 3), {"lut": LutPart(8, 9)}, "must have 1..8 bits, not 9"),
        ((4, 4, 8, 8, 3), {"lut": LutPart(8, 0)}, "must have 1..8 bits, not 0"),
        (
            (4, 4, 8, 20, 3),
            {"lut": LutPart(12, 4)},
            "the LUT core must get all of 20 outputs or fewer, in blocks of 8, not 12",
        ),
    ],
)
def test_convolutions_that_are_none_are_refused(sizes, options, message):
    with pytest.raises(CompileError) as caught:
        conv_graph(*sizes, BOTH, 8, **options)
    assert message in str(caught.value)


def test_a_lut_part_needs_a_lut_core():
    with pytest.raises(CompileError, match="configuration 'tiny' has no LUT core"):
        gemm_graph(4, 8, 8, TINY, 8, lut=LutPart(8, 4))
