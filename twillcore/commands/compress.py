"""``twillcore compress``: a network made smaller, with its policy, accuracy and cycles."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from twillcore.commands.options import Json
from twillcore.errors import TwillcoreError

EXAMPLES = (
    "twillcore compress digits-vit --target 2:4 --method sr-ste --steps 60 -o vit-2of4",
    "twillcore compress digits-vit --target 1:4 --method idp --steps 7 -o family",
    "twillcore compress digits-vit --target density=0.25 --method domino --steps 20 -o domino",
    "twillcore compress digits-cnn --target bits=4 --method mixmatch -o cores",
    "twillcore compress minilm --target cycles=660000 --steps 200 -o mixed",
    "twillcore compress minilm --target bits=4 -o four-bits",
    "twillcore compress minilm --policy four-bits/policy.toml -o edited",
    "twillcore compress minilm --target cycles=900000 --method low-rank -o factors",
    "twillcore compress minilm --target 2:4 --steps 500 -o minilm-2of4",
    "twillcore compress minilm --target 2:4 --start minilm-2of4/model.pt --steps 500 -o further",
)


class Method(StrEnum):
    """How a network gets smaller; what is before ``--steps``, and what chooses."""

    reconstruction = "reconstruction"
    magnitude = "magnitude"
    sr_ste = "sr-ste"
    idp = "idp"
    domino = "domino"
    ompq = "ompq"
    low_rank = "low-rank"
    haloc = "haloc"
    trp = "trp"
    mixmatch = "mixmatch"
    n3h = "n3h"


METHODS_HELP = (
    "reconstruction: one-shot, what stays repairs what is removed or rounded; magnitude: one-shot,"
    " without repair; sr-ste: from dense weights; idp: a family of candidates down to the target,"
    " each trained for --steps; domino: N per layer by DominoSearch (density=); ompq: bits per"
    " layer by OMPQ (bits=); low-rank, haloc, trp: two factors for a layer (cycles=), ranks by lost"
    " energy, by trained probabilities, or after training towards low rank; mixmatch, n3h: channels"
    " of least variance or divergence go to the LUT core at bits=."
)


def command(
    network: Annotated[
        str, typer.Argument(metavar="NETWORK", help="minilm, digits-vit or digits-cnn.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the results.")
    ],
    target: Annotated[
        str | None,
        typer.Option(
            metavar="N:M|UNIT=VALUE",
            help="A uniform pattern, or the least loss within cycles= of the whole program,"
            " product-cycles= (closed form), bytes=, density= or bits=.",
        ),
    ] = None,
    policy_file: Annotated[
        Path | None,
        typer.Option(
            "--policy", metavar="FILE.toml", help="What each layer becomes, instead of a target."
        ),
    ] = None,
    method: Annotated[Method, typer.Option(help=METHODS_HELP)] = Method.reconstruction,
    steps: Annotated[
        int,
        typer.Option(
            min=0,
            help="Of training with the masks, bits or factors: steps (minilm) or epochs (digits).",
        ),
    ] = 0,
    start: Annotated[
        Path | None,
        typer.Option(metavar="FILE.pt", help="Weights to start from instead of the dense ones."),
    ] = None,
    halving: Annotated[
        bool, typer.Option("--halving", help="idp: halve N from level to level, not one less.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the training.")] = 0,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Preset, or a TOML file; default: u256, and z7020 for digits-cnn.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compress a network; an interrupted training resumes when the same command is run again.

    DIR gets model.pt (weights), policy.toml (how each layer is compressed, to read and edit) and
    figures.json; with idp, a folder per candidate.
    """
    from twillcore.commands.terminal import counting, print_json, results, working

    with working("starting PyTorch"):
        from twillcore.cache import content_key
        from twillcore.commands.candidate import write_candidate
        from twillcore.flow import program_cycles
        from twillcore.models.checkpoint import Checkpoint
        from twillcore.models.layout import sparse_layers
        from twillcore.models.pattern import Pattern
        from twillcore.models.policy import LayerPolicy, Policy
        from twillcore.models.subjects import Training, find_subject, inherited, level_folder

    subject = find_subject(network)
    config = config or subject.config
    if (target is None) == (policy_file is None):
        raise TwillcoreError("give either --target or --policy")
    wanted = target or Policy.load(policy_file)
    common = {"network": network, "method": str(method), "target": target or str(policy_file),
              "steps": steps, "seed": seed}  # fmt: skip
    made = []
    if halving and method != "idp":
        raise TwillcoreError("--halving is for --method idp")
    if method == "idp":
        pattern = Pattern.parse(target) if target and "=" not in target else None
        if pattern is None or not steps or start is not None:
            raise TwillcoreError("idp needs a target N:M and --steps per level, and starts dense")
        pattern.beats(_config(config))
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TwillcoreError(f"{output}: cannot be made: {error.strerror}") from None
    with counting(f"compressing {network}") as progress:
        facts = common | {"config": _config(config).hash, "halving": halving}
        if isinstance(wanted, Policy):
            facts["target"] = f"policy {content_key(wanted.to_toml())[:12]}"
        file = Checkpoint(output / "checkpoint.pt", facts)
        training = Training(steps, seed, file, progress)
        if method == "idp":
            family, moved = inherited(subject, pattern, training, halving)
            for candidate, sad in zip(family, moved, strict=True):
                choice = LayerPolicy(str(candidate.pattern), lut_share=0.0)
                names = subject.layers(candidate.module) or sparse_layers(candidate.module)
                policy = Policy(network, dict.fromkeys(names, choice))
                folder = output / level_folder(candidate.pattern)
                made.append((folder, candidate.module, policy, sad))
        else:
            module, policy, sad = subject.compressed(
                wanted, method, training, config, network, program_cycles, start
            )
            made.append((output, module, policy, sad))
    figures = []
    for folder, module, policy, sad in made:
        with working(f"measuring {folder}"):
            more = common | ({"sad": sad} if steps else {})
            figures.append(write_candidate(folder, module, policy, subject, config, more))
    if as_json:
        print_json(figures if method == "idp" else figures[0])
        return
    for (folder, *_), figure in zip(made, figures, strict=True):
        results.print(
            f"{folder}: {subject.score_name} {figure['score']:.4f},"
            f" {figure['cycles']:,} cycles ({figure['speed_up']:.2f} times dense),"
            f" {figure['bytes']:,} bytes of weights"
        )


def _config(name: str):
    from twillcore.config import load_config

    return load_config(name)
