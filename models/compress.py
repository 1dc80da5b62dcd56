"""From a module and a target to a compressed module and its policy, in one call.

Losses of every option of every layer are measured, an integer program chooses within the target,
weights are pruned or rounded accordingly and, if wanted, trained by distillation.
"""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from twillcore.config import Config, load_config
from twillcore.errors import TwillcoreError
from twillcore.models.allocation import allocate
from twillcore.models.cost import LayerShape, layer_shapes
from twillcore.models.distill import Recipe, distil
from twillcore.models.layout import projected, sparse_layers
from twillcore.models.low_rank import gram_matrices
from twillcore.models.pattern import Pattern
from twillcore.models.policy import BITS, LayerPolicy, Policy
from twillcore.models.qat import quantise_rows
from twillcore.models.reconstruct import prune_by_reconstruction, prune_weight
from twillcore.models.sensitivity import Batches, Progress, measure
from twillcore.models.sr_ste import freeze, sparsify

METHODS = ("reconstruction", "magnitude")
UNITS = ("cycles", "bytes", "density", "bits")


@dataclass(frozen=True)
class Target:
    """What to reach: a uniform pattern, or at most ``value`` of ``unit``.

    Attributes
    ----------
    unit : cycles of the GEMM core by the closed form, bytes of weights with their positions,
        density (0..1 of the weights), or average bits of a weight; "" with a pattern
    """

    unit: str = ""
    value: float = 0.0
    pattern: Pattern | None = None

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Read ``2:4``, ``density=0.5``, ``cycles=200000``, ``bytes=4e6`` or ``bits=4``.

        Raises
        ------
        TwillcoreError
            If it is none of these.
        """
        if re.fullmatch(r"\d+:\d+", text):
            return cls(pattern=Pattern.parse(text))
        unit, _, number = text.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if unit not in UNITS or not value > 0:
            raise TwillcoreError(
                "target must be N:M, or cycles, bytes, density or bits with a positive number"
                f" such as density=0.5, not {text!r}"
            )
        return cls(unit, value)


def compress(
    module: nn.Module,
    example_inputs: Sequence[Tensor],
    *,
    target: str | Target,
    data: Batches,
    config: str | Path | Config = "u256",
    method: str = "reconstruction",
    layers: Sequence[str] | None = None,
    name: str | None = None,
    recipe: Recipe | None = None,
    taps: Sequence[str] = (),
    checkpoint: Path | None = None,
    progress: Progress = lambda done, total, text: None,
) -> tuple[nn.Module, Policy]:
    """Return a compressed copy of ``module`` and the policy that it follows.

    ``twillcore.compile`` finds sparsity and coarse grids in the weights; it needs no policy.

    Parameters
    ----------
    example_inputs : as for ``twillcore.compile``; the rows of the layers' products follow
    target : see :class:`Target`
    data : inputs without padding, to measure losses on, to calibrate and to train with
    method : how weights are pruned: "reconstruction" (linear layers only) or "magnitude"
    layers : names of those to compress; default: all linear and convolution layers
    recipe : of a distillation afterwards; None: no training
    taps : submodules to distil from, besides the result
    checkpoint : of the training, which resumes from it

    Raises
    ------
    TwillcoreError
        If the target cannot be met (the best possible is named), the chip cannot hold a pattern,
        or there is no data.
    """
    chip = load_config(config)
    target = Target.parse(target) if isinstance(target, str) else target
    if method not in METHODS:
        raise TwillcoreError(f"method must be {' or '.join(METHODS)}, not {method!r}")
    if not data:
        raise TwillcoreError("no calibration data: give inputs without padding as data")
    teacher = copy.deepcopy(module).eval().requires_grad_(False)
    student = copy.deepcopy(teacher)
    shapes = _chosen(layer_shapes(student, example_inputs), layers)
    if method == "reconstruction":
        linear = [n for n in shapes if isinstance(student.get_submodule(n), nn.Linear)]
        if other := shapes.keys() - set(linear):
            raise TwillcoreError(
                f"reconstruction is for linear layers, not {', '.join(sorted(other))}:"
                " use magnitude, or name the layers"
            )
    if target.pattern is not None:
        target.pattern.beats(chip)
        choices = {n: LayerPolicy(str(target.pattern), lut_share=0.0) for n in shapes}
    elif target.unit == "bits":
        choices = _bits(student, shapes, target, data, progress)
    else:
        choices = _sparsities(student, shapes, target, data, chip, method, progress)
    policy = Policy(name or type(module).__name__, choices)
    policy.check(student, chip)
    patterns = {n: p for n, p in policy.patterns().items() if p.kept < p.group}
    if patterns and method == "reconstruction":
        prune_by_reconstruction(student, data, patterns, progress)
    policy.enforce(student)
    if recipe is not None and recipe.steps:
        _train(student, teacher, patterns, data, recipe, taps, checkpoint, progress)
        policy.enforce(student)
    return student, policy


def _chosen(
    shapes: Mapping[str, LayerShape], layers: Sequence[str] | None
) -> dict[str, LayerShape]:
    if layers is None:
        return dict(shapes)
    if unknown := [name for name in layers if name not in shapes]:
        raise TwillcoreError(f"no layers {', '.join(unknown)}; there are {', '.join(shapes)}")
    return {name: shapes[name] for name in layers}


def _sparsities(
    module: nn.Module,
    shapes: Mapping[str, LayerShape],
    target: Target,
    data: Batches,
    config: Config,
    method: str,
    progress: Progress,
) -> dict[str, LayerPolicy]:
    """Choose N of N:block per layer by measured loss."""
    block = config.block
    cost = sparsity_costs(shapes, target.unit, config)
    total = sum(shape.weights for shape in shapes.values())
    budget = target.value * (total if target.unit == "density" else 1)
    unit = "weights" if target.unit == "density" else target.unit
    smallest = {name: {1: options[1]} for name, options in cost.items()}
    allocate({n: {1: 0.0} for n in shapes}, smallest, budget, unit)  # refuse before measuring
    grams = gram_matrices(module, data) if method == "reconstruction" else {}

    def pruned(name: str, kept: int) -> Tensor:
        weight, pattern = module.get_submodule(name).weight, Pattern(kept, block)
        if kept == block:
            return weight
        if method == "magnitude":
            return projected(weight, pattern)
        return prune_weight(weight, grams[name], pattern)

    candidates: dict[str, dict[int, Callable[[], Tensor]]] = {
        name: {
            kept: lambda name=name, kept=kept: pruned(name, kept) for kept in range(1, block + 1)
        }
        for name in shapes
    }
    loss = measure(module, data, candidates, progress=progress)
    chosen = allocate(loss, cost, budget, unit)
    return {
        name: LayerPolicy("dense" if kept == block else f"{kept}:{block}", lut_share=0.0)
        for name, kept in chosen.items()
    }


def sparsity_costs(
    shapes: Mapping[str, LayerShape], unit: str, config: Config
) -> dict[str, dict[int, float]]:
    """Return the cost of N of N:block by layer and N; density counts the weights kept."""
    measures: dict[str, Callable[[LayerShape, int], float]] = {
        "cycles": lambda shape, kept: shape.cycles(config, kept),
        "bytes": lambda shape, kept: shape.bytes(config, kept),
        "density": lambda shape, kept: shape.weights * kept / config.block,
    }
    return {
        name: {kept: measures[unit](shape, kept) for kept in range(1, config.block + 1)}
        for name, shape in shapes.items()
    }


def _bits(
    module: nn.Module,
    shapes: Mapping[str, LayerShape],
    target: Target,
    data: Batches,
    progress: Progress,
) -> dict[str, LayerPolicy]:
    """Choose the bits of each layer's weights by measured loss."""
    total = sum(shape.weights for shape in shapes.values())
    cost = {n: {b: float(s.weights * b) for b in BITS} for n, s in shapes.items()}
    best = {n: {BITS[0]: options[BITS[0]]} for n, options in cost.items()}
    allocate({n: {BITS[0]: 0.0} for n in shapes}, best, target.value * total, "bits")

    def rounded(name: str, bits: int) -> Tensor:
        weight = module.get_submodule(name).weight
        return quantise_rows(weight.reshape(len(weight), -1), bits).reshape(weight.shape)

    candidates = {
        name: {bits: lambda name=name, bits=bits: rounded(name, bits) for bits in BITS}
        for name in shapes
    }
    loss = measure(module, data, candidates, progress=progress)
    chosen = allocate(loss, cost, target.value * total, "bits")
    return {name: LayerPolicy(bits=bits, lut_share=0.0) for name, bits in chosen.items()}


def _train(
    student: nn.Module,
    teacher: nn.Module,
    patterns: dict[str, Pattern],
    data: Batches,
    recipe: Recipe,
    taps: Sequence[str],
    checkpoint: Path | None,
    progress: Progress,
) -> None:
    sparsify(student, patterns, decay=0.0)
    for name, layer in sparse_layers(student).items():
        if name in patterns or not patterns:
            layer.requires_grad_(True)
    distil(
        student, teacher, lambda step: data[step % len(data)], recipe, taps, checkpoint,
        progress=progress,
    )  # fmt: skip
    freeze(student).eval().requires_grad_(False)


def density(module: nn.Module, layers: Sequence[str]) -> float:
    """Return the share of the weights of ``layers`` that are not zero."""
    weights = [module.get_submodule(name).weight for name in layers]
    return sum(int((w != 0).sum()) for w in weights) / sum(w.numel() for w in weights)
