"""The front end: a torch module to an integer graph, and the host programs around it."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from twillcore.compiler.aligned_concat import align_concats
from twillcore.compiler.calibrate import Calibration, calibrate, evaluate
from twillcore.compiler.capture import Captured, capture
from twillcore.compiler.errors import CompileError
from twillcore.compiler.float_graph import FloatGraph
from twillcore.compiler.fold import fold
from twillcore.compiler.graph import Graph
from twillcore.compiler.host import (
    HostPrograms,
    Interface,
    chip_samples,
    interface_of,
    save_module,
    split_host,
)
from twillcore.compiler.lower import lower
from twillcore.compiler.quantize import quantize
from twillcore.compiler.serialize import graph_to_bytes
from twillcore.compiler.shares import NO_SHARES, Shares
from twillcore.compiler.strides import reduce_strides
from twillcore.compiler.verify import verify
from twillcore.config import Config


@dataclass(frozen=True)
class Front:
    """What every stage of the front end made; :attr:`graph` is the result."""

    captured: Captured
    programs: HostPrograms
    float_graph: FloatGraph
    calibration: Calibration
    graph: Graph
    interface: Interface

    def host_sections(self) -> dict[str, bytes]:
        """Return what a program file needs besides the image."""
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.export's own, about its own formats
            results = self.programs.prefix(*self.captured.example)
            passed = results[len(self.programs.sources) :]
            chip = tuple(torch.zeros(t.layout.shape) for t in self.interface.chip_outputs)
            return {
                "graph": graph_to_bytes(self.graph),
                "interface": self.interface.to_json(),
                "prefix": save_module(self.programs.prefix, self.captured.example),
                "suffix": save_module(self.programs.suffix, (*chip, *passed)),
            }


def run_front(
    module: nn.Module | torch.export.ExportedProgram,
    example_inputs: Sequence[Tensor],
    config: Config,
    calibration: Sequence[tuple[Tensor, ...]] = (),
    shares: Shares = NO_SHARES,
    fold_inputs: bool | None = None,
) -> Front:
    """Capture, lower, fold, calibrate, quantise and verify.

    Parameters
    ----------
    calibration : tuples of inputs like ``example_inputs``; the example itself, if empty
    shares : what the LUT core computes of which layers
    fold_inputs : see :func:`twillcore.compiler.strides.reduce_strides`

    Raises
    ------
    CompileError
        Whatever is wrong with module, inputs or calibration, all of one kind in one message.
    """
    captured = capture(module, example_inputs)
    samples = _check_calibration(captured, calibration)
    shares.check(captured.layers, config)
    lowered = lower(captured, config)
    programs = split_host(captured, lowered)
    folded = fold(lowered.graph, vector_engine=bool(config.wide_depth))
    aligned = align_concats(folded, config.block)
    source = reduce_strides(aligned, config, shares, fold_inputs)
    _compare(captured, programs, source)
    ranges = calibrate(source, chip_samples(programs, source, samples))
    graph = quantize(source, ranges, config, shares)
    verify(graph)
    interface = interface_of(captured, source, graph, programs)
    return Front(captured, programs, source, ranges, graph, interface)


def _check_calibration(
    captured: Captured, calibration: Sequence[tuple[Tensor, ...]]
) -> list[tuple[Tensor, ...]]:
    problems, samples = [], []
    for i, sample in enumerate(calibration):
        values = (sample,) if isinstance(sample, Tensor) else tuple(sample)
        samples.append(values)
        if len(values) != len(captured.example):
            problems.append(f"sample {i} has {len(values)} tensors, not {len(captured.example)}")
            continue
        for node, value, like in zip(captured.inputs, values, captured.example, strict=True):
            wanted, got = (f"{v.dtype} {list(v.shape)}" for v in (like, value))
            if wanted != got:
                problems.append(f"sample {i}: {node.name} must be {wanted}, not {got}")
            elif value.is_floating_point() and (bad := int((~torch.isfinite(value)).sum())):
                problems.append(f"sample {i}: {node.name} has {bad} NaN or infinite values")
    if problems:
        more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise CompileError("calibration: " + "; ".join(problems[:20]) + more)
    return samples or [captured.example]


def _compare(captured: Captured, programs: HostPrograms, source: FloatGraph) -> None:
    """Check on the example that prefix, float graph and suffix are the module."""
    with torch.no_grad():
        wanted = captured.module(*captured.example)
        results = programs.prefix(*captured.example)
        ((inputs, masks),) = chip_samples(programs, source, [captured.example])
        if not all(mask.any(-1).all() for mask in masks.values()):
            return  # attention to nothing: torch has NaN, or something as arbitrary
        values = evaluate(
            source,
            {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in inputs.items()},
            {name: torch.from_numpy(v) for name, v in masks.items()},
        )
        chip = [
            torch.from_numpy(layout.to_framework(values[name].numpy()) * np.float32(factor))
            for name, layout, factor in source.outputs
        ]
        got = programs.suffix(*chip, *results[len(programs.sources) :])
    for i, (a, b) in enumerate(zip(torch.utils._pytree.tree_leaves(wanted), got, strict=True)):
        if not isinstance(a, Tensor) or not a.is_floating_point():
            continue
        a, b = a.float(), b.float()
        tolerance = 2e-3 * max(1e-6, float(a.nan_to_num(0, 0, 0).abs().max()))
        if not torch.allclose(a, b, rtol=1e-2, atol=tolerance, equal_nan=True):
            raise CompileError(
                f"output {i} of the captured graph differs from the module's by"
                f" {float((a - b).abs().max()):.3g}: a defect of the compiler, please report it"
            )
