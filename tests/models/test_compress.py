"""One call: targets are met, the policy says what the weights are, errors come before work."""

import pytest
import torch
from torch import nn

import twillcore
from twillcore.config import PRESETS
from twillcore.errors import TwillcoreError
from twillcore.flow import program_cycles
from twillcore.models.compress import Target, compress, density
from twillcore.models.cost import layer_shapes
from twillcore.models.distill import Recipe
from twillcore.models.layout import as_rows
from twillcore.models.nm import project, satisfies
from twillcore.models.pattern import Pattern
from twillcore.models.qat import on_grid

TINY = PRESETS["tiny"]


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 32), nn.Linear(32, 8))
    mixture = torch.randn(5, 24)
    data = [(torch.randn(16, 5) @ mixture + 0.1 * torch.randn(16, 24),) for _ in range(4)]
    return net.requires_grad_(False), data


@pytest.mark.parametrize("method", ["magnitude", "reconstruction"])
@pytest.mark.parametrize("share", [0.3, 0.5])
def test_product_cycles_are_met_and_the_policy_is_what_the_weights_are(method, share):
    net, data = network()
    shapes = layer_shapes(net, data[0])
    dense = sum(shape.cycles(TINY, 8) for shape in shapes.values())
    before = net[0].weight.clone()
    found, policy = compress(
        net,
        data[0],
        target=f"product-cycles={share * dense}",
        data=data,
        config=TINY,
        method=method,
    )
    cycles = 0
    for name, shape in shapes.items():
        pattern = policy.layers[name].pattern or Pattern(8, 8)
        assert satisfies(found.get_submodule(name).weight, pattern)
        cycles += shape.cycles(TINY, pattern.kept)
    assert share * dense * 0.8 < cycles <= share * dense
    assert torch.equal(net[0].weight, before)
    assert policy.model == "Sequential"


def test_mixed_beats_uniform_at_equal_density():
    net, data = network()
    weight = net[2].weight  # this one is nearly 1:8 already
    weight.copy_(project(weight, Pattern(1, 8)) + 0.02 * weight)
    wanted = net(torch.cat([x for (x,) in data]))

    def error(module):
        return float((module(torch.cat([x for (x,) in data])) - wanted).square().sum())

    mixed, policy = compress(net, data[0], target="density=0.25", data=data, config=TINY)
    uniform, _ = compress(net, data[0], target="2:8", data=data, config=TINY)
    assert density(mixed, ["0", "2", "3"]) <= 0.25
    assert len({layer.sparsity for layer in policy.layers.values()}) > 1
    assert error(mixed) < error(uniform)


def test_bits_and_bytes():
    net, data = network()
    _, policy = compress(net, data[0], target="bits=4", data=data, config=TINY)
    weights = {"0": 768, "2": 1024, "3": 256}
    spent = sum(policy.layers[name].bits * n for name, n in weights.items())
    assert 3.5 * 2048 < spent <= 4 * 2048
    shapes = layer_shapes(net, data[0])
    _, policy = compress(net, data[0], target="bytes=1400", data=data, config=TINY)
    kept = {n: (p.pattern or Pattern(8, 8)).kept for n, p in policy.layers.items()}
    assert sum(shapes[n].bytes(TINY, k) for n, k in kept.items()) <= 1400


def test_training_keeps_the_pattern_and_helps():
    net, data = network()
    x = torch.cat([x for (x,) in data])
    shot, _ = compress(net, data[0], target="1:4", data=data, config=TINY, method="magnitude")
    trained, _ = compress(
        net, data[0], target="1:4", data=data, config=TINY, method="magnitude",
        recipe=Recipe(steps=60, rate=3e-3, warm_up=5), taps=["0"], layers=["0", "2"],
    )  # fmt: skip
    assert all(satisfies(trained[i].weight, Pattern(1, 4)) for i in (0, 2))
    assert torch.equal(trained[3].weight, net[3].weight)
    assert (trained(x) - net(x)).norm() < (shot(x) - net(x)).norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target": "product-cycles=10"},
            "the target of 10 product-cycles cannot be met: the best possible is 32",
        ),
        (
            {"target": "density=0.1"},
            "the target of 205 weights cannot be met: the best possible is 256",
        ),
        (
            {"target": "bits=1"},
            "the target of 2,048 bits cannot be met: the best possible is 4,096",
        ),
        (
            {"target": "3:16"},
            "sparsity 3:16: 16 does not divide the block of 8 of configuration 'tiny'",
        ),
        ({"target": "5:4"}, "N:M sparsity needs 1 <= N <= M, not 5:4"),
        (
            {"target": "speed=2"},
            (
                "target must be N:M, or cycles, product-cycles, bytes, density or bits with a"
                " positive number such as density=0.5, not 'speed=2'"
            ),
        ),
        ({"data": []}, "no calibration data: give inputs without padding as data"),
        (
            {"method": "magic"},
            (
                "method must be one of reconstruction, magnitude, sr-ste, domino, ompq, low-rank,"
                " haloc, trp, mixmatch, n3h, not 'magic'"
            ),
        ),
        ({"method": "domino"}, "method domino takes a target of density, not N:M"),
        (
            {"method": "haloc", "target": "product-cycles=9"},
            "the target of 9 product-cycles cannot be met: the best possible is 152",
        ),
        (
            {"target": "cycles=9"},
            "a target of cycles needs program_cycles, which times programs",
        ),
        ({"method": "sr-ste"}, "method sr-ste is a training: give it steps"),
        (
            {"method": "n3h", "target": "bits=4"},
            "method n3h needs a LUT core: configuration 'tiny' has none",
        ),
        (
            {"method": "mixmatch", "target": "bits=4.5"},
            "method mixmatch takes whole bits of 2..8 for the LUT core, not 4.5",
        ),
        (
            {"method": "mixmatch", "target": "bits=4", "recipe": Recipe(steps=2)},
            "method mixmatch is without training: leave out the steps",
        ),
        ({"layers": ["9"]}, "no layers 9; there are 0, 2, 3"),
    ],
)
def test_bad_input(options, message):
    net, data = network()
    arguments = {"target": "2:4", "data": data, "config": TINY} | options
    with pytest.raises(TwillcoreError) as caught:
        compress(net, (data[0][0][:4],), **arguments)
    assert str(caught.value) == message


def test_magnitude_is_for_what_cannot_be_reconstructed():
    net = nn.Sequential(nn.Conv2d(8, 8, 3, padding="same"), nn.Flatten(2)).requires_grad_(False)
    data = [(torch.randn(1, 8, 4, 4),)]
    with pytest.raises(TwillcoreError, match="0 cannot be reconstructed: its padding must be numb"):
        compress(net, data[0], target="2:4", data=data, config=TINY)
    found, _ = compress(net, data[0], target="2:4", data=data, config=TINY, method="magnitude")
    assert density(found, ["0"]) == 0.5


def test_targets():
    assert Target.parse("2:4") == Target(pattern=Pattern(2, 4))
    assert Target.parse("bytes=4e6") == Target("bytes", 4e6)


def cycles_of(shapes, ranks):
    return sum(
        shape.low_rank_cycles(TINY, ranks[name]) if ranks.get(name) else shape.cycles(TINY, 8)
        for name, shape in shapes.items()
    )


@pytest.mark.parametrize("method", ["low-rank", "haloc", "trp"])
def test_factors_meet_the_product_cycles(method):
    net, data = network()
    shapes = layer_shapes(net, data[0])
    budget = 0.75 * cycles_of(shapes, {})
    found, policy = compress(
        net, data[0], target=f"product-cycles={budget}", data=data, config=TINY, method=method,
        recipe=Recipe(steps=30, rate=3e-3, warm_up=5),
    )  # fmt: skip
    ranks = policy.ranks()
    assert ranks
    assert cycles_of(shapes, ranks) <= budget
    for name, rank in ranks.items():
        assert found.get_submodule(f"{name}.0").out_features == rank
    x = torch.cat([x for (x,) in data])
    assert (found(x) - net(x)).norm() < 0.7 * net(x).norm()
    policy.check(found, TINY)


@pytest.mark.parametrize("method", ["magnitude", "reconstruction", "low-rank", "haloc", "trp"])
def test_cycles_are_those_of_the_program(method):
    net, data = network()
    dense = program_cycles(net, data[:1], TINY)
    options = {"data": data, "config": TINY, "method": method}
    if method == "trp":
        options["recipe"] = Recipe(steps=10, rate=1e-3)
    for share in (0.95, 0.85):
        target = round(share * dense)
        found, policy = twillcore.compress(net, data[0], target=f"cycles={target}", **options)
        assert target * 0.9 < program_cycles(found, data[:1], TINY, policy) <= target
    found, policy = twillcore.compress(net, data[0], target=f"cycles={dense}", **options)
    assert not policy.patterns()
    assert not policy.ranks()


def test_cycles_that_cannot_be_reached_are_refused_before_any_training():
    net, data = network()
    for method in ("low-rank", "trp", "sr-ste"):
        with pytest.raises(TwillcoreError) as caught:
            twillcore.compress(
                net, data[0], target="cycles=99", data=data, config=TINY, method=method,
                trainer=lambda *_: pytest.fail("trained"),
            )  # fmt: skip
        start = "the target of 99 cycles cannot be met: the best possible is "
        assert str(caught.value).startswith(start)
        best = str(caught.value).removeprefix(start).replace(",", "")
        found, policy = twillcore.compress(
            net, data[0], target=f"cycles={best}", data=data, config=TINY, method=method,
            trainer=lambda *_: None,
        )  # fmt: skip
        assert program_cycles(found, data[:1], TINY, policy) == int(best)


def test_sr_ste_starts_from_the_dense_weights():
    net, data = network()
    seen = {}

    def train(module, attach):
        seen["shadow"] = module[0].parametrizations.weight.original.detach().clone()

    found, _ = compress(
        net, data[0], target="2:4", data=data, config=TINY, method="sr-ste", trainer=train
    )
    assert torch.equal(seen["shadow"], net[0].weight)
    assert torch.equal(found[0].weight, project(net[0].weight, Pattern(2, 4)))


def test_bits_are_trained_on_their_grid():
    net, data = network()
    x = torch.cat([x for (x,) in data])
    errors = {}
    for steps in (0, 80):
        found, policy = compress(
            net, data[0], target="bits=3", data=data, config=TINY, method="magnitude",
            recipe=Recipe(steps=steps, rate=2e-3, warm_up=5), taps=["3"],
        )  # fmt: skip
        for name, layer in policy.layers.items():
            assert on_grid(found.get_submodule(name).weight, layer.bits)
        errors[steps] = float((found(x) - net(x)).norm())
    assert errors[80] < errors[0]
    repaired, _ = compress(net, data[0], target="bits=3", data=data, config=TINY)
    assert (repaired(x) - net(x)).norm() < errors[0]


def test_bits_go_to_the_lut_core_where_there_is_one():
    net, data = network()
    _, policy = compress(net, data[0], target="bits=4", data=data, config="z7020")
    assert all(p.lut_share is None and p.lut_bits == p.bits for p in policy.layers.values())


def test_bits_by_ompq_are_within_the_budget():
    net, data = network()
    _, policy = compress(net, data[0], target="bits=4", data=data, config=TINY, method="ompq")
    weights = {"0": 768, "2": 1024, "3": 256}
    assert sum(policy.layers[n].bits * count for n, count in weights.items()) <= 4 * 2048


def test_domino_meets_the_density():
    net, data = network()
    found, policy = compress(
        net, data[0], target="density=0.6", data=data, config=TINY, method="domino",
        layers=["0", "2"],
    )  # fmt: skip
    assert density(found, ["0", "2"]) <= 0.601
    assert policy.layers.keys() == {"0", "2"}
    assert torch.equal(found[3].weight, net[3].weight)


@pytest.mark.parametrize("method", ["mixmatch", "n3h"])
def test_channels_for_the_lut_core(method):
    net, data = network()
    found, policy = compress(
        net, data[0], target="bits=3", data=data, config="z7020", method=method
    )
    shares = {name: layer.lut_share for name, layer in policy.layers.items()}
    assert 0 < shares["2"] < 1
    count = round(shares["2"] * 32)
    assert on_grid(found[2].weight[-count:], 3)
    assert not on_grid(found[2].weight[:-count], 3)
    x = torch.cat([x for (x,) in data])
    assert (found(x) - net(x)).norm() < 0.3 * net(x).norm()


def test_convolutions_are_reconstructed():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 1)).requires_grad_(False)
    data = [(torch.randn(4, 8, 6, 6),)]
    found, policy = compress(net, data[0], target="density=0.5", data=data, config=TINY)
    for name, pattern in policy.patterns().items():
        assert satisfies(as_rows(found.get_submodule(name).weight), pattern)
