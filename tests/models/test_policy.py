"""Policies: through a file and back, every problem in one message, weights brought in line."""

import pytest
import torch
from torch import nn

from twillcore.config import PRESETS
from twillcore.errors import TwillcoreError
from twillcore.models.nm import satisfies
from twillcore.models.pattern import Pattern
from twillcore.models.policy import LayerPolicy, Policy

U256 = PRESETS["u256"]


def test_round_trip(tmp_path):
    policy = Policy(
        "mine",
        {
            "encoder.layer.0.query": LayerPolicy("2:8", 4, 0.25, 16),
            'odd "name"': LayerPolicy(),
            "x": LayerPolicy(bits=2),
        },
    )
    file = tmp_path / "policy.toml"
    policy.save(file)
    assert Policy.load(file) == policy
    text = file.read_text()
    assert '{ sparsity = "2:8", bits = 4, lut_share = 0.25, rank = 16 }' in text
    assert policy.patterns() == {"encoder.layer.0.query": Pattern(2, 8)}


def test_what_is_left_out_stays_as_it_is():
    policy = Policy.from_toml('model = "m"\n[layers]\na = { sparsity = "1:4" }\n')
    assert policy.layers == {"a": LayerPolicy("1:4", 8, 0.0, 0)}


def test_all_problems_come_in_one_message():
    text = """
        modell = "m"
        [layers]
        a = { sparsity = "5:4", bits = 9 }
        b = { lut_share = 1.5, rank = -1, bit = 3 }
        c.d = { bits = 4 }
    """
    with pytest.raises(TwillcoreError) as caught:
        Policy.from_toml(text, "p.toml")
    assert str(caught.value) == (
        "p.toml: unknown entry 'modell'; model must be a name, not None;"
        " a: N:M sparsity needs 1 <= N <= M, not 5:4; a: bits must be 2..8, not 9;"
        " b: unknown 'bit' (quote names with dots); b: lut_share must be 0..1, not 1.5;"
        " b: rank must be 0 (whole) or positive, not -1; c: unknown 'd' (quote names with dots)"
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
        "policy for 'other': l: the network has no such layer; 0: rank must be below 8, not 8;"
        " 0: sparsity 3:16: 16 does not divide the block of 8 of configuration 'u256'"
    )
    Policy("mine", {"0": LayerPolicy("2:8", rank=4)}).check(net, U256)


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
