"""Compression of MiniLM: cosines and ranks of its embeddings, cycles, bits, damping."""

from collections.abc import Sequence
from pathlib import Path

import torch
from compression_records import figures_of, on_rtl, recall, say, store
from measure import ROOT
from scipy.stats import spearmanr
from torch import nn

import twillcore
from twillcore.commands.candidate import load_candidate
from twillcore.models import reconstruct
from twillcore.models.minilm import load_minilm
from twillcore.models.ompq import choose_bits, features, importance, orthogonality
from twillcore.models.pattern import Pattern
from twillcore.models.policy import Policy
from twillcore.models.qat import quantise_rows
from twillcore.models.reconstruct import prune_by_reconstruction
from twillcore.models.subjects import find_subject
from twillcore.models.text import calibration_sentences, evaluation_sentences
from twillcore.models.tokenizer import count_tokens, tokenize
from twillcore.models.zoo import batches_without_padding

TOKENS = 32  # of the sentence that is timed
CONFIGS = {"u256-lut": ROOT / "bench" / "u256-lut.toml"}


def embeddings(module: nn.Module, texts: Sequence[str]) -> torch.Tensor:
    """Return what ``module`` makes of ``texts``, texts of equal length together."""
    with torch.no_grad():
        return torch.cat([module(*batch) for batch in batches_without_padding(texts)])


def rank_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return Spearman's rho of the similarities of all pairs."""
    i, j = torch.triu_indices(len(a), len(a), 1)
    return float(spearmanr((a @ a.T)[i, j], (b @ b.T)[i, j]).statistic)


def fp32_row(what: str, method: str, module: nn.Module) -> dict:
    """Measure one network in fp32."""
    texts = evaluation_sentences()
    reference = embeddings(load_minilm(), texts)
    found = embeddings(module, texts)
    cosine = (found * reference).sum(-1)
    row = {
        "what": what, "method": method, "sentences": len(texts),
        "fp32": float(cosine.mean()), "fp32_min": float(cosine.min()),
        "rho": rank_correlation(found, reference),
    }  # fmt: skip
    say(f"{what} {method}: fp32 {row['fp32']:.4f} ({row['fp32_min']:.3f}), rho {row['rho']:.3f}")
    return row


def on_chip(program: twillcore.Program, tokens: int) -> dict:
    """Measure a program in the integers of the reference engine, which all others equal."""
    dense, texts = load_minilm(), evaluation_sentences()
    found, wanted = [], []
    for text in texts:
        inputs = tokenize([text], tokens)
        found.append(program.run(*inputs, engine="reference").outputs[0])
        with torch.no_grad():
            wanted.append(dense(*inputs))
    a, b = torch.cat(found), torch.cat(wanted)
    cosine = torch.nn.functional.cosine_similarity(a, b)
    return {"int8": float(cosine.mean()), "int8_min": float(cosine.min()),
            "int8_rho": rank_correlation(a / a.norm(dim=-1, keepdim=True), b)}  # fmt: skip


def minilm_program(folder: str, tokens: int) -> twillcore.Program:
    """Compile a network that ``twillcore compress`` wrote; "dense" is the network itself."""
    samples = [tokenize([text], tokens) for text in calibration_sentences()]
    module, policy, config = load_minilm(), None, "u256"
    if folder != "dense":
        module, policy = load_candidate(Path(folder), find_subject("minilm"))
        config = CONFIGS.get(figures_of(folder)["config"], "u256")
    return twillcore.compile(
        module, samples[0], config=config, calibration=samples, policy=policy
    )  # fmt: skip


def describe(folder: str) -> tuple[str, str]:
    """Return sparsity or bits of a network in a folder, and how it was made."""
    figures, policy = figures_of(folder), Policy.load(Path(folder) / "policy.toml")
    patterns = set(map(str, policy.patterns().values()))
    steps = f"SR-STE, {figures['steps']} steps" if figures["steps"] else figures["method"]
    bits = {name: layer.bits for name, layer in policy.layers.items()}
    if min(bits.values()) < 8:
        sizes = {n: load_minilm().get_submodule(n).weight.numel() for n in bits}
        mean = sum(bits[n] * size for n, size in sizes.items()) / sum(sizes.values())
        what = f"{min(bits.values())} to {max(bits.values())} bits, {mean:.2f} on average"
        return f"{what}, `{figures['config']}`", steps
    if len(patterns) == 1:
        return patterns.pop(), steps
    kept = [(layer.pattern or Pattern(8, 8)).kept for layer in policy.layers.values()]
    return f"{min(kept)}:8 to {max(kept)}:8, {figures['target']}", steps


def minilm(*folders: str) -> None:
    """Measure networks that ``twillcore compress`` has written: accuracy and cycles."""
    rows = recall("minilm")
    texts = [*evaluation_sentences(), *calibration_sentences()]
    longest = -(-max(count_tokens(texts)) // 16) * 16
    for folder in ("dense", *folders):
        if any(row["folder"] == folder for row in rows):
            continue
        if folder == "dense":
            row = fp32_row("dense", "", load_minilm())
        else:
            module, _ = load_candidate(Path(folder), find_subject("minilm"))
            row = fp32_row(*describe(folder), module)
        row |= on_chip(minilm_program(folder, longest), longest)
        timed = minilm_program(folder, TOKENS)
        result = timed.run(*tokenize(calibration_sentences()[:1], TOKENS), engine="cycle")
        row |= {"cycles": result.cycles, "bytes_read": result.result.bytes_read, "folder": folder}
        say(f"  integers {row['int8']:.4f} ({row['int8_min']:.3f}), {row['cycles']:,} cycles")
        rows.append(row)
        store("minilm", rows)


def rtl(*folders: str) -> None:
    """Run networks on the RTL: bit-exact, and at the cycle that the cycle engine says."""
    rows = recall("rtl")
    inputs = tokenize(calibration_sentences()[:1], TOKENS)
    for folder in folders:
        row = on_rtl(minilm_program(folder, TOKENS), inputs)
        rows = [other for other in rows if other["folder"] != folder] + [{"folder": folder, **row}]
        say(f"{folder}: {row}")
        store("rtl", rows)


def bits(folder: str) -> None:
    """Weight bits of MiniLM: of a network of ``twillcore compress``, uniform, and by OMPQ."""
    dense = load_minilm()
    names = list(dense.linears())
    weights = {name: dense.get_submodule(name).weight.clone() for name in names}
    sizes = {name: weight.numel() for name, weight in weights.items()}
    batch = tokenize([t for t in calibration_sentences() if count_tokens([t])[0] >= 16], 16)
    orm = orthogonality(features(dense, batch))
    policy = Policy.load(Path(folder) / "policy.toml")
    average = sum(policy.layers[n].bits * size for n, size in sizes.items()) / sum(sizes.values())
    schemes = {
        "uniform": dict.fromkeys(names, round(average)),
        "integer program on measured loss": {n: p.bits for n, p in policy.layers.items()},
        "OMPQ as published, beta 1": choose_bits(sizes, importance(orm, 1.0), average),
        "OMPQ as published, beta 0.1": choose_bits(sizes, importance(orm, 0.1), average),
    }
    data = batches_without_padding(calibration_sentences())
    rows = []
    for method, scheme in schemes.items():
        spent = sum(sizes[n] * b for n, b in scheme.items()) / sum(sizes.values())
        module = load_minilm()
        for name, width in scheme.items():
            module.get_submodule(name).weight.copy_(quantise_rows(weights[name], width))
        rows.append({**fp32_row("bits", method, module), "average": spent, "bits": scheme})
        if not method.startswith("OMPQ"):
            module = load_minilm()
            prune_by_reconstruction(module, data, dict.fromkeys(names, Pattern(1, 1)), bits=scheme)
            row = fp32_row("bits", f"{method}, repaired", module)
            rows.append({**row, "average": spent, "bits": scheme})
        store("bits", rows)


def damping(folder: str) -> None:
    """Choose the damping of repaired rounding by cross-validation on calibration sentences."""
    dense, texts = load_minilm(), calibration_sentences()
    scheme = {n: p.bits for n, p in Policy.load(Path(folder) / "policy.toml").layers.items()}
    usual, rows = reconstruct.ROUNDING_DAMPING, []
    for value in (0.01, 0.1, 0.3, 1.0):
        cosines = []
        for fold in range(2):
            reconstruct.ROUNDING_DAMPING = value
            module, held_out = load_minilm(), texts[fold::2]
            data = batches_without_padding(texts[1 - fold :: 2])
            prune_by_reconstruction(module, data, dict.fromkeys(scheme, Pattern(1, 1)), bits=scheme)
            wanted, found = embeddings(dense, held_out), embeddings(module, held_out)
            cosines.append(float((found * wanted).sum(-1).mean()))
            say(f"damping {value}, fold {fold}: {cosines[-1]:.4f}")
        rows.append({"damping": value, "cosines": cosines, "used": value == usual})
        store("damping", rows)
