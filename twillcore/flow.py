"""From a torch module to a program and its results: the parts, composed."""

import copy
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from twillcore.config import Config, load_config
from twillcore.image import Image, ProgramError
from twillcore.result import Result, Span

if TYPE_CHECKING:
    import torch

    from twillcore.compiler.graph import Graph
    from twillcore.compiler.host import Interface
    from twillcore.models.policy import Policy

HOST_SECTIONS = ("graph", "interface", "prefix", "suffix")


@dataclass(frozen=True)
class RunResult:
    """What :meth:`Program.run` returns.

    Attributes
    ----------
    outputs : torch tensors in the order in which the module returns them
    result : integers, cycles and counters of the chip
    """

    outputs: list["torch.Tensor"]
    result: Result

    @property
    def cycles(self) -> int | None:
        """Cycles on the chip; None from engines that know no time."""
        return self.result.cycles

    @property
    def trace(self) -> tuple[Span, ...]:
        """When each instruction ran."""
        return self.result.spans


@dataclass(frozen=True)
class Program:
    """A compiled network: an image for the chip, with what the host does before and after it."""

    image: Image

    def __post_init__(self) -> None:
        missing = [name for name in HOST_SECTIONS if name not in self.image.host]
        if missing:
            raise ProgramError(f"no network from torch: sections {', '.join(missing)} are missing")

    @cached_property
    def graph(self) -> "Graph":
        """The quantised network, which the reference engine executes."""
        from twillcore.compiler.serialize import graph_from_bytes

        return graph_from_bytes(self.image.host["graph"])

    @cached_property
    def interface(self) -> "Interface":
        """Inputs of the module, and how they become integers."""
        from twillcore.compiler.host import Interface

        return Interface.from_json(self.image.host["interface"])

    @property
    def notes(self) -> dict[str, object]:
        """What there is to say about the compilation; ``host`` lists what the host computes."""
        return {**self.image.notes, "host": list(self.interface.notes)}

    @cached_property
    def _prefix(self) -> "torch.nn.Module":
        from twillcore.compiler.host import load_module

        return load_module(self.image.host["prefix"])

    @cached_property
    def _suffix(self) -> "torch.nn.Module":
        from twillcore.compiler.host import load_module

        return load_module(self.image.host["suffix"])

    def run(
        self, *inputs: "torch.Tensor | NDArray", engine: str = "rtl", **options: object
    ) -> RunResult:
        """Run the network on ``inputs``, in the module's order.

        Parameters
        ----------
        engine : "reference", "functional", "cycle" or "rtl"
        options : the engine's own, such as ``memory_latency``

        Raises
        ------
        ProgramError
            If number, shapes or types of the inputs are wrong, all in one message.
        """
        integers, passed = self.prepare(*inputs)
        return self.finish(self.execute(integers, engine, **options), passed)

    def prepare(
        self, *inputs: "torch.Tensor | NDArray"
    ) -> tuple[dict[str, NDArray], list["torch.Tensor"]]:
        """Do the host's part before the chip.

        Returns the integers for the image's inputs, and tensors that :meth:`finish` needs.
        """
        import torch

        from twillcore.compiler.host import chip_arguments

        tensors = [torch.as_tensor(value) for value in inputs]
        self._check(tensors)
        with torch.no_grad():
            results = self._prefix(*tensors)
        try:
            integers, masks = chip_arguments(self.interface, results)
        except ValueError as error:
            raise ProgramError(str(error)) from None
        return {**integers, **masks}, list(results[len(self.interface.sources) :])

    def execute(self, integers: dict[str, NDArray], engine: str, **options: object) -> Result:
        """Run the chip's part on what :meth:`prepare` returned."""
        if engine != "reference":
            from twillcore.sim.engine import get_engine

            return get_engine(engine).run(self.image, integers, **options)
        if options:
            raise ProgramError(f"the reference takes no options: {', '.join(sorted(options))}")
        from twillcore.sim.reference import run_graph

        start = time.perf_counter()
        outputs = run_graph(self.graph, integers)
        return Result(outputs, engine, seconds=time.perf_counter() - start)

    def finish(self, result: Result, passed: Sequence["torch.Tensor"] = ()) -> RunResult:
        """Do the host's part after the chip."""
        import torch

        chip = [
            torch.from_numpy(np.ascontiguousarray(tensor.dequantise(result.outputs[tensor.name])))
            for tensor in self.interface.chip_outputs
        ]
        with torch.no_grad():
            outputs = self._suffix(*chip, *passed)
        return RunResult(list(outputs), result)

    def _check(self, tensors: Sequence["torch.Tensor"]) -> None:
        expected = self.interface.inputs
        if len(tensors) != len(expected):
            names = ", ".join(item.name for item in expected)
            raise ProgramError(f"inputs must be {len(expected)} ({names}), not {len(tensors)}")
        problems = []
        for item, value in zip(expected, tensors, strict=True):
            dtype = str(value.dtype).removeprefix("torch.")
            if tuple(value.shape) != item.shape:
                problems.append(
                    f"{item.name}: shape must be {item.shape}, not {tuple(value.shape)}"
                )
            if dtype != item.dtype:
                problems.append(f"{item.name}: type must be {item.dtype}, not {dtype}")
            elif value.is_floating_point() and not value.isfinite().all():
                problems.append(f"{item.name}: {int((~value.isfinite()).sum())} NaN or infinite")
        if problems:
            raise ProgramError("; ".join(problems))

    def save(self, path: str | Path) -> None:
        """Write one file with everything. Raises :class:`~twillcore.image.ProgramError`."""
        self.image.save(path)


def compile(
    module: "torch.nn.Module | torch.export.ExportedProgram",
    example_inputs: "Sequence[torch.Tensor] | torch.Tensor",
    config: str | Path | Config = "u256",
    calibration: "Sequence[Sequence[torch.Tensor] | torch.Tensor]" = (),
    policy: "Policy | str | Path | None" = None,
    lut_bits: int | None = None,
) -> Program:
    """Compile a module for the chip.

    Parameters
    ----------
    module : in inference mode, or what ``torch.export`` made of it; static shapes; pruned or
        quantised weights of other libraries are understood (:mod:`twillcore.models.exchange`)
    example_inputs : the tensors it is called with
    config : a preset, a TOML file or a configuration
    calibration : inputs like the example, to find the range of every tensor; without any, the
        example has to do
    policy : how layers are divided between the cores, and pruned (by magnitude) and rounded where
        they are not yet; or the file that says it
    lut_bits : of the weights of layers that no policy names, 1..8, on the LUT core, which computes
        as much of them as lets both cores finish together; None: they run on the DSP core

    Raises
    ------
    CompileError
        If the module cannot be compiled: every unsupported operator in one message.
    ConfigError
        If there is no such configuration.
    TwillcoreError
        If the policy does not fit the module or the configuration.
    """
    import torch

    from twillcore.compiler.front import run_front
    from twillcore.compiler.pipeline import compile_graph
    from twillcore.compiler.shares import LutShare, Shares
    from twillcore.models.exchange import is_foreign, plain
    from twillcore.models.layout import sparse_layers
    from twillcore.models.low_rank import factorise
    from twillcore.models.policy import Policy
    from twillcore.models.reconstruct import hessians

    start = time.perf_counter()
    chip, named = load_config(config), {}
    if isinstance(example_inputs, torch.Tensor):
        example_inputs = (example_inputs,)
    if isinstance(module, torch.nn.Module) and is_foreign(module):
        module = plain(module)
    if policy is not None:
        if isinstance(policy, str | Path):
            policy = Policy.load(Path(policy))
        named = {
            name: LutShare(layer.lut_bits, 0.0 if layer.rank else layer.lut_share)
            for name, layer in policy.layers.items()
        }
        if isinstance(module, torch.nn.Module):
            policy.check(module, chip)
            module = copy.deepcopy(module)
            policy.enforce(module)
            whole = {n: r for n, r in policy.ranks().items() if n in sparse_layers(module)}
            if whole:
                samples = [s if isinstance(s, Sequence) else (s,) for s in calibration]
                factorise(module, whole, hessians(module, samples or [example_inputs], whole))
    shares = Shares(named, None if lut_bits is None else LutShare(lut_bits))
    front = run_front(module, example_inputs, chip, calibration, shares)
    middle = time.perf_counter()
    notes: dict[str, object] = {"calibration_samples": len(calibration)}
    if not calibration:
        notes["warning"] = "calibrated on the example inputs only"
    image = compile_graph(front.graph, host=front.host_sections(), notes=notes)
    effort = {
        "front_end_seconds": middle - start,
        "compile_seconds": time.perf_counter() - start,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    return Program(replace(image, notes={**image.notes, **effort}))


def program_cycles(
    module: "torch.nn.Module",
    samples: "Sequence[Sequence[torch.Tensor]]",
    config: str | Path | Config = "u256",
    policy: "Policy | None" = None,
) -> int:
    """Return the cycles of the first sample by the cycle engine, which equals RTL.

    ``samples`` are inputs to find ranges with; otherwise as :func:`compile`.
    """
    program = compile(module, samples[0], config=config, calibration=samples, policy=policy)
    return program.run(*samples[0], engine="cycle").cycles


def load(path: str | Path) -> Program:
    """Read a program that :meth:`Program.save` wrote.

    Raises
    ------
    ProgramError
        If it cannot be read, is damaged, or was not made of a torch module.
    """
    return Program(Image.load(path))
