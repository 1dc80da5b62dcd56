"""Networks for text in ``twillcore run``: compiled and cached, and in fp32 to compare with."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from twillcore.cache import cached_file, content_key, source_key
from twillcore.commands.execution import execute, reference, same_outputs
from twillcore.commands.files import write_array
from twillcore.commands.report import RunReport
from twillcore.commands.terminal import counting, working
from twillcore.config import Config
from twillcore.dram import Dram
from twillcore.flow import Program, compile, load
from twillcore.models.pattern import Pattern
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


def run_text(
    network: str,
    config: Config,
    *,
    texts: Sequence[str],
    tokens: int | None,
    sparsity: str,
    engine: str,
    dram: Dram,
    waveform: Mapping[str, object],
    out: Path | None,
    save: Path | None,
    as_json: bool,
) -> None:
    """Run every text, compare the embeddings with PyTorch's, and show it all."""
    if (pattern := Pattern.parse(sparsity)) is not None:
        pattern.beats(config)  # refuses what does not run
    length = length_for(texts, tokens, config)
    program = compiled(network, sparsity, length, config)
    if save is not None:
        program.save(save)
    report = RunReport(program.image)
    embeddings = []
    for number, one in enumerate(texts, 1):
        inputs = tokenize([one], length)
        integers, passed = program.prepare(*inputs)
        expected = reference(program.graph, integers)
        if engine == "reference":
            result = expected
            report.add(result, None)
        else:
            what = f"{engine}: text {number} of {len(texts)}"
            result = execute(program.image, integers, engine, dram, what, **waveform)
            report.add(result, same_outputs(result, expected))
        embeddings.append(program.finish(result, passed).outputs[0])
    found = np.concatenate([embedding.numpy() for embedding in embeddings])
    with working("computing fp32 with PyTorch"):
        dense = fp32(network, "dense", texts, length)
        pruned = dense if pattern is None else fp32(network, sparsity, texts, length)
    if out is not None:
        write_array(out, found)
    figures = {"cosine": cosines(found, dense)}
    if pattern is not None:
        figures["cosine_pruned_fp32"] = cosines(pruned, dense)
        figures["cosine_same_weights"] = cosines(found, pruned)
    report.show(
        as_json,
        _cosine_table(texts, figures),
        network=network,
        sparsity=sparsity,
        tokens=length,
        texts=texts,
        **figures,
    )


def _cosine_table(texts: Sequence[str], figures: Mapping[str, list[float]]) -> Table:
    headings = {
        "cosine": "to fp32",
        "cosine_pruned_fp32": "fp32, pruned, to fp32",
        "cosine_same_weights": "to fp32, pruned",
    }
    table = Table("text", title="Cosine of the embeddings", title_justify="left")
    for name in figures:
        table.add_column(headings[name], justify="right")
    for text, *values in zip(texts, *figures.values(), strict=True):
        short = text if len(text) <= 50 else text[:47] + "..."
        table.add_row(short, *(f"{value:.4f}" for value in values))
    return table
