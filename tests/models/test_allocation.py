"""The integer program against trying everything; costs against the definition; measured losses."""

import itertools

import pytest
import torch
from torch import nn

from twillcore.compiler.gemm_graph import ideal_cycles
from twillcore.config import PRESETS
from twillcore.errors import TwillcoreError
from twillcore.models.allocation import allocate
from twillcore.models.cost import LayerShape, layer_shapes
from twillcore.models.sensitivity import measure

U256 = PRESETS["u256"]


def by_trying(loss, cost, budget):
    layers = list(loss)
    return min(
        sum(loss[name][option] for name, option in zip(layers, choice, strict=True))
        for choice in itertools.product(*(loss[name] for name in layers))
        if sum(cost[name][option] for name, option in zip(layers, choice, strict=True)) <= budget
    )


@pytest.mark.parametrize("seed", range(8))
def test_optimum_is_that_of_exhaustive_search(seed):
    generator = torch.Generator().manual_seed(seed)
    options = range(1, 5)
    size = {f"l{i}": int(torch.randint(1, 50, (), generator=generator)) for i in range(5)}
    loss = {n: dict(zip(options, torch.rand(4, generator=generator).tolist(), strict=True))
            for n in size}  # fmt: skip
    cost = {n: {option: option * weight for option in options} for n, weight in size.items()}
    for share in (1.0, 1.7, 2.5, 3.9):
        budget = share * sum(size.values())
        choice = allocate(loss, cost, budget)
        assert sum(cost[n][o] for n, o in choice.items()) <= budget
        found = sum(loss[n][o] for n, o in choice.items())
        assert found == pytest.approx(by_trying(loss, cost, budget))


def test_a_target_out_of_reach_names_the_best():
    with pytest.raises(TwillcoreError) as caught:
        allocate({"a": {1: 0.5, 2: 0.1}}, {"a": {1: 1000, 2: 2000}}, 999, "cycles")
    assert str(caught.value) == (
        "the target of 999 cycles cannot be met: the best possible is 1,000"
    )


def test_nan_and_tables_that_differ_are_refused():
    with pytest.raises(TwillcoreError, match="a: the loss of 1 is nan"):
        allocate({"a": {1: float("nan")}}, {"a": {1: 1}}, 9)
    with pytest.raises(TwillcoreError, match="losses are of layers a, costs of b"):
        allocate({"a": {1: 0.0}}, {"b": {1: 1}}, 9)


@pytest.mark.parametrize(("m", "k", "n", "beats"), [(16, 64, 16, 8), (17, 65, 33, 3), (1, 5, 1, 1)])
def test_cycles_are_the_beats_of_the_gemm_core(m, k, n, beats):
    assert LayerShape("l", m, k, n).cycles(U256, beats) == ideal_cycles(m, k, n, U256, beats)


def test_bytes_by_hand():
    layer = LayerShape("l", 16, 64, 32)  # 2 column tiles, 8 blocks
    assert layer.bytes(U256, 8) == 64 * 32
    assert layer.bytes(U256, 4) == 2 * 8 * (4 + 1) * 16  # one header per block
    assert layer.bytes(U256, 4, bits=4) == 2 * 8 * (2 + 1) * 16
    assert layer.bytes(U256, 1) == (16 + 8) * 16  # half a header per beat


def test_shapes_are_found_by_running():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(2), nn.Linear(36, 10))
    shapes = layer_shapes(net, (torch.zeros(1, 3, 8, 8),))
    assert shapes == {
        "0": LayerShape("0", 36, 27, 8),
        "2": LayerShape("2", 8, 36, 10),
    }


def test_measured_loss_is_of_one_layer_at_a_time_and_leaves_no_trace():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).requires_grad_(False)
    x = torch.randn(8, 4)
    before = net(x)
    zero = torch.zeros_like(net[1].weight)
    same = net[1].weight.clone()
    options = {
        "zero": lambda: zero,
        "same": lambda: same,
        "as it was": lambda: net[1].weight,  # not as the option before has left it
    }
    losses = measure(net, [(x,)], {"1": options})
    assert losses["1"]["as it was"] == 0
    expected = (net[1].bias - before).square().sum() / before.square().sum()
    assert losses["1"]["same"] == 0
    assert losses["1"]["zero"] == pytest.approx(float(expected))
    assert torch.equal(net(x), before)
    with pytest.raises(TwillcoreError, match="no calibration data"):
        measure(net, [], {})
