"""A vision transformer of 102,000 parameters for 8 x 8 digits: small enough to train in seconds."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from twillcore.errors import TwillcoreError
from twillcore.models.checkpoint import Checkpoint, fingerprint
from twillcore.models.digits import Digits, patches, shifted
from twillcore.models.sad import Sad
from twillcore.models.sr_ste import decouple

TOKENS, INPUTS, WIDTH, HEADS, FEED_FORWARD, BLOCKS, CLASSES = 16, 4, 64, 4, 128, 3, 10
BATCH = 128
SMOOTHING = 0.1

Progress = Callable[[int, int, str], None]


class Block(nn.Module):
    """Attention and feed-forward, each normalised before and added to the residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.value, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, FEED_FORWARD), nn.Linear(FEED_FORWARD, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (
            linear(y).view(*y.shape[:2], HEADS, -1).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = x + self.out(mixed.reshape(y.shape))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class DigitsViT(nn.Module):
    """Patches (batch, 16, 4) to logits (batch, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(INPUTS, WIDTH)
        # small initial positions stall at 80 %: mean pooling hides which patch is which
        self.position = nn.Parameter(0.5 * torch.randn(1, TOKENS, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).mean(1)

    def sparse(self) -> list[str]:
        """Return the names of the 18 layers that may be sparse: all but the first and the last."""
        return [
            name
            for name, m in self.named_modules()
            if isinstance(m, nn.Linear) and name.startswith("blocks.")
        ]


def fit(
    module: nn.Module,
    digits: Digits,
    epochs: int,
    rate: float,
    seed: int,
    decay: float = 0.0,
    progress: Progress = lambda done, total, text: None,
    view: Callable[[Tensor], Tensor] = patches,
    attach: Callable[[torch.optim.Optimizer], None] = lambda optimiser: None,
    checkpoint: Checkpoint | None = None,
) -> Sad:
    """Train in place by AdamW with a cosine schedule; return how the masks moved, if there are any.

    ``decay`` of masked weights is decoupled. ``view`` makes the module's input of images (n, 8, 8).
    ``attach`` is called with the optimiser before the first step, to hook more into its steps.
    ``checkpoint`` is saved to after every epoch, and resumed from.

    Raises
    ------
    TwillcoreError
        If the loss becomes NaN or infinite, or the checkpoint is damaged or of another training.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.01, fused=True)
    if decay:
        decouple(optimiser, module, decay)
    attach(optimiser)
    sad, count, first = Sad(), len(digits.train), 0
    if checkpoint is not None:
        checkpoint = checkpoint.of(
            epochs=epochs, rate=rate, seed=seed, decay=decay,
            data=fingerprint(digits.train, digits.train_labels),
        )  # fmt: skip
        if (state := checkpoint.resume(module, optimiser)) is not None:
            first, sad = state["epoch"], Sad.of_state(state["sad"])
            generator.set_state(state["generator"])
    per_epoch = -(-count // BATCH)
    total, step = epochs * per_epoch, first * per_epoch
    module.train()
    for epoch in range(first, epochs):
        order = torch.randperm(count, generator=generator)
        for start in range(0, count, BATCH):
            chosen = order[start : start + BATCH]
            for group in optimiser.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / total))
            logits = module(view(shifted(digits.train[chosen], generator)))
            loss = functional.cross_entropy(
                logits, digits.train_labels[chosen], label_smoothing=SMOOTHING
            )
            if not loss.isfinite():
                raise TwillcoreError(
                    f"training: the loss is {loss.item()} in epoch {epoch}:"
                    f" lower the rate of {rate:g}"
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            sad.update(module)
            step += 1
        if checkpoint is not None:
            state = {"epoch": epoch + 1, "sad": sad.state(), "generator": generator.get_state()}
            checkpoint.save(module, optimiser, state)
        progress(epoch + 1, epochs, f"loss {loss.item():.3f}")
    module.eval()
    return sad


@torch.no_grad()
def accuracy(
    module: nn.Module, digits: Digits, view: Callable[[Tensor], Tensor] = patches
) -> float:
    """Return the share of the test digits that are recognised, 0..1."""
    found = module(view(digits.test)).argmax(-1)
    return float((found == digits.test_labels).float().mean())


def train_dense(
    digits: Digits,
    seed: int,
    epochs: int = 80,
    progress: Progress = lambda done, total, text: None,
) -> DigitsViT:
    """Return a trained network."""
    torch.manual_seed(seed)
    module = DigitsViT()
    fit(module, digits, epochs, 2e-3, seed, progress=progress)
    return copy.deepcopy(module).eval()
