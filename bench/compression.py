"""Figures of compression, an experiment per call: ``python bench/compression.py digits``.

``minilm DIR...`` and ``rtl DIR...`` measure what ``twillcore compress`` wrote. Each experiment
keeps what it measured in ``build/compression/``; ``page`` makes the page of ``docs/results/`` from
these. Every network is compiled, timed by the cycle engine, and run on the RTL for one input.
"""

import json
import sys

import torch
from compression_digits import (
    DECAY,
    FURTHER_EPOCHS,
    LEVEL_EPOCHS,
    RATE,
    RUN_ON_RTL,
    digits,
    digits_rtl,
    methods,
)
from compression_minilm import bits, damping, minilm, rtl
from compression_records import RESULTS, recall
from measure import ROOT, table


def page() -> None:
    """Write ``docs/results/compression.md`` from what has been measured."""
    parts = ["# Compression", INTRODUCTION]
    for name, arguments, title, text, render in SECTIONS:
        path = RESULTS / f"{name}.json"
        if path.is_file():
            data = json.loads(path.read_text())
            origin = (
                f"`python bench/compression.py {name}{arguments}` at commit {data['commit']} on"
                f" {data['date']}, {data['processor']}."
            )
            parts += [f"## {title}", text, render(data["rows"]), origin]
    parts += ["## Open", OPEN]
    (ROOT / "docs" / "results" / "compression.md").write_text("\n\n".join(parts) + "\n")


def results_of(name: str, key: str) -> dict[str, dict]:
    """Return the rows of an experiment by what they are of; none if it has not run."""
    return {row[key]: row for row in recall(name)}


def verdict(row: dict | None) -> str:
    """Return what the RTL said."""
    if row is None:
        return "not run"
    config = f" on `{row['config']}`" if row.get("config", "u256") != "u256" else ""
    return ("bit-exact, same cycles" if row["bit_exact"] else "DIFFERS") + config


INTRODUCTION = (
    "Cosines are to the embeddings of the dense network in fp32 PyTorch, mean (minimum), over"
    " sentences that neither calibration nor training saw; rho is Spearman's rank correlation of"
    " the similarities of all pairs of them. Cycles are of the whole program on `u256` by the"
    " cycle engine, memory latency 40. RTL: one input on the Verilated hardware, against the"
    " integers of the network and the cycles of the cycle engine."
)
OPEN = (
    "* Digits: SR-STE at 2:4 is 0.6 points below dense trained further as long when that is 40"
    " epochs, and level with it at 80; three seeds of 450 images hardly tell such differences from"
    " none.\n"
    "* DominoSearch, low rank, Mix&Match and N3H assignment have no figures on MiniLM.\n"
    "* MiniLM with bits per layer is not trained; on digits training through fake quantisation"
    " brings 4 bits by OMPQ from 87.6 % to 97.8 %."
)
MINILM_TEXT = (
    "`twillcore compress minilm --target T --steps N -o DIR`: one-shot by reconstruction, then"
    " SR-STE with distillation on sentences from the documentation of the installed packages, words"
    " exchanged at random in half of them; seed 0, batches of 1,024 tokens. 4:8 and N:8 by the"
    " integer program are trained alike and take the same cycles. The command resumes"
    " after an interruption. The text depends on the packages that are installed, so figures"
    " elsewhere differ a little. Chip: the integer program, all scales static, activations int8."
    " Cycles, and bytes read from memory, are of one sentence of 32 tokens. `u256-lut` is `u256`"
    " with a LUT core of 16 columns (`bench/u256-lut.toml`); the bits are of every layer's weights"
    " on both cores, which divide the outputs so that both finish together."
)
BITS_TEXT = (
    "Weights only, a scale per row by least squares, no training; activations in fp32. Repaired:"
    " rounded column by column by reconstruction, on calibration data."
)
DAMPING_TEXT = (
    "What is added to the diagonal of the Hessian, in parts of its mean, when weights are rounded"
    " by reconstruction. The network with bits by the integer program, repaired with one half of"
    " the calibration sentences and measured on the other half; the evaluation sentences have no"
    " part in it."
)
METHODS_TEXT = (
    "As the commands say, seed 0, one training each; dense, the vision transformer recognises"
    " 97.8 % and the convolutional network, on `z7020`, 99.8 %. `bits=4` without and with steps:"
    " the same bits, then trained through fake quantisation. The three lines of `idp` are one"
    " command's family. The search of DominoSearch was interrupted by SIGINT and by SIGKILL and"
    " resumed; its weights are those of an uninterrupted run, bit for bit."
)
DIGITS_TEXT = (
    "A vision transformer of 102,538 parameters on scikit-learn's digits, 450 test images (one is"
    f" 0.22 %); 18 layers sparse. Dense: 80 epochs. SR-STE, and dense trained further:"
    f" {FURTHER_EPOCHS} epochs from there unless said otherwise, rate {RATE:g}, decay {DECAY:g};"
    " chosen on another split"
    f" of the data. IDP: {LEVEL_EPOCHS} epochs at each level of the chains 3:4, 2:4, 1:4 and 4:8,"
    " 2:8, 1:8. Mixed: N:8 per layer by an integer program on measured loss, at the product cycles"
    " of 25 % density. Accuracy is in fp32, mean (smallest to largest) over the seeds; SAD is mask"
    " changes per weight, summed over all steps of a training; cycles are of one image. RTL: the"
    " SR-STE network of seed 0 (`python bench/compression.py digits_rtl`).\n\n"
    "What else might help 2:4 was tried by cross-validation on the training images alone, four"
    " folds (standard error of a figure about 0.4): SR-STE for 40 epochs 97.70 %, for 80 97.70;"
    " after one-shot reconstruction 97.25; weights averaged over the second half 97.40; distilled"
    " from the dense network, 60 epochs, masks held in the last 40 % 97.48; distilled from the"
    " dense network trained further 97.77; the dense network trained further itself 97.85. None is"
    " better beyond the noise, so SR-STE stays plain.\n\n"
    "Rows but those of 80 epochs were measured at commit `d4b9e84`; SR-STE at 2:4 of seed 0,"
    " trained again since, gave the same figures."
)


def render_minilm(rows: list[dict]) -> str:
    """Return the table of MiniLM."""
    dense = next(row["cycles"] for row in rows if row["folder"] == "dense")
    ran = results_of("rtl", "folder")
    return table(
        ("weights", "method", "fp32", "rho", "chip", "rho, chip", "cycles", "speed-up",
         "bytes read", "RTL"),
        [
            (
                row["what"], row["method"], f"{row['fp32']:.4f} ({row['fp32_min']:.3f})",
                f"{row['rho']:.3f}", f"{row['int8']:.4f} ({row['int8_min']:.3f})",
                f"{row['int8_rho']:.3f}", f"{row['cycles']:,}", f"{dense / row['cycles']:.2f}",
                f"{row['bytes_read']:,}", verdict(ran.get(row["folder"])),
            )
            for row in rows
        ],
    )  # fmt: skip


def render_digits(rows: list[dict]) -> str:
    """Return the table of the digits, a line for each sparsity and method."""
    lines = []
    path = RESULTS / "digits_rtl.json"
    ran = json.loads(path.read_text())["rows"] if path.is_file() else {}
    dense = next(row["cycles"] for row in rows if row["sparsity"] == "dense")
    order = list(dict.fromkeys(row["sparsity"] for row in rows))
    pairs = dict.fromkeys((row["sparsity"], row["method"]) for row in rows)
    for what, method in sorted(pairs, key=lambda pair: order.index(pair[0])):
        chosen = [row for row in rows if (row["sparsity"], row["method"]) == (what, method)]
        found = [100 * row["accuracy"] for row in chosen]
        sads = [row["sad"] for row in chosen]
        cycles = sum(row["cycles"] for row in chosen) / len(chosen)
        lines.append(
            (
                what, method, len(chosen),
                f"{sum(found) / len(found):.1f} ({min(found):.1f} to {max(found):.1f})",
                f"{sum(sads) / len(sads):.3f}" if any(sads) else "",
                f"{cycles:,.0f}", f"{dense / cycles:.2f}",
                verdict(ran.get(what + RUN_ON_RTL[method])) if method in RUN_ON_RTL else "",
            )
        )  # fmt: skip
    return table(
        ("sparsity", "method", "seeds", "accuracy, %", "SAD", "cycles", "speed-up", "RTL"), lines
    )


def render_bits(rows: list[dict]) -> str:
    """Return the table of mixed precision."""
    return table(
        ("method", "bits on average", "cosine", "rho"),
        [
            (row["method"], f"{row['average']:.2f}", f"{row['fp32']:.4f} ({row['fp32_min']:.3f})",
             f"{row['rho']:.3f}")
            for row in rows
        ],
    )  # fmt: skip


def render_damping(rows: list[dict]) -> str:
    """Return a line for each damping."""
    return table(
        ("damping", "cosine", "folds"),
        [
            (
                f"{row['damping']:g}" + (" (in use)" if row["used"] else ""),
                f"{sum(row['cosines']) / len(row['cosines']):.4f}",
                ", ".join(f"{cosine:.4f}" for cosine in row["cosines"]),
            )
            for row in rows
        ],
    )


def render_methods(rows: list[dict]) -> str:
    """Return a line for each network."""
    return table(
        ("command", "accuracy, %", "cycles", "speed-up", "bytes of weights", "RTL"),
        [
            (
                f"`twillcore compress {row['network']} --target {row['target']} --method"
                f" {row['method']}" + (f" --steps {row['steps']}`" if row["steps"] else "`"),
                f"{100 * row['score']:.1f}", f"{row['cycles']:,}", f"{row['speed_up']:.2f}",
                f"{row['bytes']:,}", verdict(row["rtl"]),
            )
            for row in rows
        ],
    )  # fmt: skip


SECTIONS = (
    ("minilm", " DIR...", "all-MiniLM-L6-v2, all 36 linear layers", MINILM_TEXT, render_minilm),
    (
        "bits", " DIR", "Bits per layer of all-MiniLM-L6-v2",
        BITS_TEXT,
        render_bits,
    ),
    ("damping", " DIR", "Damping of repaired rounding", DAMPING_TEXT, render_damping),
    ("digits", "", "Digits", DIGITS_TEXT, render_digits),
    ("methods", " DIR...", "Other methods, on digits", METHODS_TEXT, render_methods),
)  # fmt: skip

EXPERIMENTS = {
    function.__name__: function
    for function in (digits, digits_rtl, methods, minilm, rtl, bits, damping, page)
}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in EXPERIMENTS:
        sys.exit(f"what to measure must be one of {', '.join(EXPERIMENTS)}")
    torch.set_num_threads(1)
    name, *arguments = sys.argv[1:]
    EXPERIMENTS[name](*(int(a) if a.isdigit() else a for a in arguments))
