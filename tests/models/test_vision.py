"""Convolutional networks: torchvision's names, live activations, weights from file and cache."""

import pytest
import torch
from torch import nn

from twillcore.config import PRESETS
from twillcore.errors import TwillcoreError
from twillcore.models.cost import layer_shapes
from twillcore.models.digits_cnn import DigitsCNN, digits_accuracy, train_digits_cnn
from twillcore.models.layout import as_rows
from twillcore.models.mobilenet_v2 import MobileNetV2
from twillcore.models.nm import satisfies
from twillcore.models.pattern import Pattern
from twillcore.models.policy import default_policy
from twillcore.models.resnet18 import ResNet18
from twillcore.models.vision import VISION_NETWORKS, load_vision_network


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def norm(name, channels):
    """The entries of a batch norm in a state dict."""
    parts = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{name}.{part}": (channels,) for part in parts}, f"{name}.num_batches_tracked": ()}


def resnet18_entries():
    """The state dict of torchvision.models.resnet18, written out."""
    entries = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}
    inputs = 64
    for stage, channels in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            entries[f"{name}.conv1.weight"] = (channels, inputs, 3, 3)
            entries |= norm(f"{name}.bn1", channels)
            entries[f"{name}.conv2.weight"] = (channels, channels, 3, 3)
            entries |= norm(f"{name}.bn2", channels)
            if inputs != channels:
                entries[f"{name}.downsample.0.weight"] = (channels, inputs, 1, 1)
                entries |= norm(f"{name}.downsample.1", channels)
            inputs = channels
    return {**entries, "fc.weight": (1000, 512), "fc.bias": (1000,)}


def mobilenet_v2_entries():
    """The state dict of torchvision.models.mobilenet_v2, written out."""
    entries = {"features.0.0.weight": (32, 3, 3, 3), **norm("features.0.1", 32)}
    entries["features.1.conv.0.0.weight"] = (32, 1, 3, 3)
    entries |= norm("features.1.conv.0.1", 32)
    entries["features.1.conv.1.weight"] = (16, 32, 1, 1)
    entries |= norm("features.1.conv.2", 16)
    outputs = (24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)
    for number, (narrow, out) in enumerate(zip((16, *outputs), outputs, strict=False), 2):
        name, wide = f"features.{number}.conv", 6 * narrow
        entries[f"{name}.0.0.weight"] = (wide, narrow, 1, 1)
        entries |= norm(f"{name}.0.1", wide)
        entries[f"{name}.1.0.weight"] = (wide, 1, 3, 3)
        entries |= norm(f"{name}.1.1", wide)
        entries[f"{name}.2.weight"] = (out, wide, 1, 1)
        entries |= norm(f"{name}.3", out)
    entries["features.18.0.weight"] = (1280, 320, 1, 1)
    entries |= norm("features.18.1", 1280)
    return {**entries, "classifier.1.weight": (1000, 1280), "classifier.1.bias": (1000,)}


@pytest.mark.parametrize(
    ("build", "entries", "parameters", "macs"),
    [  # figures that torchvision states: 11,689,512 and 1.814 G; 3,504,872 and 0.301 G
        (ResNet18, resnet18_entries(), 11_689_512, 1_814_073_344),
        (MobileNetV2, mobilenet_v2_entries(), 3_504_872, 300_774_272),
    ],
)
def test_state_dicts_of_torchvision_load(build, entries, parameters, macs):
    with torch.device("meta"):
        module = build()
    state = {name: torch.empty(shape, device="meta") for name, shape in entries.items()}
    module.load_state_dict(state, strict=True, assign=True)
    assert list(module.state_dict()) == list(entries)  # in torchvision's order, too
    assert sum(p.numel() for p in module.parameters()) == parameters
    shapes = layer_shapes(module.eval(), (torch.empty(1, 3, 224, 224, device="meta"),))
    assert sum(shape.rows * shape.weights for shape in shapes.values()) == macs


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2"])
def test_random_networks_neither_die_nor_explode(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TWILLCORE_CACHE", str(tmp_path))
    module = load_vision_network(name)
    network = VISION_NETWORKS[name]
    spread, alive = {}, {}

    def note(label):
        def hook(layer, inputs, out):
            spread[label], alive[label] = float(out.std()), float((out > 0).float().mean())

        return hook

    for label, layer in module.named_modules():
        if isinstance(layer, nn.BatchNorm2d | nn.Linear):
            layer.register_forward_hook(note(label))
    first, second = (module(network.random(seed))[0] for seed in (1, 2))
    assert 0.3 < min(spread.values()) < max(spread.values()) < 3
    assert 0.3 < min(alive.values()) < max(alive.values()) < 0.7
    assert float((first - second).std()) > 0.05 * float(first.std())
    # from the cache now, and the same
    again = load_vision_network(name)
    assert torch.equal(again(network.random(1))[0], first)


def test_random_weights_follow_from_a_seed():
    make = VISION_NETWORKS["mobilenetv2"].make
    a, b = (make(lambda done, total, text: None).state_dict() for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_weights_of_another_network_are_refused(tmp_path):
    file = tmp_path / "w.pt"
    torch.save(DigitsCNN().state_dict(), file)
    load_vision_network("digits-cnn", file)
    with pytest.raises(TwillcoreError, match=r"w\.pt: no weights of resnet18: Error.* loading"):
        load_vision_network("resnet18", file)
    file.write_text("no weights")
    with pytest.raises(TwillcoreError, match=r"w\.pt: no weights of digits-cnn: "):
        load_vision_network("digits-cnn", file)
    torch.save([1, 2], file)
    with pytest.raises(TwillcoreError, match=r"w\.pt: no weights of digits-cnn: "):
        load_vision_network("digits-cnn", file)
    with pytest.raises(TwillcoreError, match=r"none\.pt: no weights of digits-cnn: .*No such file"):
        load_vision_network("digits-cnn", tmp_path / "none.pt")


def test_digits_cnn_has_everything_and_learns():
    module = DigitsCNN().eval()
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    assert {m.stride for m in convolutions} == {(1, 1), (2, 2)}
    assert {m.kernel_size for m in convolutions} == {(1, 1), (3, 3)}
    assert any(m.groups == m.in_channels > 1 for m in convolutions)
    kinds = {type(m) for m in module.modules()}
    assert {nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.ReLU6, nn.ReLU} <= kinds
    assert digits_accuracy(train_digits_cnn(epochs=4)) > 0.9


def test_trained_digits_cnn_is_accurate():
    assert digits_accuracy(load_vision_network("digits-cnn")) >= 0.99


def test_pruning_convolutions_keeps_the_pattern_in_every_tap():
    module = load_vision_network("digits-cnn")
    before = {name: w.clone() for name, w in module.state_dict().items()}
    policy = default_policy(module, "2:4")
    policy.check(module, PRESETS["u256"])
    policy.enforce(module)
    for name, layer in policy.layers.items():
        weight = module.get_submodule(name).weight
        if layer.pattern is None:
            assert torch.equal(weight, before[f"{name}.weight"])
            continue
        assert satisfies(as_rows(weight), Pattern(2, 4))
        if weight.ndim == 4:
            taps = weight.permute(0, 2, 3, 1)  # every tap alone has the pattern
            assert (taps.unflatten(-1, (-1, 4)) != 0).sum(-1).max() == 2
