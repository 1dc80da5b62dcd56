"""``twillcore profile``: a picture of where a program's time goes."""

from pathlib import Path
from typing import Annotated

import typer

from twillcore.commands.options import (
    MemoryBeatCycles,
    MemoryLatency,
    Program,
    TimedEngineName,
)

EXAMPLES = (
    "twillcore profile mlp.twill -o report.png",
    "twillcore profile mlp.twill --engine rtl --memory-latency 100 -o report.png",
)


def command(
    program: Program,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.png", help="Picture to write.")
    ],
    engine: Annotated[TimedEngineName, typer.Option()] = TimedEngineName.cycle,
    memory_latency: MemoryLatency = 40,
    memory_beat_cycles: MemoryBeatCycles = 1,
) -> None:
    """Draw the timeline of the engines, the cycles of every layer and a roofline.

    Cycles do not depend on data, so the program runs on zeros.
    """
    import numpy as np

    from twillcore.commands.execution import execute
    from twillcore.commands.report import RunReport
    from twillcore.commands.terminal import results, working
    from twillcore.dram import Dram
    from twillcore.image import Image
    from twillcore.sim.profile import profile_picture

    image = Image.load(program)
    zeros = {slot.name: np.zeros(slot.shape, np.int64) for slot in image.inputs}
    dram = Dram(latency=memory_latency, beat_cycles=memory_beat_cycles)
    result = execute(image, zeros, engine, dram, f"{engine}: {program.name}")
    with working(f"drawing {output}"):
        profile_picture(image, result, output, beat_cycles=memory_beat_cycles)
    report = RunReport(image)
    report.add(result, None)
    report.show(as_json=False)
    results.print(f"picture           {output}")
