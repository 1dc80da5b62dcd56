"""From a module and a target to a compressed module and its policy, in one call.

What each layer becomes is chosen within the target: by an integer program on the measured loss of
every option of every layer, or by a method of the literature. Weights are pruned, rounded or
factorised accordingly and, if wanted, trained.
"""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from twillcore.config import Config, load_config
from twillcore.errors import TwillcoreError
from twillcore.models.allocation import allocate, refuse_budget
from twillcore.models.budget import Budget, CostBudget, ProgramBudget
from twillcore.models.checkpoint import Checkpoint, fingerprint
from twillcore.models.cost import LayerShape, layer_shapes
from twillcore.models.distill import Recipe, distil, relative_error
from twillcore.models.domino import Search, search_scheme
from twillcore.models.layout import is_depthwise, projected, sparse_layers
from twillcore.models.low_rank import (
    factorise,
    gram_matrices,
    lost_energies,
    rank_costs,
    search_ranks,
    train_low_rank,
)
from twillcore.models.mixmatch import (
    arrange,
    lut_count,
    round_lut_channels,
    row_divergence,
    row_variance,
)
from twillcore.models.ompq import choose_bits, features, importance, orthogonality
from twillcore.models.pattern import Pattern
from twillcore.models.policy import BITS, LayerPolicy, Policy
from twillcore.models.qat import fake_quantise, quantise_rows, unwrap
from twillcore.models.reconstruct import (
    as_product,
    hessians,
    prune_by_reconstruction,
    prune_weight,
    refusal,
    with_product,
)
from twillcore.models.sensitivity import Batches, Progress, measure
from twillcore.models.sr_ste import freeze, sparsify

UNITS = ("cycles", "product-cycles", "bytes", "density", "bits")
SPARSE = ("N:M", "cycles", "product-cycles", "bytes", "density")
CYCLES = ("cycles", "product-cycles")
#: Methods, and the targets that each takes.
METHODS = {
    "reconstruction": (*SPARSE, "bits", "policy"),
    "magnitude": (*SPARSE, "bits", "policy"),
    "sr-ste": (*SPARSE, "policy"),
    "domino": ("density",),
    "ompq": ("bits",),
    "low-rank": CYCLES,
    "haloc": CYCLES,
    "trp": CYCLES,
    "mixmatch": ("bits",),
    "n3h": ("bits",),
}
TRAININGS = ("sr-ste", "trp")  # methods that are nothing without
OMPQ_BETA = 1.0
MEASURED_BATCHES = 10  # at most: losses of single layers need few inputs, and there are many

Attach = Callable[[torch.optim.Optimizer], None]
#: Cycles of the whole program of a module: inputs (the first are timed), configuration, policy.
ProgramCycles = Callable[[nn.Module, Sequence[Sequence[Tensor]], Config, Policy], int]
#: Trains a prepared module in place; the second argument is to be called with the optimiser.
Trainer = Callable[[nn.Module, Attach], None]


@dataclass(frozen=True)
class Target:
    """What to reach: a uniform pattern, or at most ``value`` of ``unit``.

    Attributes
    ----------
    unit : cycles of the whole program for the example inputs, product-cycles of the compressed
        layers' products by the closed form, bytes of weights with their positions, density (0..1
        of the weights), or average bits of a weight; "" with a pattern
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
                f"target must be N:M, or {', '.join(UNITS[:-1])} or {UNITS[-1]} with a positive"
                f" number such as density=0.5, not {text!r}"
            )
        return cls(unit, value)


def compress(
    module: nn.Module,
    example_inputs: Sequence[Tensor],
    *,
    target: str | Target | Policy,
    data: Batches,
    config: str | Path | Config = "u256",
    method: str = "reconstruction",
    layers: Sequence[str] | None = None,
    name: str | None = None,
    recipe: Recipe | None = None,
    taps: Sequence[str] = (),
    checkpoint: Path | Checkpoint | None = None,
    trainer: Trainer | None = None,
    program_cycles: ProgramCycles | None = None,
    progress: Progress = lambda done, total, text: None,
) -> tuple[nn.Module, Policy]:
    """Return a compressed copy of ``module`` and the policy that it follows.

    ``twillcore.compile`` finds sparsity and coarse grids in the weights. The policy is for it where
    the LUT core takes part, and for people.

    Parameters
    ----------
    example_inputs : as for ``twillcore.compile``; the rows of the layers' products follow
    target : see :class:`Target`; or a policy, which is then not chosen but followed
    data : inputs without padding, to calibrate and to train with; single layers' losses are
        measured on some of them
    method : "reconstruction" or "magnitude": one-shot, layers are chosen by measured loss;
        "sr-ste": trained from dense weights; "domino": N of each layer by DominoSearch; "ompq":
        bits by OMPQ; "low-rank", "haloc", "trp": two factors, with ranks by lost energy, by trained
        probabilities, or after a training towards low rank; "mixmatch", "n3h": the LUT core gets
        the channels of least variance or divergence at the target's bits
    layers : names of those to compress; default: all linear and convolution layers
    recipe : of a distillation afterwards; None: no training
    taps : submodules to distil from, besides the result
    checkpoint : of the training, which resumes from it; a search of the method has another beside
    trainer : trains instead of the distillation
    program_cycles : times programs for a target of cycles; ``twillcore.compress`` brings it along

    Raises
    ------
    TwillcoreError
        If the target cannot be met (the best possible is named), the chip cannot hold a pattern,
        there is no data, or method and target do not go together.
    """
    chip = load_config(config)
    target = Target.parse(target) if isinstance(target, str) else target
    if method not in METHODS:
        raise TwillcoreError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    kind = "policy" if isinstance(target, Policy) else target.unit or "N:M"
    if kind not in METHODS[method]:
        raise TwillcoreError(
            f"method {method} takes a target of {' or '.join(METHODS[method])}, not {kind}"
        )
    if kind == "cycles" and program_cycles is None:
        raise TwillcoreError("a target of cycles needs program_cycles, which times programs")
    if not data:
        raise TwillcoreError("no calibration data: give inputs without padding as data")
    teacher = copy.deepcopy(module).eval().requires_grad_(False)
    student = copy.deepcopy(teacher)
    if isinstance(checkpoint, Path):
        checkpoint = Checkpoint(
            checkpoint,
            {"method": method, "target": str(target), "weights": fingerprint(*module.parameters())},
        )
    if trainer is None and recipe is not None and recipe.steps:
        trainer = _distillation(teacher, data, recipe, taps, checkpoint, layers, progress)
    if trainer is None and method in TRAININGS:
        raise TwillcoreError(f"method {method} is a training: give it steps")
    if trainer is not None and method in ("mixmatch", "n3h"):
        raise TwillcoreError(f"method {method} is without training: leave out the steps")
    if isinstance(target, Policy):
        target.check(student, chip)
        if target.ranks():
            raise TwillcoreError("a policy with ranks is followed by compile(), not by compress()")
        layers = list(target.layers)
    shapes = _chosen(layer_shapes(student, example_inputs), layers)

    def time(module: nn.Module, policy: Policy) -> int:
        return program_cycles(module, [example_inputs], chip, policy)

    job = _Job(student, teacher, shapes, target, data, chip, method, progress, checkpoint, time)
    if method in ("low-rank", "haloc", "trp"):
        return student, _low_rank(job, trainer, name or type(module).__name__)
    choices = target.layers if isinstance(target, Policy) else job.choose(example_inputs)
    policy = Policy(name or type(module).__name__, choices)
    policy.check(student, chip)
    patterns = {n: p for n, p in policy.patterns().items() if p.kept < p.group}
    bits = {n: layer.bits for n, layer in choices.items() if layer.bits < 8}
    if method == "reconstruction" and (patterns or bits):
        whole = Pattern(1, 1)
        everything = {n: patterns.get(n, whole) for n in choices if n in patterns or n in bits}
        prune_by_reconstruction(student, data, everything, progress, bits)
    if method != "sr-ste":
        policy.enforce(student)
    if trainer is not None:
        sparsify(student, patterns, decay=0.0)
        fake_quantise(student, bits, activations=False)
        trainer(student, lambda optimiser: None)
        unwrap(freeze(student)).eval().requires_grad_(False)
        policy.enforce(student)
    if method in ("mixmatch", "n3h"):
        round_lut_channels(student, policy)
    return student, policy


def _chosen(
    shapes: Mapping[str, LayerShape], layers: Sequence[str] | None
) -> dict[str, LayerShape]:
    if layers is None:
        return dict(shapes)
    if unknown := [name for name in layers if name not in shapes]:
        raise TwillcoreError(f"no layers {', '.join(unknown)}; there are {', '.join(shapes)}")
    return {name: shapes[name] for name in layers}


@dataclass
class _Job:
    """What the methods choose from: one field per fact."""

    student: nn.Module
    teacher: nn.Module
    shapes: dict[str, LayerShape]
    target: Target
    data: Batches
    chip: Config
    method: str
    progress: Progress
    checkpoint: Checkpoint | None
    time: Callable[[nn.Module, Policy], int]

    def choose(self, example_inputs: Sequence[Tensor]) -> dict[str, LayerPolicy]:
        """Return what each layer becomes."""
        if self.method == "domino":
            return self._domino()
        if self.method == "ompq":
            return self._ompq()
        if self.method in ("mixmatch", "n3h"):
            return self._cores(example_inputs)
        if self.target.unit == "bits":
            return self._bits()
        group = self.target.pattern.group if self.target.pattern else self.chip.block
        if self.method == "reconstruction":
            self._refuse_kinds(Pattern(1, group))
        if self.target.pattern is not None:
            self.target.pattern.beats(self.chip)
            return dict.fromkeys(self.shapes, LayerPolicy(str(self.target.pattern), lut_share=0.0))
        return self._sparsities()

    def loss(self, step: int) -> Tensor:
        """Return how far the student is from the teacher on one of the batches, with gradients."""
        batch = self.data[step % len(self.data)]
        with torch.no_grad():
            wanted = self.teacher(*batch)
        return relative_error(self.student(*batch), wanted)

    def _some_data(self) -> Batches:
        """Return some batches, spread over all."""
        return self.data[:: -(-len(self.data) // MEASURED_BATCHES)]

    def _refuse_kinds(self, pattern: Pattern) -> None:
        for name in self.shapes:
            if reason := refusal(self.student.get_submodule(name), pattern):
                raise TwillcoreError(
                    f"{name} cannot be reconstructed: {reason}; use magnitude, or name the layers"
                )

    def _sparsities(self) -> dict[str, LayerPolicy]:
        """Choose N of N:block per layer by measured loss."""
        target, block = self.target, self.chip.block
        cost = sparsity_costs(self.shapes, target.unit, self.chip)
        budget: Budget
        if target.unit == "cycles":
            budget = ProgramBudget(target.value, self._sparse_cycles)
        elif target.unit == "density":
            total = sum(shape.weights for shape in self.shapes.values())
            budget = CostBudget(target.value * total, "weights")
        else:
            budget = CostBudget(target.value, target.unit)
        budget.refuse(cost)  # before measuring
        repaired = self.method == "reconstruction"
        grams = hessians(self.student, self.data, self.shapes) if repaired else {}

        def pruned(name: str, kept: int) -> Tensor:
            layer, pattern = self.student.get_submodule(name), Pattern(kept, block)
            if kept == block:
                return layer.weight
            if not repaired:
                return projected(layer.weight, pattern)
            return with_product(layer, prune_weight(as_product(layer), grams[name], pattern))

        candidates: dict[str, dict[int, Callable[[], Tensor]]] = {
            name: {
                kept: lambda name=name, kept=kept: pruned(name, kept)
                for kept in range(1, block + 1)
            }
            for name in self.shapes
        }
        loss = measure(self.student, self._some_data(), candidates, progress=self.progress)
        return _as_policies(budget.allocate(loss, cost), block)

    def _sparse_cycles(self, kept: Mapping[str, int]) -> int:
        """Return the cycles of the program with so many of each block kept."""
        return self.time(self.student, Policy("", _as_policies(kept, self.chip.block)))

    def _bit_budget(self) -> float:
        """Return the bits of all weights; refuse what cannot be met."""
        total = sum(shape.weights for shape in self.shapes.values())
        budget = self.target.value * total
        refuse_budget(
            {n: {BITS[0]: float(s.weights * BITS[0])} for n, s in self.shapes.items()},
            budget, "bits",
        )  # fmt: skip
        return budget

    def _with_bits(self, chosen: Mapping[str, int]) -> dict[str, LayerPolicy]:
        """Return policies of bits: on the LUT core, too, if there is one."""
        layers = sparse_layers(self.student)
        both = bool(self.chip.lut_columns)
        return {
            name: LayerPolicy(bits=bits, lut_bits=bits)
            if both and not is_depthwise(layers[name])
            else LayerPolicy(bits=bits, lut_share=0.0)
            for name, bits in chosen.items()
        }

    def _bits(self) -> dict[str, LayerPolicy]:
        """Choose the bits of each layer's weights by measured loss."""
        budget = self._bit_budget()
        if self.method == "reconstruction":
            self._refuse_kinds(Pattern(1, 1))
        cost = {n: {b: float(s.weights * b) for b in BITS} for n, s in self.shapes.items()}

        def rounded(name: str, bits: int) -> Tensor:
            weight = self.student.get_submodule(name).weight
            return quantise_rows(weight.reshape(len(weight), -1), bits).reshape(weight.shape)

        candidates = {
            name: {bits: lambda name=name, bits=bits: rounded(name, bits) for bits in BITS}
            for name in self.shapes
        }
        loss = measure(self.student, self._some_data(), candidates, progress=self.progress)
        return self._with_bits(allocate(loss, cost, budget, "bits"))

    def _ompq(self) -> dict[str, LayerPolicy]:
        """Choose bits by the orthogonality of the layers' features on the largest batch."""
        self._bit_budget()
        batch = max(self.data, key=lambda inputs: len(inputs[0]))
        found = features(self.student, batch)
        orm = orthogonality({name: found[name] for name in self.shapes})
        weights = {name: shape.weights for name, shape in self.shapes.items()}
        return self._with_bits(choose_bits(weights, importance(orm, OMPQ_BETA), self.target.value))

    def _domino(self) -> dict[str, LayerPolicy]:
        """Choose N of N:block per layer by DominoSearch, on a copy."""
        searched, whole = copy.deepcopy(self.student), self.student
        file = self.checkpoint
        if file is not None:
            file = file.at(file.path.with_name(f"search-{file.path.name}"))
        for name in self.shapes:
            searched.get_submodule(name).requires_grad_(True)
        self.student = searched
        try:
            scheme = search_scheme(
                searched, self.loss, self.target.value,
                {n: float(s.rows * s.weights) for n, s in self.shapes.items()},
                Search(group=self.chip.block), self.progress, list(self.shapes), file,
            )  # fmt: skip
        finally:
            self.student = whole
        kept = {name: pattern.kept for name, pattern in scheme.items()}
        return _as_policies(kept, self.chip.block)

    def _cores(self, example_inputs: Sequence[Tensor]) -> dict[str, LayerPolicy]:
        """Give the LUT core the channels that suffer least, as many as it computes in time."""
        bits, chip = int(self.target.value), self.chip
        if bits != self.target.value or bits not in BITS:
            raise TwillcoreError(
                f"method {self.method} takes whole bits of {BITS[0]}..{BITS[-1]} for the LUT core,"
                f" not {self.target.value:g}"
            )
        if not chip.lut_columns:
            raise TwillcoreError(
                f"method {self.method} needs a LUT core: configuration {chip.name!r} has none"
            )
        score = row_variance if self.method == "mixmatch" else lambda w: row_divergence(w, bits)
        arrange(self.student, example_inputs, score)
        choices = {}
        for name, shape in self.shapes.items():
            layer = self.student.get_submodule(name)
            if is_depthwise(layer):
                choices[name] = LayerPolicy(lut_share=0.0)
                continue
            count = lut_count(shape.outputs, bits, chip)
            choices[name] = LayerPolicy(lut_share=count / shape.outputs, lut_bits=bits)
        return choices


def _as_policies(kept: Mapping[str, int], block: int) -> dict[str, LayerPolicy]:
    return {
        name: LayerPolicy("dense" if n == block else f"{n}:{block}", lut_share=0.0)
        for name, n in kept.items()
    }


def _low_rank(job: _Job, trainer: Trainer | None, name: str) -> Policy:
    """Factorise the student's linear layers and return what they are."""
    student = job.student
    shapes = {
        n: s for n, s in job.shapes.items() if isinstance(student.get_submodule(n), nn.Linear)
    }

    def policies(ranks: Mapping[str, int]) -> dict[str, LayerPolicy]:
        return {n: LayerPolicy(lut_share=0.0, rank=rank) for n, rank in ranks.items()}

    def time(ranks: dict[str, int]) -> int:
        return job.time(factorise(copy.deepcopy(student), ranks), Policy(name, policies(ranks)))

    cost = rank_costs(shapes, shapes, job.chip)
    budget: Budget = CostBudget(job.target.value, job.target.unit)
    if job.target.unit == "cycles":
        budget = ProgramBudget(job.target.value, time)
    budget.refuse(cost)
    if job.method == "trp":
        trainer(student, lambda optimiser: train_low_rank(optimiser, student, list(shapes)))
        student.eval().requires_grad_(False)
    grams = gram_matrices(student, job.data)
    ranks = budget.allocate(lost_energies(student, cost, grams), cost)
    if job.method == "haloc":
        products = sum(cost[n][rank] for n, rank in ranks.items())
        surprise = search_ranks(student, cost, grams, products, job.loss, progress=job.progress)
        ranks = budget.allocate(surprise, cost)
    factorise(student, ranks, grams)
    if job.method != "trp" and trainer is not None:
        trainer(student, lambda optimiser: None)
    student.eval().requires_grad_(False)
    return Policy(name, policies(ranks))


def sparsity_costs(
    shapes: Mapping[str, LayerShape], unit: str, config: Config
) -> dict[str, dict[int, float]]:
    """Return the cost of N of N:block by layer and N.

    Of cycles, whole programs included, it is those of the products; of density, the weights kept.
    """
    measures: dict[str, Callable[[LayerShape, int], float]] = {
        "cycles": lambda shape, kept: shape.cycles(config, kept),
        "product-cycles": lambda shape, kept: shape.cycles(config, kept),
        "bytes": lambda shape, kept: shape.bytes(config, kept),
        "density": lambda shape, kept: shape.weights * kept / config.block,
    }
    return {
        name: {kept: measures[unit](shape, kept) for kept in range(1, config.block + 1)}
        for name, shape in shapes.items()
    }


def _distillation(
    teacher: nn.Module,
    data: Batches,
    recipe: Recipe,
    taps: Sequence[str],
    checkpoint: Checkpoint | None,
    names: Sequence[str] | None,
    progress: Progress,
) -> Trainer:
    """Return a trainer of the named layers, or all, that distils from ``teacher``."""
    if checkpoint is not None:
        checkpoint = checkpoint.of(data=fingerprint(*(x for batch in data for x in batch)))

    def train(student: nn.Module, attach: Attach) -> None:
        for name in sparse_layers(student) if names is None else names:
            student.get_submodule(name).requires_grad_(True)
        distil(
            student, teacher, lambda step: data[step % len(data)], recipe, taps, checkpoint,
            progress=progress, attach=attach,
        )  # fmt: skip

    return train


def density(module: nn.Module, layers: Sequence[str]) -> float:
    """Return the share of the weights of ``layers`` that are not zero."""
    weights = [module.get_submodule(name).weight for name in layers]
    return sum(int((w != 0).sum()) for w in weights) / sum(w.numel() for w in weights)
