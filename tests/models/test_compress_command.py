"""``twillcore compress`` and ``twillcore pareto``, from arguments to files."""

import json

import pytest
import torch
from typer.testing import CliRunner

from twillcore.cli import app
from twillcore.commands.candidate import load_candidate
from twillcore.flow import program_cycles
from twillcore.models import subjects, vision
from twillcore.models.digits_cnn import DigitsCNN
from twillcore.models.digits_vit import DigitsViT
from twillcore.models.nm import satisfies
from twillcore.models.pattern import Pattern
from twillcore.models.policy import LayerPolicy, Policy
from twillcore.models.qat import on_grid


@pytest.fixture(autouse=True)
def untrained(monkeypatch, tmp_path):
    """Let the dense network be there at once."""
    torch.manual_seed(0)
    network = DigitsViT().eval()
    monkeypatch.setattr(subjects, "train_dense", lambda *_, **__: network)
    monkeypatch.setattr(vision, "train_digits_cnn", lambda **_: DigitsCNN().eval())
    monkeypatch.setenv("TWILLCORE_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_candidates_and_their_picture(tmp_path):
    one, family = tmp_path / "one", tmp_path / "family"
    options = ("--method", "magnitude", "--config", "tiny", "--json")
    done = invoke("compress", "digits-vit", "--target", "2:4", "-o", one, *options)
    assert done.exit_code == 0, done.output
    figures = json.loads((one / "figures.json").read_text())
    assert figures["density"] == pytest.approx(0.5)
    assert 1 < figures["speed_up"] < 2
    weights = torch.load(one / "model.pt", weights_only=True)
    policy = Policy.load(one / "policy.toml")
    assert len(policy.layers) == 18
    assert all(satisfies(weights[f"{n}.weight"], p) for n, p in policy.patterns().items())

    done = invoke("compress", "digits-vit", "--target", "2:4", "--method", "idp", "--steps", 1,
                  "--config", "tiny", "-o", family)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in family.iterdir()) == ["2of4", "3of4"]
    weights = torch.load(family / "2of4" / "model.pt", weights_only=True)
    assert satisfies(weights["blocks.0.up.weight"], Pattern(2, 4))

    done = invoke("pareto", one, family, "-o", tmp_path / "pareto.png", "--json")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "pareto.png").stat().st_size > 10_000
    folders = [one, family / "2of4", family / "3of4"]
    rows = json.loads(done.stdout)
    assert [row["folder"] for row in rows] == [str(folder) for folder in folders]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet", "--target", "2:4"), "no network 'resnet' to compress"),
        (("digits-vit", "--target", "cycles=9"), "cannot be met: the best possible is"),
        (("digits-vit", "--target", "5:4"), "N:M sparsity needs 1 <= N <= M, not 5:4"),
        (("digits-vit", "--target", "3:16"), "16 does not divide the block of 8"),
        (
            ("digits-vit", "--target", "2:4", "--method", "domino"),
            "method domino takes a target of density, not N:M",
        ),
        (
            ("digits-vit", "--target", "bits=4", "--method", "n3h"),
            "method n3h needs a LUT core: configuration 'u256' has none",
        ),
        (("digits-vit", "--target", "2:4", "--halving"), "--halving is for --method idp"),
        (
            ("digits-vit", "--target", "2:4", "--method", "idp"),
            "idp needs a target N:M and --steps",
        ),
    ],
)
def test_bad_input(tmp_path, arguments, message):
    done = invoke("compress", *arguments, "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert message in str(done.exception)


@pytest.mark.parametrize(
    ("arguments", "entry"),
    [
        (("--target", "2:4", "--method", "sr-ste", "--steps", 1), 'sparsity = "2:4"'),
        (("--target", "bits=4", "--method", "ompq"), "bits = 8"),
        (("--target", "cycles=24000", "--method", "low-rank"), "rank = 8"),
        (("--target", "product-cycles=13000", "--method", "trp", "--steps", 1), "rank = 8"),
    ],
)
def test_methods(tmp_path, arguments, entry):
    folder = tmp_path / "out"
    options = ("--config", "tiny", "-o", folder, "--json")
    done = invoke("compress", "digits-vit", *arguments, *options)
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    assert figures["method"] == arguments[3]
    assert ("sad" in figures) == ("--steps" in arguments)
    assert entry in (folder / "policy.toml").read_text()
    subject = subjects.find_subject("digits-vit")
    module, policy = load_candidate(folder, subject)
    assert subject.score(module) == figures["score"]
    assert program_cycles(module, subject.samples(), "tiny", policy) == figures["cycles"]


@pytest.mark.parametrize("method", ["reconstruction", "mixmatch"])
def test_a_convolutional_network(tmp_path, method):
    target = "2:4" if method == "reconstruction" else "bits=4"
    folder = tmp_path / "out"
    done = invoke("compress", "digits-cnn", "--target", target, "--method", method, "-o", folder,
                  "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    assert figures["config"] == "z7020"
    assert figures["speed_up"] > 1
    policy = Policy.load(folder / "policy.toml")
    assert "stem.0" not in policy.layers
    assert any(layer.lut_share for layer in policy.layers.values()) == (method == "mixmatch")
    weights = torch.load(folder / "model.pt", weights_only=True)
    sizes = {n: weights[f"{n}.weight"].numel() for n in policy.layers}
    if method == "mixmatch":
        bits = sum(size * (8 - 4 * policy.layers[n].lut_share) for n, size in sizes.items())
        assert bits / 8 <= figures["bytes"] < sum(sizes.values())  # those of the DSP core in tiles


@pytest.mark.parametrize(
    ("network", "options", "target", "near"),
    [
        ("digits-vit", (), 7000, 0.98),
        ("digits-vit", ("--method", "sr-ste", "--steps", 1), 9000, 0.98),
        ("digits-vit", ("--method", "low-rank"), 8500, 0.98),
        ("digits-cnn", (), 4000, 0.95),
    ],
)
def test_cycles_are_those_of_the_program(tmp_path, network, options, target, near):
    done = invoke("compress", network, "--target", f"cycles={target}", *options, "-o", tmp_path,
                  "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert near * target < json.loads(done.stdout)["cycles"] <= target


def test_a_policy_instead_of_a_target(tmp_path):
    layers = {"blocks.1.up": LayerPolicy("1:4"), "blocks.1.down": LayerPolicy(bits=3)}
    policy = Policy("mine", layers)
    policy.save(tmp_path / "mine.toml")
    options = ("--policy", tmp_path / "mine.toml", "--config", "tiny", "-o", tmp_path / "out")
    done = invoke("compress", "digits-vit", *options)
    assert done.exit_code == 0, done.output
    weights = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    dense = subjects.train_dense().state_dict()
    assert satisfies(weights["blocks.1.up.weight"], Pattern(1, 4))
    assert on_grid(weights["blocks.1.down.weight"], 3)
    assert torch.equal(weights["blocks.0.up.weight"], dense["blocks.0.up.weight"])
    assert Policy.load(tmp_path / "out" / "policy.toml").layers == policy.layers
    both = invoke("compress", "digits-vit", *options, "--target", "2:4")
    assert str(both.exception) == "give either --target or --policy"
    Policy("other", {"encoder": LayerPolicy("1:4")}).save(tmp_path / "mine.toml")
    other = invoke("compress", "digits-vit", *options)
    assert str(other.exception) == "policy for 'other': encoder: the network has no such layer"


def test_weights_to_start_from(tmp_path):
    options = ("--target", "2:4", "--config", "tiny", "--method", "magnitude")
    first, second = tmp_path / "first", tmp_path / "second"
    assert invoke("compress", "digits-vit", *options, "-o", first).exit_code == 0
    start = ("--start", first / "model.pt")
    assert invoke("compress", "digits-vit", *options, "-o", second, *start).exit_code == 0
    a, b = (torch.load(folder / "model.pt", weights_only=True) for folder in (first, second))
    assert all(torch.equal(a[name], b[name]) for name in a)
    torch.save({"other": torch.ones(1)}, tmp_path / "other.pt")
    wrong = invoke(
        "compress", "digits-vit", *options, "-o", second, "--start", tmp_path / "other.pt"
    )
    assert "other.pt: no weights of this network" in str(wrong.exception)


def test_folders_without_candidates(tmp_path):
    done = invoke("pareto", tmp_path, "-o", tmp_path / "p.png")
    assert "no figures.json here" in str(done.exception)
