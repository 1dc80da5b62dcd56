"""MiniLM, compressed and worth using: distilled from the dense network on local text."""

from collections.abc import Callable

import torch
from torch import nn

from twillcore.cache import content_key
from twillcore.models.batches import SentenceBatches
from twillcore.models.checkpoint import Checkpoint
from twillcore.models.corpus import training_sentences
from twillcore.models.distill import History, Progress, Recipe, distil
from twillcore.models.minilm import LAYERS, load_minilm

TOKENS = 1024  # of a step's batch
RECIPE = Recipe(steps=500, rate=5e-4, warm_up=20, decay=1.0, output_weight=2.0, bfloat16=True)
TAPS = tuple(f"encoder.layer.{number}" for number in range(LAYERS))


def distil_minilm(
    module: nn.Module,
    recipe: Recipe = RECIPE,
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    progress: Progress = lambda done, total, text: None,
    attach: Callable[[torch.optim.Optimizer], None] = lambda optimiser: None,
) -> History:
    """Train the encoder of ``module`` in place to compute what the dense network does.

    Parameters
    ----------
    module : the network with masks (decay is decoupled: sparsify with none), fake quantisation or
        factors
    checkpoint : to resume from, and to save to
    attach : called with the optimiser before the first step
    """
    module.encoder.requires_grad_(True)
    sentences = training_sentences(progress)
    if checkpoint is not None:
        checkpoint = checkpoint.of(seed=seed, data=content_key(*sentences)[:12])
    batches = SentenceBatches(sentences, TOKENS, seed)
    return distil(
        module, load_minilm(), batches, recipe, TAPS, checkpoint, progress=progress, attach=attach
    )
