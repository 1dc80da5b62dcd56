"""``twillcore compress``: a network made smaller, with its policy, accuracy and cycles."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from twillcore.commands.options import Configuration, Json
from twillcore.errors import TwillcoreError

EXAMPLES = (
    "twillcore compress digits-vit --target 2:4 --steps 20 -o vit-2of4",
    "twillcore compress digits-vit --target 1:4 --method idp --steps 7 -o family",
    "twillcore compress minilm --target cycles=150000 -o mixed",
    "twillcore compress minilm --target 2:4 --steps 500 -o minilm-2of4",
    "twillcore compress minilm --target 2:4 --start minilm-2of4/model.pt --steps 500 -o further",
)


class Method(StrEnum):
    """How weights are pruned."""

    reconstruction = "reconstruction"
    magnitude = "magnitude"
    idp = "idp"


def command(
    network: Annotated[str, typer.Argument(metavar="NETWORK", help="minilm or digits-vit.")],
    target: Annotated[
        str,
        typer.Option(
            metavar="N:M|UNIT=VALUE",
            help="A uniform pattern, or the least loss within cycles=, bytes=, density= or bits=.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the results.")
    ],
    method: Annotated[
        Method,
        typer.Option(
            help="reconstruction: weights repair what is removed; magnitude; idp: a family of"
            " candidates down to the target, each trained for --steps."
        ),
    ] = Method.reconstruction,
    steps: Annotated[
        int,
        typer.Option(min=0, help="Of training by SR-STE: steps (minilm) or epochs (digits-vit)."),
    ] = 0,
    start: Annotated[
        Path | None,
        typer.Option(metavar="FILE.pt", help="Weights to start from instead of the dense ones."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the training.")] = 0,
    config: Configuration = "u256",
    as_json: Json = False,
) -> None:
    """Compress a network; an interrupted training resumes when the same command is run again.

    DIR gets model.pt (weights), policy.toml (how each layer is compressed, to read and edit) and
    figures.json; with idp, a folder per candidate.
    """
    from twillcore.commands.terminal import counting, print_json, results, working

    with working("starting PyTorch"):
        from twillcore.commands.candidate import write_candidate
        from twillcore.models.pattern import Pattern
        from twillcore.models.policy import LayerPolicy, Policy
        from twillcore.models.subjects import find_subject, inherited

    subject = find_subject(network)
    common = {"network": network, "method": str(method), "target": target, "steps": steps,
              "seed": seed}  # fmt: skip
    made = []
    if method == "idp":
        pattern = Pattern.parse(target) if "=" not in target else None
        if pattern is None or not steps or start is not None:
            raise TwillcoreError("idp needs a target N:M and --steps per level, and starts dense")
        pattern.beats(_config(config))
        with counting("inherited pruning") as progress:
            family = inherited(subject, pattern, steps, seed, progress)
        for candidate in family:
            names = subject.layers(candidate.module)
            choice = LayerPolicy(str(candidate.pattern), lut_share=0.0)
            policy = Policy(network, dict.fromkeys(names, choice))
            folder = output / str(candidate.pattern).replace(":", "of")
            made.append((folder, candidate.module, policy))
    else:
        output.mkdir(parents=True, exist_ok=True)
        with counting(f"compressing {network}") as progress:
            module, policy = subject.compressed(
                target,
                method,
                steps,
                seed,
                config,
                network,
                output / "checkpoint.pt",
                start,
                progress,
            )
        made.append((output, module, policy))
    figures = []
    for folder, module, policy in made:
        with working(f"measuring {folder}"):
            figures.append(write_candidate(folder, module, policy, subject, config, common))
    if as_json:
        print_json(figures if method == "idp" else figures[0])
        return
    for (folder, _, _), figure in zip(made, figures, strict=True):
        results.print(
            f"{folder}: {subject.score_name} {figure['score']:.4f},"
            f" {figure['cycles']:,} cycles ({figure['speed_up']:.2f} times dense),"
            f" {figure['bytes']:,} bytes of weights"
        )


def _config(name: str):
    from twillcore.config import load_config

    return load_config(name)
