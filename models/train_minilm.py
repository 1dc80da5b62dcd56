"""MiniLM at N:M that is worth using: pruned with reconstruction, then distilled on local text."""

from pathlib import Path

from torch import nn

from twillcore.models.batches import SentenceBatches
from twillcore.models.corpus import training_sentences
from twillcore.models.distill import History, Progress, Recipe, distil
from twillcore.models.minilm import LAYERS, MiniLM, load_minilm
from twillcore.models.pattern import Pattern
from twillcore.models.sr_ste import freeze, sparsify
from twillcore.models.zoo import load_network

TOKENS = 1024  # of a step's batch
RECIPE = Recipe(steps=500, rate=5e-4, warm_up=20, decay=1.0, output_weight=2.0, bfloat16=True)
TAPS = tuple(f"encoder.layer.{number}" for number in range(LAYERS))


def train_minilm(
    sparsity: Pattern | dict[str, Pattern],
    start: nn.Module | None = None,
    recipe: Recipe = RECIPE,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Progress = lambda done, total, text: None,
) -> tuple[MiniLM, History]:
    """Return the network with sparse weights, in inference mode, and how its training went.

    Parameters
    ----------
    sparsity : of all 36 linear layers of the encoder, or by name
    start : to train from; default: one-shot reconstruction, which needs a single pattern
    checkpoint : file to resume from if it is there, and to save to
    """
    if start is None:
        start = load_network("minilm", str(sparsity), progress=progress)
    sparsify(start, sparsity, decay=0.0)  # decoupled: the optimiser is Adam
    start.encoder.requires_grad_(True)
    batches = SentenceBatches(training_sentences(progress), TOKENS, seed)
    history = distil(start, load_minilm(), batches, recipe, TAPS, checkpoint, progress=progress)
    return freeze(start).eval().requires_grad_(False), history
