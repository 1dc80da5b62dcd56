"""Running programs for a command: progress while it lasts, and the check against the reference."""

import time
from collections.abc import Mapping

from twillcore.commands.terminal import simulating
from twillcore.dram import Dram
from twillcore.image import Image
from twillcore.result import Result


def execute(
    image: Image,
    inputs: Mapping,
    engine: str,
    dram: Dram,
    what: str = "simulating",
    **waveform: object,
) -> Result:
    """Run ``image`` on an engine that executes instructions, showing how far it is."""
    from twillcore.sim.engine import get_engine

    ideal = sum(layer.ideal_cycles(image.config) for layer in image.layers)
    options: dict[str, object] = dict(waveform)
    if engine not in ("functional", "board"):  # a board has its own memory
        options["dram"] = dram
    with simulating(what, ideal or None) as progress:
        runner = get_engine(engine)
        if engine in ("rtl", "board"):
            runner.message = progress.say
        if engine != "functional":
            options["progress"] = progress
        return runner.run(image, inputs, **options)


def reference(graph, inputs: Mapping) -> Result:
    """Run the quantised graph itself."""
    from twillcore.sim.reference import run_graph

    started = time.perf_counter()
    outputs = run_graph(graph, inputs)
    return Result(outputs, "reference", seconds=time.perf_counter() - started)


def same_outputs(a: Result, b: Result) -> bool:
    """Return whether two results are equal bit for bit."""
    return a.outputs.keys() == b.outputs.keys() and all(
        a.outputs[name].shape == b.outputs[name].shape
        and (a.outputs[name] == b.outputs[name]).all()
        for name in a.outputs
    )
