"""``twillcore simulate``: a program on inputs from a file."""

from pathlib import Path
from typing import Annotated

import typer

from twillcore.commands.options import (
    Engine,
    EngineName,
    Json,
    MemoryBeatCycles,
    MemoryLatency,
    Program,
    Vcd,
    VcdWindow,
    waveform,
)

EXAMPLES = (
    "twillcore simulate mlp.twill --inputs in.npz --outputs out.npz",
    "twillcore simulate mlp.twill --inputs in.npz --outputs out.npz --engine cycle --json",
)


def command(
    program: Program,
    inputs: Annotated[
        Path,
        typer.Option(metavar="IN.npz", help="An array per input, samples along the first axis."),
    ],
    outputs: Annotated[
        Path | None,
        typer.Option(metavar="OUT.npz", help="Write output_0, output_1, ... in float."),
    ] = None,
    engine: Engine = EngineName.rtl,
    memory_latency: MemoryLatency = 40,
    memory_beat_cycles: MemoryBeatCycles = 1,
    vcd: Vcd = None,
    vcd_window: VcdWindow = None,
    as_json: Json = False,
) -> None:
    """Run a program on inputs from a file and check the result against the reference."""
    from twillcore.commands.report import RunReport
    from twillcore.commands.terminal import working
    from twillcore.dram import Dram

    options = waveform(engine, vcd, vcd_window)
    dram = Dram(latency=memory_latency, beat_cycles=memory_beat_cycles)
    with working("starting PyTorch"):
        import numpy as np

        from twillcore.commands.execution import execute, reference, same_outputs
        from twillcore.commands.files import read_arrays, write_arrays
        from twillcore.commands.samples import InputShape, split_samples
        from twillcore.flow import load

    loaded = load(program)
    shapes = [InputShape(one.name, one.shape) for one in loaded.interface.inputs]
    runs = split_samples(read_arrays(inputs), shapes, str(inputs))
    report, found = RunReport(loaded.image), []
    for number, run in enumerate(runs, 1):
        integers, passed = loaded.prepare(*run)
        expected = reference(loaded.graph, integers)
        if engine == "reference":
            result = expected
            report.add(result, None)
        else:
            what = f"{engine}: sample {number} of {len(runs)}"
            result = execute(loaded.image, integers, engine, dram, what, **options)
            report.add(result, same_outputs(result, expected))
        found.append([tensor.numpy() for tensor in loaded.finish(result, passed).outputs])
    if outputs is not None:
        together = zip(*found, strict=True)
        write_arrays(outputs, {f"output_{i}": np.concatenate(o) for i, o in enumerate(together)})
    report.show(as_json)
