"""Modules through the front end: the quantised graph computes nearly what torch computes."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

import twillcore
from twillcore.compiler.front import run_front
from twillcore.compiler.host import chip_arguments
from twillcore.compiler.pipeline import compile_graph
from twillcore.config import PRESETS
from twillcore.sim.engine import get_engine
from twillcore.sim.reference import run_graph

TINY = PRESETS["tiny"]


@pytest.fixture(autouse=True)
def _one_thread_and_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def outputs_of(front, inputs):
    """Run prefix, reference and suffix; the functional engine must agree."""
    with torch.no_grad():
        results = front.programs.prefix(*inputs)
        integers, masks = chip_arguments(front.interface, results)
        values = run_graph(front.graph, {**integers, **masks})
        image = compile_graph(front.graph)
        executed = get_engine("functional").run(image, {**integers, **masks}).outputs
        for name, value in values.items():
            assert (executed[name] == value).all(), f"{name}: functional differs from reference"
        chip = [
            torch.from_numpy(t.dequantise(values[t.name]).copy())
            for t in front.interface.chip_outputs
        ]
        return front.programs.suffix(*chip, *results[len(front.programs.sources) :])


def check(module, *calibration, cosine=0.995, config=TINY, count=8):
    """Compile ``module`` with random inputs like the example, compare on other ones."""
    module.eval()
    example = calibration
    samples = [
        tuple(torch.randn_like(x) if x.is_floating_point() else x for x in example)
        for _ in range(count)
    ]
    front = run_front(module, example, config, [example, *samples])
    inputs = tuple(torch.randn_like(x) if x.is_floating_point() else x for x in example)
    got = outputs_of(front, inputs)
    with torch.no_grad():
        wanted = module(*inputs)
    wanted = torch.utils._pytree.tree_leaves(wanted)
    for a, b in zip(wanted, got, strict=True):
        assert a.shape == b.shape
        similarity = functional.cosine_similarity(a.flatten().double(), b.flatten().double(), 0)
        assert similarity > cosine, f"cosine {similarity}\n{front.graph}"
    return front


def kinds(front):
    return [type(op).__name__ for op in front.graph.ops]


ACTIVATIONS = [
    nn.ReLU, nn.GELU, lambda: nn.GELU("tanh"), nn.SiLU, nn.Sigmoid, nn.Tanh, nn.ELU,
    nn.LeakyReLU, nn.Hardswish, nn.Softplus, nn.Mish, nn.ReLU6, nn.Identity,
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: getattr(a, "__name__", "tanh"))
def test_mlp_fuses_every_activation(activation):
    module = nn.Sequential(nn.Linear(13, 27), activation(), nn.Linear(27, 5), activation())
    front = check(module, torch.randn(9, 13))
    assert kinds(front) == ["Linear", "Linear"]


def test_in_place_activation():
    module = nn.Sequential(nn.Linear(13, 27), nn.ReLU(inplace=True), nn.Linear(27, 5))
    assert kinds(check(module, torch.randn(9, 13))) == ["Linear", "Linear"]


def test_vector_and_four_dimensions():
    check(nn.Sequential(nn.Linear(13, 7), nn.ReLU(), nn.Linear(7, 5)), torch.randn(13))
    check(nn.Linear(13, 7), torch.randn(2, 3, 5, 13))


def test_batch_norm_and_factors_are_folded():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 20), nn.Linear(20, 6)
            self.before, self.between = nn.BatchNorm1d(12), nn.BatchNorm1d(20)

        def forward(self, x):
            x = functional.relu(self.between(self.a(self.before(x))) * 2 + 0.5)
            return -self.b(functional.dropout(x / 3, 0.5, self.training)) - 1

    net = Net()
    net.train()
    for _ in range(20):
        net(torch.randn(32, 12) * 3 + 1)
    assert kinds(check(net, torch.randn(9, 12))) == ["Linear", "Linear"]


def test_parametrised_weight_is_a_constant():
    module = nn.Linear(16, 8)
    prune.random_unstructured(module, "weight", 0.5)
    assert kinds(check(module, torch.randn(5, 16))) == ["Linear"]


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_transformer_encoder_layer(norm_first, batch_first, batch):
    module = nn.TransformerEncoderLayer(
        24, 3, 40, batch_first=batch_first, norm_first=norm_first, activation="gelu"
    )
    shape = (batch, 7, 24) if batch_first else (7, batch, 24)
    front = check(module, torch.randn(shape))
    assert kinds(front).count("Attention") == 1
    assert "Elementwise" not in kinds(front)


def test_transformer_encoder_with_padding_mask():
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=False)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder

        def forward(self, x, padding):
            y = self.encoder(x, src_key_padding_mask=padding)
            keep = (~padding).unsqueeze(-1).float()
            return functional.normalize((y * keep).sum(1) / keep.sum(1), dim=-1)

    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[0, 6:] = True
    front = check(Net(), torch.randn(2, 9, 16), padding)
    assert len(front.graph.masks) == 2
    other = (torch.randn(2, 9, 16), padding.flip(0))
    with torch.no_grad():
        (got,), wanted = outputs_of(front, other), front.captured.module(*other)
    assert functional.cosine_similarity(got, wanted).min() > 0.99


class Attention(nn.Module):
    """Heads by hand, in the ways people write them."""

    def __init__(self, style, channels=20, heads=2, keys=None):
        super().__init__()
        self.style, self.heads = style, heads
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(keys or channels, 2 * channels, bias=False)
        self.out = nn.Linear(channels, channels)

    def forward(self, x, mask=None, memory=None):
        batch, rows, channels = x.shape
        d = channels // self.heads
        q = self.q(x).view(batch, rows, self.heads, d).transpose(1, 2)
        memory = x if memory is None else memory
        k, v = self.kv(memory).chunk(2, dim=-1)
        k, v = (y.reshape(batch, -1, self.heads, d).permute(0, 2, 1, 3) for y in (k, v))
        if self.style == "sdpa":
            y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            scores = q @ k.transpose(-1, -2) / d**0.5
            if self.style == "masked_fill" and mask is not None:
                scores = scores.masked_fill(~mask, float("-inf"))
            elif self.style == "where" and mask is not None:
                scores = torch.where(mask, scores, -1e9)
            elif mask is not None:
                scores = scores + mask
            y = functional.dropout(scores.softmax(-1), 0.1, self.training) @ v
        return self.out(y.transpose(1, 2).reshape(batch, rows, channels))


@pytest.mark.parametrize("style", ["sdpa", "matmul", "masked_fill", "where"])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_by_hand(style, masked):
    keep = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    keep[1, ..., 4:] = False
    mask = (1.0 - keep.float()) * -1e9 if style == "matmul" else keep
    inputs = (torch.randn(2, 7, 20), *([mask] if masked else []))
    if style == "matmul" and masked:  # an additive mask is real: it must not become random

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.attention = Attention(style)

            def forward(self, x, keep):
                return self.attention(x, (1.0 - keep.float()) * -1e9)

        check(Net(), torch.randn(2, 7, 20), keep, cosine=0.98)
        return
    assert "Attention" in kinds(check(Attention(style), *inputs, cosine=0.98))


def test_cross_attention_and_heads_of_odd_width():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Attention("sdpa", 15, 3, keys=9)

        def forward(self, x, memory):
            return self.attention(x, None, memory)

    front = check(Net(), torch.randn(2, 7, 15), torch.randn(2, 11, 9), cosine=0.98)
    attention = next(op for op in front.graph.ops if type(op).__name__ == "Attention")
    assert (attention.heads, attention.head_channels) == (3, 8)


def test_multihead_attention_with_weights_unused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(24, 3, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    check(Net(), torch.randn(2, 7, 24), cosine=0.98)


def test_single_head_products():
    class Net(nn.Module):
        def forward(self, q, k, v):
            return torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)) / 4, -1), v)

    check(Net(), torch.randn(2, 5, 16), torch.randn(2, 9, 16), torch.randn(2, 9, 16), cosine=0.98)


def test_products_of_activations():
    class Net(nn.Module):
        def forward(self, a, b, c):
            return torch.bmm(a, b), a @ c.transpose(1, 2) * 0.5

    shapes = (2, 5, 11), (2, 11, 6), (2, 9, 11)
    assert kinds(check(Net(), *map(torch.randn, shapes))) == ["MatMul", "MatMul"]


def test_softmax_alone():
    check(nn.Softmax(-1), torch.randn(3, 10) * 3)
    check(nn.Sequential(nn.Linear(12, 10), nn.Softmax(-1)), torch.randn(3, 12) * 3)


def test_layer_norm_without_parameters():
    class Net(nn.Module):
        def forward(self, x):
            return functional.layer_norm(x * 3, (19,)), functional.layer_norm(-x, (19,))

    check(Net(), torch.randn(2, 6, 19))


def test_gated_products_and_sums():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.up, self.down = nn.Linear(12, 30), nn.Linear(12, 30), nn.Linear(30, 12)

        def forward(self, x):
            y = self.down(functional.silu(self.gate(x)) * self.up(x)) + x
            return y, y - 2 * x, functional.relu(y)

    check(Net(), torch.randn(2, 6, 12))


def test_activation_alone_and_residual_with_activation():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 12)

        def forward(self, x):
            x = functional.gelu(x + self.a(x))
            x = functional.relu(x + self.b(x))
            return functional.tanh(functional.layer_norm(x, (12,)))

    check(Net(), torch.randn(2, 6, 12))


def test_classifier_on_the_first_row_runs_on_the_host():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.norm = nn.Embedding(50, 16), nn.LayerNorm(16)
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
            self.head = nn.Linear(16, 3)

        def forward(self, ids):
            x = self.norm(self.embedding(ids) + torch.arange(ids.shape[1])[:, None] / 10)
            return self.head(self.layer(x)[:, 0])

    front = check(Net(), torch.randint(0, 50, (2, 8)))
    assert any("head: linear" in note for note in front.interface.notes)
    assert any("embedding: embedding" in note for note in front.interface.notes)


def test_constant_positions_in_the_middle():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 16), nn.Linear(16, 8)
            self.position = nn.Parameter(torch.randn(6, 16))

        def forward(self, x):
            return self.b(self.a(x) + self.position)

    check(Net(), torch.randn(3, 6, 12))


def test_dead_channels_and_large_biases():
    module = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.LayerNorm(8))
    with torch.no_grad():
        module[0].weight[:5] = 0
        module[0].bias[0] = 3.0
        module[0].bias[1:4] = 0
        module[0].weight[6] = 1e-12
        module[0].bias[6] = 2.0
        module[2].weight[:, 3] = 0
        module[3].weight[2] = 0
    check(module, torch.randn(6, 12))


def test_zero_network():
    module = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    front = run_front(module, (torch.randn(3, 8),), TINY)
    assert (outputs_of(front, (torch.randn(3, 8),))[0] == 0).all()


@pytest.mark.parametrize("kept", [1, 2, 4, 8])
def test_sparsity_is_found_in_the_weights(kept):
    module = nn.Linear(44, 21)
    with torch.no_grad():
        blocks = functional.pad(module.weight, (0, 4)).reshape(21, 6, 8)
        blocks = torch.where(blocks.abs().argsort(-1).argsort(-1) >= 8 - kept, blocks, 0)
        module.weight.copy_(blocks.reshape(21, 48)[:, :44])
    front = check(module, torch.randn(5, 44))
    assert front.graph.ops[0].beats == kept


@pytest.mark.parametrize("levels", [1, 3, 7, 31])
def test_weights_of_few_bits_are_exact(levels):
    module = nn.Linear(40, 12)
    step = torch.rand(12, 1) + 0.1
    with torch.no_grad():
        integers = torch.randint(-levels, levels + 1, (12, 40))
        integers[:, 0] = levels
        module.weight.copy_(integers * step)
    front = run_front(module, (torch.ones(3, 40),), TINY)
    weight = torch.from_numpy(front.graph.ops[0].weight.astype("int64"))
    assert torch.equal(weight, integers * (127 // levels))


def test_program_is_saved_and_loaded(tmp_path):
    module = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 8)).eval()
    example = (torch.randn(5, 12),)
    program = twillcore.compile(module, example, "tiny", [example])
    program.save(tmp_path / "net.twill")
    loaded = twillcore.load(tmp_path / "net.twill")
    first, second = (p.run(*example, engine="reference") for p in (program, loaded))
    assert torch.equal(first.outputs[0], second.outputs[0])
    assert functional.cosine_similarity(first.outputs[0], module(*example)).min() > 0.99
    assert str(loaded.graph) == str(program.graph)
    assert first.cycles is None


def test_transposed_input_of_a_linear_layer():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(9, 7), nn.Linear(3, 7)

        def forward(self, x):
            return self.a(x.transpose(1, 2)), self.b(x.transpose(1, 2)[..., 2:5])

    assert kinds(check(Net(), torch.randn(2, 9, 6))) == ["Linear", "Linear"]


def test_example_may_mask_everything():
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, padding):
            return self.layer(x, src_key_padding_mask=padding)

    example = torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.bool)
    sample = example[0], torch.zeros(2, 5, dtype=torch.bool)
    front = run_front(Net().eval(), example, TINY, [sample])
    (got,), wanted = outputs_of(front, sample), Net().eval()(*sample)
    assert functional.cosine_similarity(got.flatten(), wanted.flatten(), 0) > 0.99


@pytest.mark.parametrize("used", [False, True], ids=["all leave", "one is used"])
def test_pieces_that_leave_the_chip(used):
    """The host cuts what it gets, and computes no layer."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 24), nn.Linear(12, 5)

        def forward(self, x):
            left, right = self.a(x).chunk(2, -1)
            return (self.b(left), right) if used else (left, right)

    front = check(Net(), torch.randn(3, 8))
    assert not any("linear" in note for note in front.interface.notes)
