"""What the front end refuses, and how it says so: all of one kind in one message."""

import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional

import twillcore
from twillcore.compiler.errors import CompileError
from twillcore.compiler.front import run_front
from twillcore.config import PRESETS
from twillcore.image import ProgramError

TINY = PRESETS["tiny"]
IMAGES = TINY.replace(tap_depth=128)


@pytest.fixture(autouse=True)
def _one_thread_and_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def message(module, *example, calibration=(), config=TINY):
    with pytest.raises(CompileError) as caught:
        run_front(module.eval(), example, config, calibration)
    return str(caught.value)


class Wave(nn.Module):
    def forward(self, x):
        return torch.sin(x)


class Cumulative(nn.Module):
    def forward(self, x):
        return torch.cumsum(x, -1)


def test_all_unsupported_operators_are_listed_with_their_modules():
    module = nn.Sequential(
        nn.Linear(8, 8), Wave(), nn.Linear(8, 8), nn.Sequential(Cumulative(), nn.Linear(8, 8))
    )
    text = message(module, torch.randn(3, 8))
    assert text.startswith("2 unsupported operators:")
    assert re.search(r"^  1: aten.sin.default \[3, 8\]: .*move it", text, re.M)
    assert re.search(r"^  3\.0: aten.cumsum.default \[3, 8\]: .*move it", text, re.M)


def test_operator_that_the_host_could_run_is_mentioned_too():
    module = nn.Sequential(nn.Linear(8, 8), Wave(), nn.Linear(8, 8), Cumulative())
    text = message(module, torch.randn(3, 8))
    assert text.startswith("1 unsupported operator:")
    assert "host would run them" in text
    assert "cumsum" in text


def test_unsupported_operator_after_the_chip_runs_on_the_host():
    front = run_front(nn.Sequential(nn.Linear(8, 8), Wave()), (torch.randn(3, 8),), TINY)
    assert any("sin" in note for note in front.interface.notes)


def test_convolution_is_not_done_by_the_host_in_silence():
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))
    text = message(module, torch.randn(2, 1, 8, 8))
    assert "0: aten.conv2d.default" in text
    assert "configuration 'tiny' has no windows" in text
    assert "unfold" in text


def test_all_convolutions_and_pools_that_do_not_run_are_listed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.c = nn.Conv2d(8, 8, 3, padding=(1, 130), dilation=(1, 130))
            self.d = nn.Conv2d(8, 8, 12)
            self.e = nn.MaxPool2d(3, 2, ceil_mode=True)
            self.f = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
            self.g = nn.AdaptiveAvgPool2d(5)
            self.h = nn.ConvTranspose2d(8, 8, 2)
            self.i = nn.Upsample(scale_factor=2)
            self.j = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
            self.k = nn.AdaptiveMaxPool2d(5)
            self.l = nn.ReplicationPad2d(1)
            self.last = nn.ModuleList(nn.Conv2d(8, 2, 1) for _ in range(12))

        def forward(self, x):
            x = self.stem(x)
            layers = [self.c, self.d, self.e, self.f, self.g, self.h, self.i, self.j, self.k,
                      self.l]  # fmt: skip
            ends = [last(layer(x)) for layer, last in zip(layers, self.last, strict=False)]
            cropped = self.last[10](nn.functional.pad(x, (-1, 0)))
            return (*ends, cropped, self.last[11](torch.cat([x, x], 2)))

    text = message(Net(), torch.randn(1, 3, 12, 12), config=IMAGES)
    assert text.startswith("12 unsupported operators:")
    for path, reason in {
        "c": "a window from -130 to 130 pixels: at most -128 to 127",
        "d": "a kernel of 144 taps: at most 128",
        "e": "ceil_mode=True makes windows that reach beyond the padding",
        "f": "must have count_include_pad=True",
        "g": r"\(12, 12\) pixels do not divide evenly into \(5, 5\)",
        "h": "not transposed",
        "i": "no interpolation",
        "j": "mode 'reflect': zeros only.* use the padding of the convolution",
        "k": r"\(12, 12\) pixels do not divide evenly into \(5, 5\)",
        "l": "mode 'replicate': zeros only",
        r"\(top\)": "can be joined along their channels only",
    }.items():
        assert re.search(rf"^  {path}: aten\..*{reason}", text, re.M), f"{path}\n{text}"
    assert "padding of -1: an image is not cropped" in text


def test_windows_that_reach_too_far():
    far = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, (1, 3), dilation=100))
    assert "a window from 0 to 200 pixels" in message(far, torch.randn(1, 1, 1, 300), config=IMAGES)
    strided = nn.Conv2d(1, 8, (1, 3), 3, dilation=(2, 100))  # not folded, as it is dilated
    text = message(strided, torch.randn(1, 1, 1, 300), config=IMAGES)
    assert "a window from 0 to 200 pixels" in text
    wide = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 3))
    assert "an image of (3, 1100) pixels: at most 1023" in message(
        wide, torch.randn(1, 1, 3, 1100), config=IMAGES
    )


@pytest.mark.parametrize("variance", [0.0, -1.0, float("nan")])
def test_batch_norm_whose_variance_is_not_positive(variance):
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, eps=0.0), nn.Conv2d(8, 8, 1))
    module[1].running_var[2:4] = variance
    text = message(module, torch.randn(1, 3, 6, 6), config=IMAGES)
    if math.isnan(variance):
        assert text == "NaN or infinite weights: 1.running_var: 2 of 8"
    else:
        assert re.search("1: .*the running variance of 2 of 8 channels is not positive", text)


def test_batch_norm_in_training_mode_is_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
            self.norm = nn.BatchNorm2d(8, track_running_stats=False)

        def forward(self, x):
            return self.b(self.norm(self.a(x)))

    text = message(Net(), torch.randn(2, 3, 6, 6), config=IMAGES)
    assert re.search("norm: .*must be in eval mode, with running statistics", text)


def test_functions_without_a_table_are_all_named():
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 1),
        nn.Sigmoid(), nn.Conv2d(8, 8, 1),
    )  # fmt: skip
    config = IMAGES.replace(function_table=False)
    text = message(module, torch.randn(2, 3, 6, 6), config=config)
    assert "'tiny' has no function table" in text
    assert "silu in 0; sigmoid in 4" in text


def test_products_of_activations_without_vector_engine():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            x = self.a(x)
            return self.b(x * torch.sigmoid(x))

    config = IMAGES.replace(wide_depth=0, lane_depth=0, norm_depth=0, operand_depth=0)
    assert "has no vector engine" in message(Net(), torch.randn(1, 3, 6, 6), config=config)


def test_channel_mean_has_a_suggestion():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            x = self.a(x)
            return self.b(x - x.mean(-1, keepdim=True))

    assert "use nn.LayerNorm" in message(Net(), torch.randn(3, 8))


def test_causal_attention_is_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, x):
            x = self.a(x).view(1, 4, 2, 4).transpose(1, 2)
            return functional.scaled_dot_product_attention(x, x, x, is_causal=True) + x

    assert "causal" in message(Net(), torch.randn(1, 4, 8))


def test_mask_with_different_rows_is_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, x, mask):
            x = self.a(x).view(1, 4, 2, 4).transpose(1, 2)
            return functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    assert "same for all rows" in message(Net(), torch.randn(1, 4, 8), mask)
    assert "additive mask" in message(Net(), torch.randn(1, 4, 8), torch.randn(4, 4))


def test_attention_weights_as_output_are_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x)

    assert "need_weights=False" in message(Net(), torch.randn(2, 5, 16))


def test_linear_along_rows_is_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(5, 5)

        def forward(self, x):
            return self.b(self.a(x).transpose(1, 2))

    assert "along the channels" in message(Net(), torch.randn(2, 5, 8))


def test_nothing_for_the_chip():
    assert "nothing runs on the chip" in message(Wave(), torch.randn(3, 8))


def test_dynamic_shapes():
    module = nn.Linear(8, 8).eval()
    exported = torch.export.export(
        module, (torch.randn(3, 8),), dynamic_shapes=({0: torch.export.Dim("rows")},)
    )
    with pytest.raises(CompileError, match="dynamic shapes are not supported"):
        run_front(exported, (torch.randn(3, 8),), TINY)


def test_exported_program_is_accepted():
    module = nn.Linear(8, 8).eval()
    exported = torch.export.export(module, (torch.randn(3, 8),))
    run_front(exported, (torch.randn(3, 8),), TINY)
    with pytest.raises(CompileError, match=r"input_1 must be \[3, 8\], not \[4, 8\]"):
        run_front(exported, (torch.randn(4, 8),), TINY)


def test_module_that_branches_on_data():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, x):
            return self.a(x) if x.sum() > 0 else x

    assert "torch.export cannot capture the module" in message(Net(), torch.randn(3, 8))


def test_weights_that_are_no_numbers():
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        module[0].weight[1, 2] = float("nan")
        module[1].bias[:3] = float("inf")
    text = message(module, torch.randn(3, 8))
    assert text == "NaN or infinite weights: 0.weight: 1 of 64; 1.bias: 3 of 8"


def test_zero_size():
    assert "input 0 has a dimension of size zero" in message(nn.Linear(8, 8), torch.randn(0, 8))


def test_calibration_of_other_shapes_types_and_with_nan():
    good, bad = torch.randn(3, 8), torch.randn(3, 8)
    bad[0, 0] = float("nan")
    samples = [(good,), (torch.randn(4, 8),), (good.double(),), (bad,), (good, good)]
    text = message(nn.Linear(8, 8), good, calibration=samples)
    assert text == (
        "calibration: sample 1: input_1 must be torch.float32 [3, 8], not torch.float32 [4, 8];"
        " sample 2: input_1 must be torch.float32 [3, 8], not torch.float64 [3, 8];"
        " sample 3: input_1 has 1 NaN or infinite values; sample 4 has 2 tensors, not 1"
    )


def test_calibration_that_overflows_names_the_layer():
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        module[0].weight.fill_(3e38)
    assert "linear: 24 values" in message(module, torch.ones(3, 8))


def test_accumulator_that_could_overflow():
    config = TINY.replace(accumulator_bits=20)
    module = nn.Linear(200, 4, bias=False)
    nn.init.ones_(module.weight)
    text = message(module, torch.randn(3, 200), config=config)
    assert text.startswith("Linear (top): the accumulator could overflow: sums over 200 inputs")


def test_configuration_without_layer_norm():
    config = TINY.replace(norm_depth=0)
    module = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8))
    assert "has no layer norm" in message(module, torch.randn(3, 8), config=config)


def test_configuration_without_operand_memory():
    config = TINY.replace(operand_depth=0)
    module = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    assert "has no operand memory" in message(module, torch.randn(2, 5, 16), config=config)


def test_inputs_of_a_program_are_checked_together():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(6, 8)

        def forward(self, x, y):
            return self.a(x) + self.b(y)

    program = twillcore.compile(Net().eval(), (torch.randn(3, 8), torch.randn(3, 6)), "tiny")
    with pytest.raises(ProgramError, match=re.escape("inputs must be 2 (x, y), not 1")):
        program.run(torch.randn(3, 8), engine="reference")
    with pytest.raises(ProgramError) as caught:
        program.run(torch.randn(4, 8), torch.ones(3, 6, dtype=torch.int64), engine="reference")
    assert str(caught.value) == (
        "x: shape must be (3, 8), not (4, 8); y: type must be float32, not int64"
    )
    with pytest.raises(ProgramError, match="x: 24 NaN or infinite"):
        program.run(torch.full((3, 8), torch.inf), torch.ones(3, 6), engine="reference")


def test_image_without_network_is_no_program(tmp_path):
    program = twillcore.compile(nn.Linear(8, 8).eval(), torch.randn(3, 8), "tiny")
    image = program.image
    object.__setattr__(image, "host", {})
    image.save(tmp_path / "bare.twill")
    with pytest.raises(ProgramError, match="sections graph, interface, prefix, suffix are missing"):
        twillcore.load(tmp_path / "bare.twill")
