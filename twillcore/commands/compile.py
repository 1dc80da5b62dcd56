"""``twillcore compile``: a network that ``torch.export`` saved becomes a program."""

from pathlib import Path
from typing import Annotated

import typer

from twillcore.commands.options import Configuration, Json

EXAMPLES = (
    "twillcore compile mlp.pt2 -o mlp.twill",
    "twillcore compile mlp.pt2 --calibration inputs.npz --config u256 -o mlp.twill",
    "In Python: torch.export.save(torch.export.export(model.eval(), (x,)), 'mlp.pt2')",
)


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL.pt2", help="Made by torch.export.save.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PROGRAM", help="File to write.")
    ],
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="IN.npz",
            help="An array per input, samples along the first axis; default: the inputs that the"
            " model was exported with.",
        ),
    ] = None,
    config: Configuration = "u256",
    as_json: Json = False,
) -> None:
    """Quantise a network with calibration inputs and compile it into one program file.

    N:M sparsity is detected from the weights. An operator that is not supported is an error that
    lists all of them.
    """
    from twillcore.commands.terminal import messages, print_json, results, working
    from twillcore.config import load_config

    chosen = load_config(config)
    with working("starting PyTorch"):
        from twillcore.flow import compile

    exported, example = _load(model)
    samples = [] if calibration is None else _samples(calibration, exported, example)
    with working(f"calibrating and compiling {model.name} for {chosen.name}"):
        program = compile(exported, example, config=chosen, calibration=samples)
    program.save(output)
    image, notes = program.image, program.notes
    if as_json:
        print_json(
            {
                "program": str(output),
                "config": chosen.name,
                "instructions": image.instruction_count,
                "memory_bytes": image.memory_bytes,
                "macs": sum(layer.macs for layer in image.layers),
                "useful_macs": sum(layer.useful_macs for layer in image.layers),
                "notes": notes,
            }
        )
        return
    for line in notes.get("host", ()):
        messages.print(line)
    if warning := notes.get("warning"):
        messages.print(f"[yellow]warning: {warning}")
    results.print(
        f"{output}: {image.instruction_count:,} instructions, {image.memory_bytes:,} bytes of"
        f" memory, compiled in {notes['compile_seconds']:.1f} s"
        f" with {notes['peak_memory_bytes'] / 1e6:,.0f} MB"
    )


def _load(path: Path):
    """Return an exported program and the inputs it was exported with."""
    import logging
    import warnings

    import torch

    from twillcore.errors import TwillcoreError

    if not path.is_file():
        raise TwillcoreError(f"{path}: no such file")
    logging.getLogger("torch.export").setLevel(logging.CRITICAL)  # it logs its own tracebacks
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.load(path)
    except Exception as error:  # whatever torch makes of a file that is none of its own
        raise TwillcoreError(
            f"{path}: torch {torch.__version__} cannot load it: {str(error).partition('.')[0]}"
            " (a program saved by torch.export.save is needed)"
        ) from None
    if exported.example_inputs is None:
        raise TwillcoreError(f"{path}: was saved without its example inputs; export it again")
    arguments, keywords = exported.example_inputs
    if keywords:
        raise TwillcoreError(
            f"{path}: takes keyword arguments ({', '.join(keywords)}); export it without"
        )
    return exported, tuple(arguments)


def _samples(path: Path, exported, example: tuple) -> list[tuple]:
    import torch

    from twillcore.commands.files import read_arrays
    from twillcore.commands.samples import InputShape, split_samples

    names = exported.graph_signature.user_inputs
    inputs = [InputShape(n, tuple(t.shape)) for n, t in zip(names, example, strict=True)]
    runs = split_samples(read_arrays(path), inputs, str(path))
    return [tuple(torch.from_numpy(array.copy()) for array in run) for run in runs]
