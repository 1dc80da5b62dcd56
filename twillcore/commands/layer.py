"""What ``gemm`` and ``conv`` have in common: one random layer, run and checked bit for bit."""

from collections.abc import Callable, Mapping

from numpy.typing import NDArray

from twillcore.commands.execution import execute, reference, same_outputs
from twillcore.commands.options import CoreName
from twillcore.commands.report import RunReport
from twillcore.commands.terminal import working
from twillcore.compiler.gemm_graph import LutPart
from twillcore.compiler.graph import Graph
from twillcore.compiler.pipeline import compile_graph
from twillcore.compiler.split import LayerShape, split_channels
from twillcore.config import Config
from twillcore.dram import Dram
from twillcore.errors import TwillcoreError
from twillcore.models.pattern import Pattern

DEFAULT_BITS = 4  # as in a policy

Made = tuple[Graph, Mapping[str, NDArray]]


def beats_of(sparsity: str, core: CoreName, config: Config) -> int:
    """Return the weights kept of a block; raises :class:`TwillcoreError` if the core has none."""
    pattern = Pattern.parse(sparsity)
    if pattern is None:
        return config.block
    if core == CoreName.lut:
        raise TwillcoreError("--sparsity is for the DSP core: choose --core dsp or both")
    return pattern.beats(config)


def lut_part(
    core: CoreName, bits: int | None, config: Config, *, outputs: int, **shape: int
) -> LutPart:
    """Return what the LUT core computes of a layer; ``shape`` goes into :class:`LayerShape`.

    Raises
    ------
    TwillcoreError
        If bits are given and the core is ``dsp``, or ``both`` finish no earlier than the DSP core.
    """
    if core == CoreName.dsp:
        if bits is not None:
            raise TwillcoreError("--weight-bits is for the LUT core: choose --core lut or both")
        return LutPart()
    part = LutPart(outputs, DEFAULT_BITS if bits is None else bits)
    part.check(outputs, config)
    if core == CoreName.lut:
        return part
    channels = split_channels(config, LayerShape(channels=outputs, lut_bits=part.bits, **shape))
    if channels in (0, outputs):
        alone = CoreName.dsp if not channels else CoreName.lut
        raise TwillcoreError(
            f"--core both: of {outputs} outputs no division is faster than all of them on one core;"
            f" choose --core {alone}"
        )
    return LutPart(channels, part.bits, help=True)


def run_layer(
    make: Callable[[], Made],
    config: Config,
    engine: str,
    dram: Dram,
    waveform: Mapping[str, object],
    as_json: bool,
    **more: object,
) -> None:
    """Compile and run the graph that ``make`` returns, and show how it went."""
    with working(f"compiling for {config.name}"):
        graph, inputs = make()
        image = compile_graph(graph)
    layer = graph.ops[0]
    more |= {"lut_channels": layer.lut_channels, "lut_bits": layer.lut_bits}
    expected = reference(graph, inputs)
    report = RunReport(image)
    if engine == "reference":
        report.add(expected, None)
    else:
        result = execute(image, inputs, engine, dram, **waveform)
        report.add(result, same_outputs(result, expected))
    report.show(as_json, beats=layer.beats, **more)
