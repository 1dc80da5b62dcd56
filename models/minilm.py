"""all-MiniLM-L6-v2: sentences to unit vectors of 384 numbers, in plain torch.

Parameters are named as in the published checkpoint. Shapes are static and no step depends on
data, so that ``torch.export`` captures one straight graph.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from twillcore.models.weights import minilm_state

LAYERS, HIDDEN, HEADS, FEED_FORWARD = 6, 384, 12, 1536
VOCABULARY, POSITIONS = 30522, 512
EXCLUDED = -1e9  # added to the logits of padding: far below any other, finite in float32


def layer_norm() -> nn.LayerNorm:
    """Return a layer norm with the constant of the checkpoint."""
    return nn.LayerNorm(HIDDEN, eps=1e-12)


class Embeddings(nn.Module):
    """Sum of word, position and token type, normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, HIDDEN)
        self.position_embeddings = nn.Embedding(POSITIONS, HIDDEN)
        self.token_type_embeddings = nn.Embedding(2, HIDDEN)
        self.LayerNorm = layer_norm()

    def forward(self, input_ids: Tensor) -> Tensor:
        position = self.position_embeddings.weight[: input_ids.shape[1]]
        kind = self.token_type_embeddings.weight[0]  # of the first of two sentences: always here
        return self.LayerNorm(self.word_embeddings(input_ids) + position + kind)


class SelfAttention(nn.Module):
    """Attention of every token to every token that is not padding."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(HIDDEN, HIDDEN)
        self.key = nn.Linear(HIDDEN, HIDDEN)
        self.value = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (
            linear(x).view(batch, tokens, HEADS, -1).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return mixed.transpose(1, 2).reshape(batch, tokens, HIDDEN)


class AddNorm(nn.Module):
    """A linear layer, added to the residual stream, normalised."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, HIDDEN)
        self.LayerNorm = layer_norm()

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class Intermediate(nn.Module):
    """The wide half of the feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(HIDDEN, FEED_FORWARD)

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(self.dense(x))


class Layer(nn.Module):
    """One encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(), "output": AddNorm(HIDDEN)})
        self.intermediate = Intermediate()
        self.output = AddNorm(FEED_FORWARD)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, mask), x)
        return self.output(self.intermediate(x), x)


class MiniLM(nn.Module):
    """Token numbers and mask, both (batch, tokens), to unit vectors (batch, 384)."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer() for _ in range(LAYERS))})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        present = attention_mask.to(torch.float32)
        mask = ((1.0 - present) * EXCLUDED)[:, None, None, :]
        x = self.embeddings(input_ids)
        for layer in self.encoder["layer"]:
            x = layer(x, mask)
        total = (x * present[:, :, None]).sum(dim=1)
        return functional.normalize(total / present.sum(dim=1, keepdim=True), dim=-1)

    def linears(self) -> dict[str, nn.Linear]:
        """Return the 36 linear layers of the encoder by name, in the order of computation."""
        return {name: m for name, m in self.named_modules() if isinstance(m, nn.Linear)}


def load_minilm() -> MiniLM:
    """Return the pretrained network, ready for inference.

    Raises
    ------
    TwillcoreError
        If the package with the weights is missing or holds other weights.
    """
    state = minilm_state()
    unused = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")
    with torch.device("meta"):
        model = MiniLM()
    model.load_state_dict({n: t for n, t in state.items() if n not in unused}, assign=True)
    return model.eval().requires_grad_(False)
