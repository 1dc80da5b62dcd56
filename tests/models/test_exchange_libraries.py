"""Weights as torchao and brevitas themselves leave them."""

import brevitas.nn
import pytest
import torch
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

import twillcore
from twillcore.models.exchange import is_foreign, plain
from twillcore.models.qat import on_grid


def torchao_weight_only():
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    quantize_(net, Int8WeightOnlyConfig())
    return net.eval(), 8


def brevitas_layers():
    net = nn.Sequential(
        brevitas.nn.QuantLinear(16, 32, bias=True, weight_bit_width=4),
        nn.ReLU(),
        brevitas.nn.QuantLinear(32, 8, bias=True, weight_bit_width=4),
    )
    return net.eval(), 4


@pytest.mark.filterwarnings("ignore")  # of the libraries themselves
@pytest.mark.parametrize("make", [torchao_weight_only, brevitas_layers])
def test_models_of_other_libraries_compile_as_they_are(make):
    torch.manual_seed(0)
    net, bits = make()
    x = torch.randn(4, 16)
    assert is_foreign(net)
    folded = plain(net)
    assert all(type(layer) is nn.Linear for layer in (folded[0], folded[2]))
    if bits < 8:  # torchao's 8 bits go to -128, the chip's to -127
        assert all(on_grid(folded[n].weight, bits) for n in (0, 2))
    expected = net(x).detach()
    torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-5)
    found = twillcore.compile(net, x, "tiny").run(x, engine="functional").outputs[0]
    assert (found - expected).norm() < 0.03 * expected.norm()
