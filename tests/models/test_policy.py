"""Policies: through a file and back, every problem in one message, weights brought in line."""

import copy

import pytest
import torch
from torch import nn

import twillcore
from twillcore.config import PRESETS
from twillcore.errors import TwillcoreError
from twillcore.models.low_rank import factorise
from twillcore.models.nm import satisfies
from twillcore.models.pattern import Pattern
from twillcore.models.policy import LayerPolicy, Policy, default_policy

U256 = PRESETS["u256"]


def test_round_trip(tmp_path):
    policy = Policy(
        "mine",
        {
            "encoder.layer.0.query": LayerPolicy("2:8", 4, 0.25, 3, 16),
            'odd "name"': LayerPolicy(),
            "x": LayerPolicy(bits=2),
        },
    )
    file = tmp_path / "policy.toml"
    policy.save(file)
    assert Policy.load(file) == policy
    text = file.read_text()
    assert '{ sparsity = "2:8", bits = 4, lut_share = 0.25, lut_bits = 3, rank = 16 }' in text
    assert policy.patterns() == {"encoder.layer.0.query": Pattern(2, 8)}


def test_what_is_left_out_stays_as_it_is():
    policy = Policy.from_toml('model = "m"\n[layers]\na = { sparsity = "1:4" }\n')
    assert policy.layers == {"a": LayerPolicy("1:4", 8, None, 4, 0)}
    assert "lut_share" not in policy.to_toml().partition("[layers]")[2]


def test_all_problems_come_in_one_message():
    text = """
        modell = "m"
        [layers]
        a = { sparsity = "5:4", bits = 9 }
        b = { lut_share = 1.5, lut_bits = 0, rank = -1, bit = 3 }
        c.d = { bits = 4 }
    """
    with pytest.raises(TwillcoreError) as caught:
        Policy.from_toml(text, "p.toml")
    assert str(caught.value) == (
        "p.toml: unknown entry 'modell'; model must be a name, not None;"
        " a: N:M sparsity needs 1 <= N <= M, not 5:4; a: bits must be 2..8, not 9;"
        " b: unknown 'bit' (quote names with dots); b: lut_share must be 0..1, not 1.5;"
        " b: lut_bits must be 1..8, not 0; b: rank must be 0 (whole) or positive, not -1;"
        " c: unknown 'd' (quote names with dots)"
    )


def test_no_toml_and_no_file(tmp_path):
    with pytest.raises(TwillcoreError, match=r"^p\.toml: not TOML"):
        Policy.from_toml("= 3", "p.toml")
    with pytest.raises(TwillcoreError, match="cannot be read"):
        Policy.load(tmp_path / "none.toml")


def test_a_policy_for_another_model_or_chip_is_refused():
    net = nn.Sequential(nn.Linear(16, 8))
    policy = Policy(
        "other",
        {"l": LayerPolicy("2:4"), "0": LayerPolicy("3:16", rank=8)},
    )
    with pytest.raises(TwillcoreError) as caught:
        policy.check(net, U256)
    assert str(caught.value) == (
        "policy for 'other': l: the network has no such layer; 0: factors of rank 8 are"
        " dense, of 8 bits and on the DSP core; 0: rank must be below 8, not 8;"
        " 0: sparsity 3:16: 16 does not divide the block of 8 of configuration 'u256'"
    )
    Policy("mine", {"0": LayerPolicy("2:8")}).check(net, U256)


BOTH_CORES = U256.replace(name="both", lut_columns=16, lut_weight_depth=1024)


def test_shares_of_the_lut_core_are_checked_together():
    net = nn.Sequential(nn.Conv2d(8, 64, 3), nn.Conv2d(64, 64, 3, groups=64), nn.Linear(64, 10))
    policy = Policy(
        "m",
        {
            "0": LayerPolicy(lut_share=0.5),
            "1": LayerPolicy(lut_share=0.5),
            "2": LayerPolicy(lut_bits=9),
            "3": LayerPolicy(),
            "fc": LayerPolicy(),
        },
    )
    common = (
        " 1: lut_share must be 0 or left out, not 0.5: depthwise convolution runs on the DSP core;"
        " 2: lut_bits must be 1..8, not 9; 3: the network has no such layer; fc: the network has no"
        " such layer"
    )
    with pytest.raises(TwillcoreError) as caught:
        policy.check(net, BOTH_CORES)
    assert str(caught.value) == f"policy for 'm':{common}"
    with pytest.raises(TwillcoreError) as caught:
        policy.check(net, U256)
    assert str(caught.value) == (
        "policy for 'm': 0: lut_share must be 0 or left out, not 0.5: configuration 'u256' has no"
        f" LUT core;{common}"
    )


def test_default_policy_spares_the_first_and_depthwise_layers():
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 32, 1),
        nn.Conv2d(32, 32, 3, groups=4), nn.Linear(32, 10),
    )  # fmt: skip
    policy = default_policy(net, "1:4", 3, name="net")
    usual = LayerPolicy("1:4", lut_bits=3)
    assert policy == Policy(
        "net",
        {
            "0": LayerPolicy("dense", lut_bits=8),
            "1": LayerPolicy("dense", lut_share=0.0),
            "2": usual,
            "3": usual,
            "4": usual,
        },
    )
    assert default_policy(net, "1:4", 3, first=True).layers["0"] == usual
    assert default_policy(net, "dense").layers["2"] == LayerPolicy()
    assert Policy.from_toml(policy.to_toml()) == policy
    alone = default_policy(net, "2:4", None).layers
    assert [layer.lut_share for layer in alone.values()] == [0.0] * 5
    with pytest.raises(TwillcoreError, match=r"lut_bits must be 1..8, not 9"):
        default_policy(net, lut_bits=9)


def test_enforce_brings_weights_in_line_once():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 5), nn.Linear(5, 5))
    untouched = net[1].weight.clone()
    policy = Policy("m", {"0": LayerPolicy("2:8", bits=3)})
    policy.enforce(net)
    assert satisfies(net[0].weight, Pattern(2, 8))
    for row in net[0].weight:
        assert len(row[row != 0].abs().unique()) <= 3  # 1, 2, 3 times the scale
    assert torch.equal(net[1].weight, untouched)


def test_ranks_become_two_products_that_compile():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16)).requires_grad_(False)
    net[0].weight.copy_(torch.randn(64, 8) @ torch.randn(8, 64))
    samples = [torch.randn(8, 64) for _ in range(4)]
    policy = Policy("m", {"0": LayerPolicy(rank=8), "2": LayerPolicy("2:4")})
    assert policy.ranks() == {"0": 8}
    dense, compiled = (
        twillcore.compile(net, samples[0], "u256", samples, policy=given)
        for given in (None, policy)
    )
    found = compiled.run(samples[0], engine="functional").outputs[0]
    assert (found - net(samples[0])).norm() < 0.6 * net(samples[0]).norm()
    cycles = [program.run(samples[0], engine="cycle").cycles for program in (dense, compiled)]
    assert cycles[1] < cycles[0]
    factors = factorise(copy.deepcopy(net), {"0": 8})
    policy.check(factors, U256)  # a network of that shape already is fine, too
    before = factors[0][0].weight.clone()
    policy.enforce(factors)
    assert torch.equal(factors[0][0].weight, before)


def test_ranks_exclude_what_factors_cannot_have():
    net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Linear(16, 16))
    policy = Policy("m", {"0": LayerPolicy(rank=4), "1": LayerPolicy("2:4", rank=8)})
    with pytest.raises(TwillcoreError) as caught:
        policy.check(net, U256)
    assert str(caught.value) == (
        "policy for 'm': 0: rank must be 0, not 4: no linear layer;"
        " 1: factors of rank 8 are dense, of 8 bits and on the DSP core"
    )


def test_weights_on_a_coarse_grid_of_fewer_levels_stay():
    weight = torch.tensor([[5.0, -3, 0, 1], [0.25, 0.5, 0, -0.75]])
    net = nn.Sequential(nn.Linear(4, 2)).requires_grad_(False)
    net[0].weight.copy_(weight)
    Policy("m", {"0": LayerPolicy(bits=4)}).enforce(net)
    assert torch.equal(net[0].weight, weight)  # the largest is 5 of 7
    Policy("m", {"0": LayerPolicy(bits=3)}).enforce(net)
    assert not torch.equal(net[0].weight, weight)
