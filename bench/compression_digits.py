"""Compression of a vision transformer and a convolutional network on scikit-learn's digits."""

import copy
from pathlib import Path

import torch
from compression_records import RESULTS, figures_of, on_rtl, recall, say, store
from torch import nn

import twillcore
from twillcore.commands.candidate import load_candidate
from twillcore.config import PRESETS
from twillcore.models.compress import compress
from twillcore.models.cost import layer_shapes
from twillcore.models.digits import Digits, load_digits, patches
from twillcore.models.digits_vit import DigitsViT, accuracy, fit, train_dense
from twillcore.models.idp import chain, inherit
from twillcore.models.layout import projected
from twillcore.models.pattern import Pattern
from twillcore.models.sr_ste import freeze, sparsify
from twillcore.models.subjects import find_subject

U256 = PRESETS["u256"]
SEEDS = (0, 1, 2)
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
