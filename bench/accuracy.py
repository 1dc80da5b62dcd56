"""Cosine of MiniLM's embeddings to fp32 PyTorch, over sentences that calibration never saw."""

import sys

import numpy as np
import torch
from measure import table, write

import twillcore
from twillcore.models.text import calibration_sentences, evaluation_sentences
from twillcore.models.tokenizer import count_tokens, tokenize
from twillcore.models.zoo import load_network

VARIANTS = (
    ("dense", "reconstruction"),
    ("2:4", "magnitude"),
    ("2:4", "reconstruction"),
    ("4:8", "magnitude"),
    ("4:8", "reconstruction"),
    ("1:4", "reconstruction"),
    ("2:8", "reconstruction"),
)


def embeddings(module: torch.nn.Module, texts: list[str], tokens: int) -> np.ndarray:
    """Return what ``module`` makes of ``texts``."""
    with torch.no_grad():
        return module(*tokenize(texts, tokens)).numpy()


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosine of every row of ``a`` to the same row of ``b``."""
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def main() -> None:
    """Measure every variant and write the page."""
    texts = evaluation_sentences()
    calibration = calibration_sentences()
    tokens = -(-max(count_tokens(texts)) // 16) * 16
    ids, mask = tokenize(calibration, tokens)
    reference = embeddings(load_network("minilm"), texts, tokens)
    rows = []
    for sparsity, method in VARIANTS:
        print(f"{sparsity} {method}", file=sys.stderr, flush=True)
        module = load_network("minilm", sparsity, method)
        fp32 = embeddings(module, texts, tokens)
        program = twillcore.compile(
            module,
            (ids[:1], mask[:1]),
            config="u256",
            calibration=[(ids[i : i + 1], mask[i : i + 1]) for i in range(len(calibration))],
        )
        inputs = [tokenize([text], tokens) for text in texts]
        int8 = np.concatenate(
            [program.run(*one, engine="reference").outputs[0].numpy() for one in inputs]
        )
        pruned, both, own = cosines(fp32, reference), cosines(int8, reference), cosines(int8, fp32)
        rows.append(
            (
                sparsity,
                "" if sparsity == "dense" else method,
                f"{pruned.mean():.4f} ({pruned.min():.4f})",
                f"{both.mean():.4f} ({both.min():.4f})",
                f"{pruned.mean() - both.mean():+.4f}",
                f"{own.mean():.4f} ({own.min():.4f})",
            )
        )
    columns = (
        "sparsity",
        "pruned by",
        "fp32, pruned",
        "int8 on the accelerator",
        "cost of int8",
        "int8 to fp32, both pruned",
    )
    write(
        "accuracy",
        "Accuracy of all-MiniLM-L6-v2",
        f"Mean (minimum) cosine to the embeddings of the dense network in fp32 PyTorch, over"
        f" {len(texts)} sentences. All scales are static, calibrated on {len(calibration)} other"
        " sentences; weights are pruned in one shot, without training. The engine is `reference`,"
        " which every other engine equals bit for bit.",
        table(columns, rows),
    )


if __name__ == "__main__":
    main()
