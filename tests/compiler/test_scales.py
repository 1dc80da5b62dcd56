"""Rounding of real numbers to integer parameters."""

import numpy as np
import pytest
import torch

from twillcore import numerics
from twillcore.compiler.calibrate import Range
from twillcore.compiler.float_graph import Function
from twillcore.compiler.scales import (
    SPAN,
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


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def values(sample):
    sample = np.asarray(sample, np.float32)
    return Range(sample.min(0), sample.max(0), sample)


def test_multipliers_use_all_their_bits(rng):
    for factor in 2.0 ** rng.uniform(-48, 14.9, 500):
        multiplier, shift = positive_multiplier(factor)
        assert 1 << 14 <= multiplier < 1 << 15
        assert 0 <= shift <= 63
        assert multiplier / 2.0**shift == pytest.approx(factor, rel=2**-15)


def test_multipliers_at_the_limits():
    assert positive_multiplier(0.0) == (0, 0)
    assert positive_multiplier(1e9) == (32767, 0)
    assert positive_multiplier(2.0**-55) == (1 << 8, 63)
    assert positive_multiplier(1 - 2.0**-17) == (1 << 14, 14)
    multiplier, shift = multipliers([-0.5, 0.25, 0.0])
    assert (multiplier / 2.0**shift).tolist() == [-0.5, 0.25, 0.0]


def test_common_multipliers_share_the_shift():
    a, b, shift = common_multipliers(0.75, -0.001)
    assert a / 2**shift == pytest.approx(0.75)
    assert b / 2**shift == pytest.approx(-0.001, abs=2**-15)


def test_lane_numerator_is_what_lane_scale_wants(rng):
    for factor in 2.0 ** rng.uniform(-10, 15.9, 300):
        numerator, lane_shift = lane_numerator(factor)
        assert 1 << 15 <= numerator < 1 << 16
        assert 23 <= lane_shift <= 63
        assert numerator * 2.0 ** (24 - lane_shift) == pytest.approx(factor, rel=2**-15)
        m, s = numerics.lane_scale(1000, numerator, lane_shift)
        assert m / 2.0**s == pytest.approx(factor / 1000, rel=2**-14)


def test_smooth_scale_saves_small_channels(rng):
    magnitude = 2.0 ** rng.integers(-6, 1, 32)
    sample = rng.standard_normal((200, 32)) * magnitude
    weight = (rng.standard_normal((16, 32)) / magnitude).astype(np.float32)

    def error(scale: Int8Scale) -> float:
        unit = scale.scale * 2.0**scale.shift
        return np.square((scale.quantise(sample) * unit - sample) @ weight.T).sum()

    smooth = smooth_scale(values(sample), [weight], SPAN)
    assert smooth.shift.min() >= 0
    assert smooth.shift.max() <= SPAN
    assert (np.abs(sample).max(0) <= 127.01 * smooth.scale * 2.0**smooth.shift).all()
    assert error(smooth) < error(plain_scale(values(sample))) / 50


def test_smooth_scale_of_nothing():
    scale = smooth_scale(values(np.zeros((4, 8))), [np.zeros((3, 8), np.float32)], SPAN)
    assert np.isfinite(scale.scale)


def test_weights_and_biases(rng):
    weight = rng.standard_normal((6, 20)).astype(np.float32)
    bias = np.array([0, 1, -1, 1e6, 0, 5], np.float32)
    weight[4:] = 0
    x = Int8Scale(0.01, rng.integers(0, 3, 20))
    got = quantise_weight(weight, bias, x, coarsest=100.0)
    assert np.abs(got.bias).max() <= 1 << 30
    assert (np.abs(got.bias * got.unit - bias) <= got.unit / 2 * 1.001).all()
    restored = got.weight * got.unit[:, None] / (x.scale * 2.0**x.shift)
    assert np.abs(restored - weight)[:3].max() < 0.05
    assert not got.weight[4:].any()


@pytest.mark.parametrize("name", ["gelu", "silu", "tanh", "sigmoid", "relu6", "softplus"])
def test_tables_are_accurate(name, rng):
    x = rng.standard_normal((500, 4)) * 3
    function = Function(name)
    scale = table_input_scale(function, values(x))
    table = make_table(function, scale, 2.0**-11)
    integers = np.rint(x / scale).astype(np.int64)
    wanted = getattr(torch.ops.aten, name)(torch.from_numpy(x)).numpy()
    assert np.abs(numerics.look_up(integers, table.entries) * 2.0**-11 - wanted).max() < 0.03


def test_beats_of_blocks():
    weight = np.zeros((3, 21), np.int8)
    assert beats_per_block(weight, 8) == 1
    weight[1, [8, 9, 15]] = 5
    assert beats_per_block(weight, 8) == 3
    weight[2, 16:21] = -1
    assert beats_per_block(weight, 8) == 5
    assert beats_per_block(weight, 16) == 5
    assert beats_per_block(np.ones((1, 16), np.int8), 16) == 16
