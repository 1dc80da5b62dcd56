"""``twillcore run``: a pretrained network, text in, embeddings out."""

from pathlib import Path
from typing import Annotated

import typer

from twillcore.commands.options import (
    Configuration,
    Engine,
    EngineName,
    Json,
    MemoryBeatCycles,
    MemoryLatency,
    Sparsity,
    Vcd,
    VcdWindow,
    waveform,
)

DEFAULT_TEXT = "A twill is woven over N threads and under M."
EXAMPLES = (
    "twillcore run minilm --text 'Hello world'",
    "twillcore run minilm --text 'A cat sat.' --text 'A dog ran.' --engine cycle --out e.npy",
    "twillcore run minilm --sparsity 2:4 --tokens 128 --json",
    "twillcore run minilm --engine cycle --save minilm.twill",
    "twillcore run minilm --vcd run.vcd --vcd-window 100000:101000",
)


def command(
    network: Annotated[str, typer.Argument(metavar="NETWORK", help="minilm: all-MiniLM-L6-v2.")],
    text: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="What to embed; may be given several times."),
    ] = None,
    sparsity: Sparsity = "dense",
    config: Configuration = "u256",
    engine: Engine = EngineName.rtl,
    tokens: Annotated[
        int | None,
        typer.Option(help="Length that texts are padded or cut to; default: as the longest needs."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.npy", help="Write the embeddings, a row per text.")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="PROGRAM", help="Keep the program, for inspect, disasm and profile."),
    ] = None,
    memory_latency: MemoryLatency = 40,
    memory_beat_cycles: MemoryBeatCycles = 1,
    vcd: Vcd = None,
    vcd_window: VcdWindow = None,
    as_json: Json = False,
) -> None:
    """Run sentences through a pretrained network on the accelerator and compare with PyTorch.

    Weights are pruned to N:M in one shot (by reconstruction on calibration sentences), quantised
    and compiled; both are cached. Every text runs the same program, one after the other.
    """
    from twillcore.commands.report import RunReport
    from twillcore.commands.terminal import working
    from twillcore.config import load_config
    from twillcore.dram import Dram

    texts = text or [DEFAULT_TEXT]
    chosen = load_config(config)
    options = waveform(engine, vcd, vcd_window)
    dram = Dram(latency=memory_latency, beat_cycles=memory_beat_cycles)
    with working("starting PyTorch"):
        from twillcore.commands.execution import execute, reference, same_outputs
        from twillcore.commands.files import write_array
        from twillcore.commands.network import compiled, cosines, fp32, length_for
        from twillcore.models.pattern import Pattern
        from twillcore.models.tokenizer import tokenize

    if (pattern := Pattern.parse(sparsity)) is not None:
        pattern.beats(chosen)  # refuses what does not run
    length = length_for(texts, tokens, chosen)
    program = compiled(network, sparsity, length, chosen)
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
            result = execute(program.image, integers, engine, dram, what, **options)
            report.add(result, same_outputs(result, expected))
        embeddings.append(program.finish(result, passed).outputs[0])
    import numpy as np

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
        _cosines(texts, figures),
        network=network,
        sparsity=sparsity,
        tokens=length,
        texts=texts,
        **figures,
    )


def _cosines(texts: list[str], figures: dict[str, list[float]]):
    from rich.table import Table

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
