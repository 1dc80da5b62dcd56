"""``twillcore gemm``: one random matrix product, memory to memory."""

from typing import Annotated

import typer

from twillcore.commands.options import (
    Configuration,
    Core,
    CoreName,
    Engine,
    EngineName,
    Json,
    MemoryBeatCycles,
    MemoryLatency,
    Seed,
    Sparsity,
    Vcd,
    VcdWindow,
    WeightBits,
    waveform,
)

EXAMPLES = (
    "twillcore gemm 64 64 64",
    "twillcore gemm 128 768 768 --sparsity 2:4 --memory-latency 1",
    "twillcore gemm 128 768 768 --core both --weight-bits 3 --config z7020",
    "twillcore gemm 17 100 33 --config tiny --vcd gemm.vcd --vcd-window 0:500",
)


def command(
    m: Annotated[int, typer.Argument(metavar="M", help="Rows of the input (tokens).")],
    k: Annotated[int, typer.Argument(metavar="K", help="Inputs of the layer.")],
    n: Annotated[int, typer.Argument(metavar="N", help="Outputs of the layer.")],
    sparsity: Sparsity = "dense",
    core: Core = CoreName.dsp,
    weight_bits: WeightBits = None,
    config: Configuration = "u256",
    engine: Engine = EngineName.rtl,
    memory_latency: MemoryLatency = 40,
    memory_beat_cycles: MemoryBeatCycles = 1,
    seed: Seed = 0,
    vcd: Vcd = None,
    vcd_window: VcdWindow = None,
    as_json: Json = False,
) -> None:
    """Multiply a random int8 M x K input by K x N weights, and check the result bit for bit."""
    from twillcore.commands.layer import beats_of, lut_part, run_layer
    from twillcore.compiler.gemm_graph import gemm_graph
    from twillcore.config import load_config
    from twillcore.dram import Dram

    chosen = load_config(config)
    options = waveform(engine, vcd, vcd_window)
    dram = Dram(latency=memory_latency, beat_cycles=memory_beat_cycles)
    beats = beats_of(sparsity, core, chosen)
    blocks = -(-k // chosen.block)
    lut = lut_part(core, weight_bits, chosen, outputs=n, rows=m, blocks=blocks, beats=beats)
    run_layer(
        lambda: gemm_graph(m, k, n, chosen, beats, seed, lut),
        chosen, engine, dram, options, as_json, sparsity=sparsity, core=core, seed=seed,
    )  # fmt: skip
