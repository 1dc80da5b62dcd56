"""``twillcore conv``: one random convolution, memory to memory."""

import math
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
    in_directions,
    waveform,
)

EXAMPLES = (
    "twillcore conv 56 56 64 64 3 --padding 1",
    "twillcore conv 28 28 128 256 3 --stride 2 --padding 1 --sparsity 2:4 --core both",
    "twillcore conv 14 14 96 96 3 --padding 1 --groups 96 --engine cycle --json",
    "twillcore conv 28 28 64 64 3,5 --padding 1,4 --dilation 1,2",
)

DIRECTIONS = "N|DOWN,RIGHT"  # one number for both directions, or one for each


def command(
    height: Annotated[int, typer.Argument(metavar="H", help="Lines of the input.")],
    width: Annotated[int, typer.Argument(metavar="W", help="Pixels of a line.")],
    inputs: Annotated[int, typer.Argument(metavar="CIN", help="Input channels.")],
    outputs: Annotated[int, typer.Argument(metavar="COUT", help="Output channels.")],
    kernel: Annotated[
        str, typer.Argument(metavar="K", help="The kernel has K x K taps; DOWN,RIGHT: other sizes.")
    ],
    stride: Annotated[
        str, typer.Option(metavar=DIRECTIONS, help="Input pixels per output pixel.")
    ] = "1",
    padding: Annotated[
        str, typer.Option(metavar=DIRECTIONS, help="Zeros on every side of the input.")
    ] = "0",
    dilation: Annotated[
        str, typer.Option(metavar=DIRECTIONS, help="Pixels from tap to tap.")
    ] = "1",
    groups: Annotated[int, typer.Option(help="CIN of them: depthwise.")] = 1,
    sparsity: Sparsity = "dense",
    core: Core = CoreName.dsp,
    weight_bits: WeightBits = None,
    config: Configuration = "z7020",
    engine: Engine = EngineName.rtl,
    memory_latency: MemoryLatency = 40,
    memory_beat_cycles: MemoryBeatCycles = 1,
    seed: Seed = 0,
    vcd: Vcd = None,
    vcd_window: VcdWindow = None,
    as_json: Json = False,
) -> None:
    """Convolve a random int8 image of H x W pixels, and check the result bit for bit."""
    from twillcore.commands.layer import beats_of, lut_part, run_layer
    from twillcore.compiler.gemm_graph import check_conv, conv_graph, horizontal_steps
    from twillcore.compiler.graph import both_directions
    from twillcore.config import load_config
    from twillcore.dram import Dram

    chosen = load_config(config)
    options = waveform(engine, vcd, vcd_window)
    dram = Dram(latency=memory_latency, beat_cycles=memory_beat_cycles)
    beats = beats_of(sparsity, core, chosen)
    size = in_directions("K", kernel)
    shape = {
        "stride": in_directions("--stride", stride),
        "padding": in_directions("--padding", padding),
        "dilation": in_directions("--dilation", dilation),
        "groups": groups,
    }
    pixels = check_conv(height, width, inputs, outputs, size, **shape)
    step, every = horizontal_steps(both_directions(shape["stride"])[1], pixels[1])
    lut = lut_part(
        core, weight_bits, chosen, outputs=outputs, rows=pixels[0] * pixels[1] * every,
        blocks=-(-inputs // chosen.block), beats=beats,
        taps=math.prod(both_directions(size)), stride=step,
    )  # fmt: skip
    run_layer(
        lambda: conv_graph(
            height, width, inputs, outputs, size, chosen, beats, **shape, seed=seed, lut=lut
        ),
        chosen, engine, dram, options, as_json, **shape, sparsity=sparsity, core=core, seed=seed,
    )  # fmt: skip
