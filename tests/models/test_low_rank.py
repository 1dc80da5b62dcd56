"""Factors: best by their own measure, whole-rank exact, ranks by cycles, TRP by its definition."""

import pytest
import torch
from torch import nn

from twillcore.config import PRESETS
from twillcore.errors import TwillcoreError
from twillcore.models.allocation import allocate
from twillcore.models.cost import LayerShape, layer_shapes
from twillcore.models.low_rank import (
    factorise,
    gram_matrices,
    lost_energies,
    lost_energy,
    rank_costs,
    rank_options,
    search_ranks,
    train_low_rank,
    trp_nuclear_gradient,
    trp_project,
    truncate,
)

U256 = PRESETS["u256"]


def data(inputs: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(300, 6) @ torch.randn(6, inputs) + 0.2 * torch.randn(300, inputs)
    return x, torch.randn(20, inputs)


def test_activation_aware_factors_have_the_least_output_error():
    x, weight = data()
    a, b = truncate(weight, 5, x.T @ x)
    assert (a.shape, b.shape) == ((20, 5), (5, 24))
    error = (x @ (a @ b - weight).T).square().sum()
    plain_a, plain_b = truncate(weight, 5)
    assert error < 0.5 * (x @ (plain_a @ plain_b - weight).T).square().sum()
    # Eckart-Young on the outputs themselves: nothing of rank 5 is nearer
    best = torch.linalg.svdvals(x @ weight.T)[5:].square().sum()
    assert error == pytest.approx(float(best), rel=1e-3)
    lost = lost_energy(weight, [0, 5], x.T @ x)
    assert lost[5] == pytest.approx(float(best / (x @ weight.T).square().sum()), rel=1e-2)
    assert lost[0] == 0


def test_full_rank_changes_nothing():
    x, weight = data()
    a, b = truncate(weight, 20, x.T @ x)
    torch.testing.assert_close(a @ b, weight, atol=1e-3, rtol=1e-3)


def test_a_linear_becomes_two_with_its_bias():
    x, _ = data()
    net = nn.Sequential(nn.Linear(24, 20), nn.Linear(20, 4)).requires_grad_(False)
    grams = gram_matrices(net, [(x,)])
    expected = net(x)
    factorise(net, {"0": 19, "1": 0}, grams)
    assert [tuple(layer.weight.shape) for layer in net[0]] == [(19, 24), (20, 19)]
    assert isinstance(net[1], nn.Linear)
    assert (net(x) - expected).norm() < 0.05 * expected.norm()


def test_ranks_are_multiples_of_the_array_that_save_cycles():
    shape = LayerShape("l", 16, 96, 96)
    assert shape.cycles(U256, 8) == 6 * 12 * 8
    assert shape.low_rank_cycles(U256, 16) == (12 + 6 * 2) * 8
    assert rank_options(shape, U256) == [0, 16, 32]  # 48 costs as much as the whole layer


def test_choice_within_cycles():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(96, 96), nn.Linear(96, 96)).requires_grad_(False)
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(96, 10) @ torch.randn(10, 96))  # of low rank already
    x = torch.randn(200, 96)
    shapes = layer_shapes(net, (x[:16],))
    grams = gram_matrices(net, [(x,)])
    budget = 6 * 12 * 8 + (12 + 6 * 2) * 8
    cost = rank_costs(shapes, shapes, U256)
    assert allocate(lost_energies(net, cost, grams), cost, budget) == {"0": 0, "1": 16}


def test_bad_input():
    with pytest.raises(TwillcoreError, match=r"rank must be 1\.\.20, not 21"):
        truncate(data()[1], 21)
    with pytest.raises(TwillcoreError, match="no linear layers 7"):
        factorise(nn.Sequential(nn.Linear(4, 4)), {"7": 1})
    with pytest.raises(TwillcoreError, match="no calibration data"):
        gram_matrices(nn.Sequential(nn.Linear(4, 4)), [])
    with pytest.raises(TwillcoreError, match="calibration gives NaN or infinity"):
        truncate(torch.ones(4, 4), 2, torch.full((4, 4), torch.nan))


def test_inputs_that_span_little_are_damped():
    x, weight = data()
    x = x[:, :1].expand(-1, 24) * torch.rand(24) * 100  # rank 1, but for rounding
    a, b = truncate(weight, 5, x.T @ x)
    assert ((a @ b - weight) @ x.T).norm() < 1e-2 * (weight @ x.T).norm()


def test_trp_keeps_the_energy_with_the_smallest_rank():
    net = nn.Sequential(nn.Linear(3, 3))
    with torch.no_grad():
        net[0].weight.copy_(torch.diag(torch.tensor([3.0, 1.0, 0.5])))  # energies 9, 1, 0.25
    assert trp_project(net, 0.9) == {"0": 2}
    assert torch.allclose(net[0].weight, torch.diag(torch.tensor([3.0, 1.0, 0.0])), atol=1e-6)
    net[0].weight.grad = torch.zeros(3, 3)
    trp_nuclear_gradient(net, 0.1)
    expected = torch.diag(torch.tensor([0.1, 0.1, 0.0]))
    assert torch.allclose(net[0].weight.grad, expected, atol=1e-6)


def test_searched_ranks_meet_the_cycles_and_spare_what_needs_its_rank():
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(96, 96), nn.Linear(96, 96)).requires_grad_(False)
    net[1].weight.copy_(torch.randn(96, 10) @ torch.randn(10, 96) / 10)  # of low rank already
    before = {name: p.clone() for name, p in net.named_parameters()}
    x = torch.randn(200, 96)
    wanted = net(x)
    shapes, grams = layer_shapes(net, (x[:16],)), gram_matrices(net, [(x,)])
    budget = 6 * 12 * 8 + (12 + 6 * 2) * 8

    def loss(step):
        return (net(x) - wanted).square().sum() / wanted.square().sum()

    cost = rank_costs(shapes, shapes, U256)
    surprise = search_ranks(net, cost, grams, budget, loss, steps=40)
    assert allocate(surprise, cost, budget) == {"0": 0, "1": 16}
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    with pytest.raises(TwillcoreError, match="search of ranks: the loss is nan at step 0"):
        search_ranks(net, cost, grams, budget, lambda step: loss(step) * torch.nan)


def test_training_towards_low_rank_lowers_it():
    torch.manual_seed(3)
    teacher = torch.randn(8, 2) @ torch.randn(2, 8)
    net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05)
    train_low_rank(optimiser, net, ["0"], period=2, energy=0.99)
    for step in range(4):
        x = torch.randn(32, 8, generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        (net[0](x) - x @ teacher.T + 0 * net[1](x)).square().mean().backward()
        optimiser.step()
        rank = int(torch.linalg.matrix_rank(net[0].weight.detach(), rtol=1e-4))
        assert (rank < 8) == (step % 2 == 1)  # every other step projects
    assert int(torch.linalg.matrix_rank(net[1].weight.detach())) == 8
