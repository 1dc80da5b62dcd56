"""Networks that the command line knows by name, dense or pruned."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from twillcore.cache import cached_file, content_key
from twillcore.errors import TwillcoreError
from twillcore.models.minilm import load_minilm
from twillcore.models.nm import prune_by_magnitude
from twillcore.models.pattern import Pattern
from twillcore.models.reconstruct import Progress, prune_by_reconstruction
from twillcore.models.text import calibration_sentences
from twillcore.models.tokenizer import count_tokens, tokenize
from twillcore.models.weights import MINILM_SHA256

METHODS = ("reconstruction", "magnitude")
VERSION = "1"  # of the pruning algorithms: change it and what is cached is made again


@dataclass(frozen=True)
class Network:
    """How to load a pretrained network, and data to calibrate its pruning with.

    ``batches`` makes the network's inputs from texts without any padding; ``checkpoint`` is the
    hash of its weights.
    """

    load: Callable[[], nn.Module]
    batches: Callable[[Sequence[str]], list[tuple[Tensor, ...]]]
    checkpoint: str


def batches_without_padding(texts: Sequence[str]) -> list[tuple[Tensor, ...]]:
    """Return inputs of MiniLM, texts of equal length together."""
    lengths = count_tokens(texts)
    return [
        tokenize([t for t, n in zip(texts, lengths, strict=True) if n == length], length)
        for length in sorted(set(lengths))
    ]


NETWORKS = {"minilm": Network(load_minilm, batches_without_padding, MINILM_SHA256)}


def find_network(name: str) -> Network:
    """Return a network by name; raises :class:`TwillcoreError` if there is none."""
    if name not in NETWORKS:
        raise TwillcoreError(f"no network {name!r}: there is {', '.join(NETWORKS)}")
    return NETWORKS[name]


def load_network(
    name: str,
    sparsity: str = "dense",
    method: str = "reconstruction",
    progress: Progress = lambda done, total, layer: None,
) -> nn.Module:
    """Return the pretrained network ``name``, ready for inference.

    Parameters
    ----------
    sparsity : "dense" or N:M such as "2:4"; pruned without training, and cached
    method : "reconstruction" (with our calibration sentences) or "magnitude"
    """
    network = find_network(name)
    if method not in METHODS:
        raise TwillcoreError(f"pruning method must be {' or '.join(METHODS)}, not {method!r}")
    pattern = Pattern.parse(sparsity)
    module = network.load()
    if pattern is None or pattern.kept == pattern.group:
        return module
    if method == "magnitude":
        prune_by_magnitude(module, pattern)
        return module
    texts = calibration_sentences()

    def prune(path: Path) -> None:
        prune_by_reconstruction(module, network.batches(texts), pattern, progress)
        torch.save({n: w for n, w in module.state_dict().items() if n in _pruned(module)}, path)

    key = content_key(network.checkpoint, str(pattern), method, "\n".join(texts), VERSION)
    file = cached_file(f"{name}-{pattern.kept}of{pattern.group}", key, ".pt", prune)
    module.load_state_dict(torch.load(file, weights_only=True), strict=False)
    return module


def _pruned(module: nn.Module) -> set[str]:
    return {f"{name}.weight" for name, m in module.named_modules() if isinstance(m, nn.Linear)}
