"""Figures of compression, an experiment per argument: ``python bench/compression.py digits``.

Each experiment writes what it measured to ``build/compression/``; ``page`` makes the page of
``docs/results/`` from these. Every network is compiled and timed by the cycle engine.
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
from twillcore.config import PRESETS
from twillcore.models.allocation import allocate
from twillcore.models.cost import layer_shapes
from twillcore.models.digits import load_digits, patches
from twillcore.models.digits_vit import accuracy, fit, train_dense
from twillcore.models.idp import chain, inherit
from twillcore.models.layout import projected
from twillcore.models.minilm import MiniLM, load_minilm
from twillcore.models.nm import project
from twillcore.models.ompq import choose_bits, features, importance, orthogonality
from twillcore.models.pattern import Pattern
from twillcore.models.policy import LayerPolicy, Policy
from twillcore.models.qat import quantise_rows
from twillcore.models.reconstruct import prune_by_reconstruction
from twillcore.models.sensitivity import measure
from twillcore.models.sr_ste import freeze, sparsify
from twillcore.models.text import calibration_sentences, evaluation_sentences
from twillcore.models.tokenizer import count_tokens, tokenize
from twillcore.models.zoo import batches_without_padding

U256 = PRESETS["u256"]
RESULTS = ROOT / "build" / "compression"
SEEDS = (0, 1, 2)
TOKENS = 32  # of the sentence that is timed


def say(text: str) -> None:
    """Print progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def store(name: str, rows: object) -> None:
    """Keep what was measured, with where it comes from."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    data = {"commit": commit(), "date": time.strftime("%F"), "processor": processor(), "rows": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1))


# The small vision transformer

EPOCHS, LEVEL_EPOCHS, RATE, DECAY = 20, 7, 1e-3, 1.0


def digits(seeds: Sequence[int] = SEEDS) -> None:
    """Accuracy of the digits ViT: dense, uniform and mixed; one-shot, SR-STE, inherited."""
    data = load_digits()
    rows: list[dict] = []
    timed: dict[tuple[str, int], int] = {}

    def note(seed: int, what: str, method: str, module: nn.Module, sad: float = 0.0) -> None:
        found = accuracy(module, data)
        scheme = what, seed if "mixed" in what else 0  # which cycles follow from
        if scheme not in timed:
            timed[scheme] = digits_cycles(module)
        cycles = timed[scheme]
        rows.append(
            {"seed": seed, "sparsity": what, "method": method, "accuracy": found, "sad": sad,
             "cycles": cycles}
        )  # fmt: skip
        say(f"seed {seed} {what} {method}: {found:.4f}, SAD {sad:.3f}, {cycles} cycles")
        store("digits", rows)

    for seed in seeds:
        dense = train_dense(data, seed)
        note(seed, "dense", "", dense)
        names = dense.sparse()
        uniform = {
            text: dict.fromkeys(names, Pattern.parse(text)) for text in ("2:4", "1:4", "1:8")
        }
        schemes = {**uniform, "mixed N:8, 25 %": mixed_digits(dense, names, 0.25)}
        for what, scheme in schemes.items():
            shot = pruned_copy(dense, scheme)
            note(seed, what, "one-shot", shot)
            module = sparsify(fresh(dense), scheme, decay=0.0)
            sad = fit(module, data, EPOCHS, RATE, seed, DECAY)
            note(seed, what, "SR-STE", freeze(module).eval(), sad.per_weight)
        for levels in (chain(4, 1), chain(8, 1, halving=True)):
            inherited(dense, levels, names, data, seed, note)


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
    data = load_digits()
    batch = (patches(data.train[:450]),)
    options = {
        name: {
            n: lambda name=name, n=n: projected(dense.get_submodule(name).weight, Pattern(n, 8))
            for n in range(1, 9)
        }
        for name in names
    }
    shapes = layer_shapes(dense, (batch[0][:1],))
    loss = measure(dense.requires_grad_(False), [batch], options)
    dense.requires_grad_(True)
    cost = {name: {n: shapes[name].cycles(U256, n) for n in range(1, 9)} for name in names}
    budget = density * sum(options[8] for options in cost.values())
    chosen = allocate(loss, cost, budget, "cycles")
    return {name: Pattern(n, 8) for name, n in chosen.items()}


def digits_cycles(module: nn.Module) -> int:
    """Return the cycles of one image."""
    data = load_digits()
    x = patches(data.train[:8])
    samples = [(x[i : i + 1],) for i in range(len(x))]
    program = twillcore.compile(module, samples[0], config=U256, calibration=samples)
    return program.run(*samples[0], engine="cycle").cycles


# MiniLM


def embeddings(module: nn.Module, texts: Sequence[str]) -> torch.Tensor:
    """Return what ``module`` makes of ``texts``, texts of equal length together."""
    with torch.no_grad():
        return torch.cat([module(*batch) for batch in batches_without_padding(texts)])


def rank_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return Spearman's rho of the similarities of all pairs."""
    i, j = torch.triu_indices(len(a), len(a), 1)
    return float(spearmanr((a @ a.T)[i, j], (b @ b.T)[i, j]).statistic)


def minilm_row(what: str, method: str, module: nn.Module, int8: bool = True) -> dict:
    """Measure one network: fp32 and, on the accelerator, W8A8; cycles of a sentence."""
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
    if int8:
        row |= on_chip(module, texts)
        say(f"  W8A8 {row['int8']:.4f} ({row['int8_min']:.3f}), {row['cycles']:,} cycles")
    return row


def on_chip(module: nn.Module, texts: Sequence[str]) -> dict:
    """Compile; integers of the reference engine (all others are equal), time of the cycle one."""
    calibration = calibration_sentences()
    tokens = -(-max(*count_tokens(texts), *count_tokens(calibration)) // 16) * 16
    samples = [tokenize([text], tokens) for text in calibration]
    program = twillcore.compile(module, samples[0], config=U256, calibration=samples)
    dense = load_minilm()
    cosine, found, wanted = [], [], []
    for text in texts:
        inputs = tokenize([text], tokens)
        found.append(program.run(*inputs, engine="reference").outputs[0])
        with torch.no_grad():
            wanted.append(dense(*inputs))
    a, b = torch.cat(found), torch.cat(wanted)
    cosine = torch.nn.functional.cosine_similarity(a, b)
    timed = [tokenize([text], TOKENS) for text in calibration]
    short = twillcore.compile(module, timed[0], config=U256, calibration=timed)
    cycles = short.run(*timed[0], engine="cycle").cycles
    return {"int8": float(cosine.mean()), "int8_min": float(cosine.min()),
            "int8_rho": rank_correlation(a / a.norm(dim=-1, keepdim=True), b),
            "cycles": cycles}  # fmt: skip


def trained(folder: str) -> MiniLM:
    """Return the network in a folder of ``twillcore compress``."""
    module = load_minilm()
    module.load_state_dict(torch.load(Path(folder) / "model.pt", weights_only=True))
    return module


def sparsity_of(folder: str) -> str:
    """Return the pattern of a network in a folder, or that it has several."""
    patterns = set(map(str, Policy.load(Path(folder) / "policy.toml").patterns().values()))
    return patterns.pop() if len(patterns) == 1 else "mixed"


def minilm(*folders: str) -> None:
    """Measure networks that ``twillcore compress`` has trained."""
    path = RESULTS / "minilm.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    known = {row["folder"] for row in rows}
    for folder in folders:
        if folder not in known:
            figures = json.loads((Path(folder) / "figures.json").read_text())
            method = f"SR-STE, {figures['steps']} steps" if figures["steps"] else figures["method"]
            row = minilm_row(sparsity_of(folder), method, trained(folder))
            rows.append({**row, "folder": folder})
            store("minilm", rows)


def bits(average: float = 4.0, sentences: int = 16) -> None:
    """Weight bits of MiniLM at an average: uniform, by measured loss, by OMPQ as published."""
    dense = load_minilm()
    names = list(dense.linears())
    weights = {name: dense.get_submodule(name).weight.clone() for name in names}
    sizes = {name: weight.numel() for name, weight in weights.items()}
    widths = range(2, 9)
    batches = batches_without_padding(calibration_sentences()[:sentences])
    options = {
        name: {b: lambda name=name, b=b: quantise_rows(weights[name], b) for b in widths}
        for name in names
    }
    loss = measure(dense, batches, options, progress=every(25))
    cost = {name: {b: float(sizes[name] * b) for b in widths} for name in names}
    budget = average * sum(sizes.values())
    batch = tokenize([t for t in calibration_sentences() if count_tokens([t])[0] >= 16], 16)
    orm = orthogonality(features(dense, batch))
    schemes = {
        "uniform": dict.fromkeys(names, int(average)),
        "integer program on measured loss": allocate(loss, cost, budget, "bits"),
        "OMPQ as published, beta 1": choose_bits(sizes, importance(orm, 1.0), average),
        "OMPQ as published, beta 0.1": choose_bits(sizes, importance(orm, 0.1), average),
    }
    rows = []
    for method, scheme in schemes.items():
        module = load_minilm()
        for name, width in scheme.items():
            module.get_submodule(name).weight.copy_(quantise_rows(weights[name], width))
        spent = sum(sizes[n] * b for n, b in scheme.items()) / sum(sizes.values())
        row = minilm_row(f"{average:g} bits", method, module, int8=False)
        rows.append({**row, "average": spent, "bits": scheme})
        policy = Policy("minilm", {n: LayerPolicy(bits=b) for n, b in scheme.items()})
        RESULTS.mkdir(parents=True, exist_ok=True)
        policy.save(RESULTS / f"bits-{method.split()[0]}.toml")
        store("bits", rows)


def mixed(density: float = 0.5, sentences: int = 16) -> None:
    """N:8 of each layer of MiniLM by measured loss, against uniform at equal cycles; one-shot."""
    dense = load_minilm()
    names = list(dense.linears())
    shapes = layer_shapes(dense, tokenize(["Twill"], TOKENS))
    texts = calibration_sentences()
    batches = batches_without_padding(texts[:sentences])
    options = {
        name: {
            n: lambda name=name, n=n: project(dense.get_submodule(name).weight, Pattern(n, 8))
            for n in range(1, 9)
        }
        for name in names
    }
    loss = measure(dense, batches, options, progress=every(25))
    cost = {name: {n: shapes[name].cycles(U256, n) for n in range(1, 9)} for name in names}
    budget = density * sum(options[8] for options in cost.values())
    chosen = {n: Pattern(k, 8) for n, k in allocate(loss, cost, budget, "cycles").items()}
    uniform = dict.fromkeys(names, Pattern(int(density * 8), 8))
    rows = []
    for method, scheme in (("uniform", uniform), ("integer program on measured loss", chosen)):
        module = load_minilm()
        prune_by_reconstruction(module, batches_without_padding(texts), scheme, progress=every(9))
        torch.save(module.state_dict(), RESULTS / f"mixed-{method.split()[0]}.pt")
        Policy("minilm", {n: LayerPolicy(str(p)) for n, p in scheme.items()}).save(
            RESULTS / f"mixed-{method.split()[0]}.toml"
        )
        rows.append(minilm_row(f"N:8 at {density:.0%}", method, module, int8=False))
        rows[-1]["closed_form_cycles"] = sum(cost[n][p.kept] for n, p in scheme.items())
        store("mixed", rows)


def rtl(*folders: str) -> None:
    """Run networks on the RTL: bit-exact, and at the cycle that the cycle engine says."""
    rows = []
    samples = [tokenize([text], TOKENS) for text in calibration_sentences()]
    for folder in ("", *folders):
        what = f"{sparsity_of(folder)}, trained" if folder else "dense"
        module = trained(folder) if folder else load_minilm()
        program = twillcore.compile(module, samples[0], config=U256, calibration=samples)
        expected = program.run(*samples[0], engine="reference")
        row = {"what": what, "tokens": TOKENS}
        row["cycles"] = program.run(*samples[0], engine="cycle").cycles
        rows.append(row)
        found = program.run(*samples[0], engine="rtl")
        row["bit_exact"] = bool(torch.equal(found.outputs[0], expected.outputs[0]))
        row["rtl_cycles"] = found.cycles
        say(str(row))
        store("rtl", rows)


# The page


def page() -> None:
    """Write ``docs/results/compression.md`` from what has been measured."""
    parts = ["# Compression", INTRODUCTION]
    for name, title, text, render in SECTIONS:
        path = RESULTS / f"{name}.json"
        if path.is_file():
            data = json.loads(path.read_text())
            origin = (
                f"`python bench/compression.py {name}` at commit {data['commit']} on"
                f" {data['date']}, {data['processor']}."
            )
            parts += [f"## {title}", text, render(data["rows"]), origin]
    parts += ["## Open", OPEN]
    (ROOT / "docs" / "results").mkdir(parents=True, exist_ok=True)
    (ROOT / "docs" / "results" / "compression.md").write_text("\n\n".join(parts) + "\n")


INTRODUCTION = (
    "Cosines are to the embeddings of the dense network in fp32 PyTorch, mean (minimum), over"
    " sentences that neither calibration nor training saw; rho is Spearman's rank correlation of"
    " the similarities of all pairs of them. Cycles are of the whole program on `u256` by the"
    " cycle engine, memory latency 40."
)
OPEN = (
    "* 1:4 MiniLM: the loss still fell when its 400 steps ended; train further with"
    " `--start DIR/model.pt`.\n"
    "* Digits: one seed so far, without IDP; SR-STE at 2:4 is 1.6 points below dense after"
    " 20 epochs of 11 steps.\n"
    "* Mixed N:8 against uniform, both trained alike, on MiniLM:"
    " `python bench/compression.py mixed` measures one-shot only and has not run.\n"
    "* The two 4-bit networks are measured in fp32 arithmetic, not yet on the accelerator."
)
MINILM_TEXT = (
    "One-shot pruning by reconstruction, then SR-STE with distillation on sentences from the"
    " documentation of the installed packages (82,216 sentences here), words exchanged at random in"
    " half of them; seed 0, batches of 1,024 tokens:"
    " `twillcore compress minilm --target 2:4 --steps 500 -o DIR`, the same with `--target 1:4"
    " --steps 400`. The command resumes after an interruption. The text depends on the packages"
    " that are installed, so figures elsewhere differ a little. W8A8 is the integer program on the"
    " accelerator, all scales static."
)
DIGITS_TEXT = (
    "A vision transformer of 102,538 parameters on scikit-learn's digits, 450 test images (one is"
    " 0.22 %); 18 layers sparse. SR-STE: 20 epochs from the dense network (80 epochs). IDP: 7"
    " epochs at each level of the chains 3:4, 2:4, 1:4 and 4:8, 2:8, 1:8. Mixed: N:8 per layer by"
    " an integer program on measured loss, at the cycles of 25 % density. Accuracy is in fp32, mean"
    " (smallest to largest) over the seeds; SAD is mask changes per weight, summed over all steps"
    " of a training; cycles are of one image."
)


def render_minilm(rows: list[dict]) -> str:
    """Return the table of MiniLM."""
    return table(
        ("sparsity", "method", "fp32", "rho", "W8A8", "rho, W8A8", "cycles, 32 tokens"),
        [
            (
                row["what"], row["method"], f"{row['fp32']:.4f} ({row['fp32_min']:.3f})",
                f"{row['rho']:.3f}",
                f"{row['int8']:.4f} ({row['int8_min']:.3f})" if "int8" in row else "",
                f"{row['int8_rho']:.3f}" if "int8_rho" in row else "",
                f"{row['cycles']:,}" if "cycles" in row else "",
            )
            for row in rows
        ],
    )  # fmt: skip


def render_digits(rows: list[dict]) -> str:
    """Return the table of the digits, a line for each sparsity and method."""
    lines = []
    dense = next(row["cycles"] for row in rows if row["sparsity"] == "dense")
    for what, method in dict.fromkeys((row["sparsity"], row["method"]) for row in rows):
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
            )
        )  # fmt: skip
    return table(("sparsity", "method", "seeds", "accuracy, %", "SAD", "cycles", "speed-up"), lines)


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


def render_mixed(rows: list[dict]) -> str:
    """Return the table of N:8."""
    return table(
        ("scheme", "cycles of the GEMMs, closed form", "cosine", "rho"),
        [
            (row["method"], f"{row['closed_form_cycles']:,}",
             f"{row['fp32']:.4f} ({row['fp32_min']:.3f})", f"{row['rho']:.3f}")
            for row in rows
        ],
    )  # fmt: skip


def render_rtl(rows: list[dict]) -> str:
    """Return the table of the runs on RTL."""
    dense = rows[0]["cycles"]
    return table(
        ("network", "tokens", "cycles", "speed-up", "RTL: cycles", "RTL: bit-exact"),
        [
            (row["what"], row["tokens"], f"{row['cycles']:,}", f"{dense / row['cycles']:.2f}",
             f"{row['rtl_cycles']:,}" if "rtl_cycles" in row else "not run",
             {True: "yes", False: "NO"}.get(row.get("bit_exact"), "not run"))
            for row in rows
        ],
    )  # fmt: skip


SECTIONS = (
    ("minilm", "all-MiniLM-L6-v2 at N:M, all 36 linear layers", MINILM_TEXT, render_minilm),
    ("rtl", "Cycles of these networks", "One sentence; every weight int8.", render_rtl),
    (
        "mixed",
        "N:8 per layer",
        "One-shot by reconstruction, without training, at the cycles of 50 % density.",
        render_mixed,
    ),
    (
        "bits",
        "Bits per layer",
        "Weights only, a scale per row by least squares, no training; activations in fp32.",
        render_bits,
    ),
    ("digits", "Digits", DIGITS_TEXT, render_digits),
)


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
