"""``twillcore gemm``: one random matrix product, memory to memory."""

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

EXAMPLES = (
    "twillcore gemm 64 64 64",
    "twillcore gemm 128 768 768 --sparsity 2:4 --memory-latency 1",
    "twillcore gemm 17 100 33 --config tiny --vcd gemm.vcd --vcd-window 0:500",
)


def command(
    m: Annotated[int, typer.Argument(metavar="M", help="Rows of the input (tokens).")],
    k: Annotated[int, typer.Argument(metavar="K", help="Inputs of the layer.")],
    n: Annotated[int, typer.Argument(metavar="N", help="Outputs of the layer.")],
    sparsity: Sparsity = "dense",
    config: Configuration = "u256",
    engine: Engine = EngineName.rtl,
    memory_latency: MemoryLatency = 40,
    memory_beat_cycles: MemoryBeatCycles = 1,
    seed: Annotated[int, typer.Option(help="Of the random weights and inputs.")] = 0,
    vcd: Vcd = None,
    vcd_window: VcdWindow = None,
    as_json: Json = False,
) -> None:
    """Multiply a random int8 M x K input by K x N weights, and check the result bit for bit."""
    from twillcore.commands.execution import execute, reference, same_outputs
    from twillcore.commands.report import RunReport
    from twillcore.commands.terminal import working
    from twillcore.compiler.gemm_graph import gemm_graph
    from twillcore.compiler.pipeline import compile_graph
    from twillcore.config import load_config
    from twillcore.dram import Dram
    from twillcore.models.pattern import Pattern

    chosen = load_config(config)
    options = waveform(engine, vcd, vcd_window)
    dram = Dram(latency=memory_latency, beat_cycles=memory_beat_cycles)
    pattern = Pattern.parse(sparsity)
    beats = chosen.block if pattern is None else pattern.beats(chosen)
    with working(f"compiling for {chosen.name}"):
        graph, inputs = gemm_graph(m, k, n, chosen, beats, seed)
        image = compile_graph(graph)
    expected = reference(graph, inputs)
    report = RunReport(image)
    if engine == "reference":
        report.add(expected, None)
    else:
        result = execute(image, inputs, engine, dram, **options)
        report.add(result, same_outputs(result, expected))
    report.show(as_json, sparsity=sparsity, beats=beats, seed=seed)
