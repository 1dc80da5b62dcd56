"""Pretrained networks for ``twillcore run``: compiled and cached, and in fp32 to compare with."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from twillcore.cache import cached_file, content_key, source_key
from twillcore.commands.terminal import counting, working
from twillcore.config import Config
from twillcore.flow import Program, compile, load
from twillcore.models.text import calibration_sentences
from twillcore.models.tokenizer import LONGEST, count_tokens, tokenize
from twillcore.models.zoo import find_network, load_network


def length_for(texts: Sequence[str], tokens: int | None, config: Config) -> int:
    """Return ``tokens``, or if None what the longest text needs, in whole tiles of lanes."""
    if tokens is not None:
        return tokens
    longest = min(max(count_tokens(texts)), LONGEST)
    return min(-(-longest // config.lanes) * config.lanes, LONGEST)


def pretrained(network: str, sparsity: str) -> torch.nn.Module:
    """Return a network in fp32, pruned if it is not in the cache yet, showing progress."""
    with counting(f"pruning to {sparsity}, layer") as progress:
        return load_network(network, sparsity, progress=progress)


def compiled(network: str, sparsity: str, tokens: int, config: Config) -> Program:
    """Return a network compiled for sentences of ``tokens`` tokens, from the cache if possible."""
    checkpoint = find_network(network).checkpoint
    sentences = calibration_sentences()
    samples = [tokenize([sentence], tokens) for sentence in sentences]

    def make(path: Path) -> None:
        module = pretrained(network, sparsity)
        with working(f"calibrating and compiling {network} for {config.name}, {tokens} tokens"):
            compile(module, samples[0], config=config, calibration=samples).save(path)

    key = content_key(source_key("compiler", "models"), checkpoint, config.to_toml(), *sentences)
    stem = f"{network}-{sparsity.replace(':', 'of')}-{tokens}-tokens-{config.hash}"
    path = cached_file(stem, key, ".twill", make)
    with working("reading the program"):
        return load(path)


def fp32(network: str, sparsity: str, texts: Sequence[str], tokens: int) -> NDArray:
    """Return what the network computes in PyTorch, a row per text."""
    with torch.no_grad():
        return pretrained(network, sparsity)(*tokenize(texts, tokens)).numpy()


def cosines(a: NDArray, b: NDArray) -> list[float]:
    """Return the cosine of every row of ``a`` to the same row of ``b``."""
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return ((a * b).sum(-1) / lengths).tolist()
