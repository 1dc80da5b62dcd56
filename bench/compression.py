"""Figures of compression, an experiment per call: ``python bench/compression.py digits``.

``minilm DIR...`` and ``rtl DIR...`` measure what ``twillcore compress`` wrote. Each experiment
keeps what it measured in ``build/compression/``; ``page`` makes the page of ``docs/results/`` from
these. Every network is compiled, timed by the cycle engine, and run on the RTL for one input.
"""

import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from measure import ROOT, commit, processor, table
from scipy.stats import spearmanr
from torch import nn

import twillcore
from twillcore.commands.candidate import load_candidate
from twillcore.config import PRESETS
from twillcore.models import reconstruct
from twillcore.models.compress import compress
from twillcore.models.cost import layer_shapes
from twillcore.models.digits import Digits, load_digits, patches
from twillcore.models.digits_vit import DigitsViT, accuracy, fit, train_dense
from twillcore.models.idp import chain, inherit
from twillcore.models.layout import projected
from twillcore.models.minilm import load_minilm
from twillcore.models.ompq import choose_bits, features, importance, orthogonality
from twillcore.models.pattern import Pattern
from twillcore.models.policy import Policy
from twillcore.models.qat import quantise_rows
from twillcore.models.reconstruct import prune_by_reconstruction
from twillcore.models.sr_ste import freeze, sparsify
from twillcore.models.subjects import find_subject
from twillcore.models.text import calibration_sentences, evaluation_sentences
from twillcore.models.tokenizer import count_tokens, tokenize
from twillcore.models.zoo import batches_without_padding

U256 = PRESETS["u256"]
RESULTS = ROOT / "build" / "compression"
SEEDS = (0, 1, 2)
TOKENS = 32  # of the sentence that is timed
CONFIGS = {"u256-lut": ROOT / "bench" / "u256-lut.toml"}


def say(text: str) -> None:
    """Print progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def recall(name: str) -> list[dict]:
    """Return what was measured before."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.is_file() else []


def store(name: str, rows: object) -> None:
    """Keep what was measured, with where it comes from."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    data = {"commit": commit(), "date": time.strftime("%F"), "processor": processor(), "rows": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1))


# The small vision transformer

FURTHER_EPOCHS, LONG_EPOCHS, LEVEL_EPOCHS, RATE, DECAY = 40, 80, 10, 2e-3, 0.1
LONG = f", {LONG_EPOCHS} epochs"  # of a method's name
UNIFORM = ("2:4", "1:4", "1:8")
MIXED = "mixed N:8, 25 %"
#: Methods whose networks of the first seed run on the RTL, and what their files are called besides.
RUN_ON_RTL = {"": "", "SR-STE": "", f"SR-STE{LONG}": LONG}


def digits(*seeds: int) -> None:
    """Accuracy of the digits ViT: dense, uniform and mixed; one-shot, SR-STE, inherited.

    What has been measured is left out.
    """
    data = load_digits()
    rows = recall("digits")
    timed: dict[str, int] = {}

    def missing(seed: int, what: str, method: str) -> bool:
        return (seed, what, method) not in {(r["seed"], r["sparsity"], r["method"]) for r in rows}

    def note(seed: int, what: str, method: str, module: nn.Module, sad: float = 0.0) -> None:
        found = accuracy(module, data)
        if (scheme := f"{what} {seed}" if what == MIXED else what) not in timed:
            timed[scheme] = digits_program(module).run(*digits_samples()[0], engine="cycle").cycles
        if seed == SEEDS[0] and method in RUN_ON_RTL:
            torch.save(module.state_dict(), RESULTS / f"digits {what}{RUN_ON_RTL[method]}.pt")
        cycles = timed[scheme]
        rows.append(
            {"seed": seed, "sparsity": what, "method": method, "accuracy": found, "sad": sad,
             "cycles": cycles}
        )  # fmt: skip
        say(f"seed {seed} {what} {method}: {found:.4f}, SAD {sad:.3f}, {cycles} cycles")
        store("digits", rows)

    RESULTS.mkdir(parents=True, exist_ok=True)
    for seed in seeds or SEEDS:
        dense = dense_digits(data, seed)
        names = dense.sparse()
        if missing(seed, "dense", ""):
            note(seed, "dense", "", dense)
        schemes = {text: dict.fromkeys(names, Pattern.parse(text)) for text in UNIFORM}
        if any(missing(seed, MIXED, method) for method in ("one-shot", "SR-STE")):
            schemes[MIXED] = mixed_digits(dense, names, 0.25)
        for method, epochs, chosen in (
            ("", FURTHER_EPOCHS, schemes), (LONG, LONG_EPOCHS, {"2:4": schemes["2:4"]})
        ):  # fmt: skip
            if missing(seed, "dense", f"trained further{method}"):
                further = fresh(dense)
                fit(further, data, epochs, RATE, seed)
                note(seed, "dense", f"trained further{method}", further)
            for what, scheme in chosen.items():
                if missing(seed, what, "one-shot"):
                    note(seed, what, "one-shot", pruned_copy(dense, scheme))
                if missing(seed, what, f"SR-STE{method}"):
                    module = sparsify(fresh(dense), scheme, decay=0.0)
                    sad = fit(module, data, epochs, RATE, seed, DECAY)
                    note(seed, what, f"SR-STE{method}", freeze(module).eval(), sad.per_weight)
        for levels in (chain(4, 1), chain(8, 1, halving=True)):
            if missing(seed, str(levels[-1]), "IDP"):
                inherited(dense, levels, names, data, seed, note)


def dense_digits(data: Digits, seed: int) -> DigitsViT:
    """Return the dense network of a seed; it is kept."""
    file = RESULTS / f"digits dense {seed}.pt"
    if not file.is_file():
        torch.save(train_dense(data, seed).state_dict(), file)
    module = DigitsViT()
    module.load_state_dict(torch.load(file, weights_only=True))
    return module.eval()


def inherited(dense, levels, names, data, seed, note) -> None:
    """Run one chain; every level is trained for LEVEL_EPOCHS."""
    sads = []

    def train(module: nn.Module, pattern: Pattern, turn: int) -> None:
        sads.append(fit(module, data, LEVEL_EPOCHS, RATE, seed, DECAY).per_weight)

    family = inherit(fresh(dense), levels, train, lambda m: accuracy(m, data), decay=0.0,
                     layers=names)  # fmt: skip
    for candidate, sad in zip(family, sads, strict=True):
        note(seed, str(candidate.pattern), "IDP", candidate.module.eval(), sad)


def fresh(module: nn.Module) -> nn.Module:
    """Return a copy."""
    return copy.deepcopy(module)


def pruned_copy(module: nn.Module, scheme: dict[str, Pattern]) -> nn.Module:
    """Return a copy whose layers are projected."""
    copied = fresh(module)
    with torch.no_grad():
        for name, pattern in scheme.items():
            weight = copied.get_submodule(name).weight
            weight.copy_(projected(weight, pattern))
    return copied


def mixed_digits(dense: nn.Module, names: list[str], density: float) -> dict[str, Pattern]:
    """Choose N:8 by measured loss on training digits."""
    batch = (patches(load_digits().train[:450]),)
    shapes = layer_shapes(dense, (batch[0][:1],))
    budget = density * sum(shapes[name].cycles(U256, 8) for name in names)
    _, policy = compress(
        dense, (batch[0][:1],), target=f"product-cycles={budget}", data=[batch], config=U256,
        method="magnitude", layers=names,
    )  # fmt: skip
    return {name: layer.pattern or Pattern(8, 8) for name, layer in policy.layers.items()}


def digits_samples() -> list[tuple[torch.Tensor]]:
    """Return images to calibrate scales with; the first is the one that is timed."""
    x = patches(load_digits().train[:8])
    return [(x[i : i + 1],) for i in range(len(x))]


def digits_program(module: nn.Module, config: str = "u256") -> twillcore.Program:
    """Compile for one image."""
    samples = digits_samples()
    return twillcore.compile(module, samples[0], config=config, calibration=samples)


def digits_rtl(config: str = "u256") -> None:
    """Run the networks of the first seed on the RTL."""
    rows = {}
    for what in ("dense", *UNIFORM, f"2:4{LONG}", MIXED):
        module = DigitsViT()
        module.load_state_dict(torch.load(RESULTS / f"digits {what}.pt", weights_only=True))
        program = digits_program(module.eval(), config)
        rows[what] = on_rtl(program, digits_samples()[0]) | {"config": config}
        say(f"{what}: {rows[what]}")
        store("digits_rtl", rows)


def on_rtl(program: twillcore.Program, inputs: Sequence[torch.Tensor]) -> dict:
    """Run one input; bit-exact: as the network's integers, at the cycle engine's time."""
    expected = program.run(*inputs, engine="reference").outputs[0]
    found = program.run(*inputs, engine="rtl")
    timed = program.run(*inputs, engine="cycle")
    functional = program.run(*inputs, engine="functional").outputs[0]
    exact = torch.equal(found.outputs[0], expected) and torch.equal(functional, expected)
    return {"rtl_cycles": found.cycles, "bit_exact": exact and found.cycles == timed.cycles}


# MiniLM


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


def figures_of(folder: str) -> dict:
    """Return what ``twillcore compress`` says of a network."""
    return json.loads((Path(folder) / "figures.json").read_text())


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


def methods(*folders: str) -> None:
    """Collect what ``twillcore compress`` says of networks, and run each on the RTL."""
    rows = []
    for folder in folders:
        figures = figures_of(folder)
        subject = find_subject(figures["network"])
        module, policy = load_candidate(Path(folder), subject)
        samples = subject.samples()
        program = twillcore.compile(
            module, samples[0], config=figures["config"], calibration=samples, policy=policy
        )
        rows.append(figures | {"rtl": on_rtl(program, samples[0]) | {"config": figures["config"]}})
        say(f"{folder}: {rows[-1]['rtl']}")
    store("methods", rows)


# The page


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


def every(count: int) -> Callable[[int, int, str], None]:
    """Return a progress report that prints now and then."""

    def show(done: int, total: int, name: str) -> None:
        if done % count == 0:
            say(f"{done}/{total} {name}")

    return show


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, *arguments = sys.argv[1:]
    globals()[name](*(int(a) if a.isdigit() else a for a in arguments))
