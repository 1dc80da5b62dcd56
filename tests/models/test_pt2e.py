"""Quantisation with torchao's pt2e in the chip's arithmetic: masks and grids reach the program."""

import pytest
import torch
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import (
    convert_pt2e,
    prepare_pt2e,
    prepare_qat_pt2e,
)

import twillcore
from twillcore.errors import TwillcoreError
from twillcore.models.exchange import plain
from twillcore.models.nm import satisfies
from twillcore.models.pattern import Pattern
from twillcore.models.pt2e import ChipQuantizer
from twillcore.models.qat import on_grid, quantise_rows
from twillcore.models.sr_ste import sparsify


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval()


def images():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 1)).eval()


def exported(net, x):
    return torch.export.export(net, (x,)).module()


@pytest.mark.parametrize(
    ("make", "shape", "config"),
    [(network, (4, 16), "tiny"), (images, (1, 8, 6, 6), "z7020")],
)
def test_post_training_weights_are_those_of_the_chip(make, shape, config):
    net, x = make(), torch.randn(*shape)
    prepared = prepare_pt2e(exported(net, x), ChipQuantizer({"0": 4}))
    prepared(x)
    converted = convert_pt2e(prepared)
    weights = {p.shape: p for p in plain(converted).parameters() if p.dim() > 1}
    for layer, bits in ((net[0], 4), (net[2], 8)):
        rows = quantise_rows(layer.weight.detach().flatten(1), bits)
        torch.testing.assert_close(weights[layer.weight.shape].flatten(1), rows)
    program = twillcore.compile(converted, x, config)
    found = program.run(x, engine="functional").outputs[0]
    expected = converted(x)
    assert (found - expected).norm() < 0.03 * expected.norm()


def test_training_keeps_masks_and_grids_and_improves():
    net, x = network(), torch.randn(32, 16)
    wanted = net(x).detach()
    sparse = sparsify(net, Pattern(2, 4))
    prepared = prepare_qat_pt2e(exported(sparse, x), ChipQuantizer(4, training=True))
    optimiser = torch.optim.Adam(prepared.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = (prepared(x) - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    converted = convert_pt2e(prepared)
    layers = [layer for layer in twillcore.compile(converted, x, "tiny").image.layers if layer.macs]
    assert [layer.useful_macs / layer.macs for layer in layers] == [0.5, 0.5]
    weights = [p for p in plain(converted).parameters() if p.dim() == 2]
    assert len(weights) == 2
    assert all(satisfies(w, Pattern(2, 4)) and on_grid(w, 4) for w in weights)


@pytest.mark.parametrize("bits", [1, 9, {"0": 4, "2": 16}])
def test_bits_are_refused(bits):
    with pytest.raises(TwillcoreError, match=r"bits must be 2\.\.8"):
        ChipQuantizer(bits)


def test_all_unknown_layers_are_named():
    x = torch.randn(4, 16)
    with pytest.raises(TwillcoreError, match=r"no linear or convolution layer: 1, encoder\.0"):
        prepare_pt2e(exported(network(), x), ChipQuantizer({"encoder.0": 4, "1": 4, "0": 4}))
