"""Distillation: a compressed network learns to compute what the dense one does, layer by layer.

The loss is that on hidden states of TinyBERT (arXiv 1909.10351, equation 8), without labels: the
squared error of each tapped layer's output, relative to how much the teacher's varies, averaged
over the taps, plus ``output_weight * (1 - cosine)`` of the networks' results. It needs inputs only.
A step's batch is a function of the step's number, so an interrupted training resumes exactly.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from twillcore.errors import TwillcoreError
from twillcore.models.checkpoint import Checkpoint
from twillcore.models.sad import Sad
from twillcore.models.sr_ste import decouple

Batches = Callable[[int], tuple[Tensor, ...]]  # of a step's number
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Recipe:
    """How to distil.

    Attributes
    ----------
    steps : in all, those before an interruption included
    rate : peak learning rate of AdamW; linear warm-up, then half a cosine to ``final`` of it
    decay : of masked weights, decoupled; multiplies the rate
    output_weight : of the results' cosine beside the tapped layers
    largest_gradient : the gradient's norm is cut to this
    bfloat16 : products in bfloat16, everything else in float32
    """

    steps: int
    rate: float = 3e-4
    warm_up: int = 50
    final: float = 0.01
    decay: float = 0.0
    output_weight: float = 1.0
    largest_gradient: float = 1.0
    bfloat16: bool = False

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step."""
        warm = min(1.0, (step + 1) / max(self.warm_up, 1))
        cosine = 0.5 * (1 + math.cos(math.pi * step / max(self.steps, 1)))
        return self.rate * warm * (self.final + (1 - self.final) * cosine)


@dataclass
class History:
    """Losses and mask changes (bits per weight) of steps so far, by number of the step."""

    loss: dict[int, float] = field(default_factory=dict)
    sad: dict[int, float] = field(default_factory=dict)


class _Taps:
    """Outputs of named submodules during a forward."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        self.outputs: dict[str, Tensor] = {}
        known = dict(module.named_modules())
        if unknown := [name for name in names if name not in known]:
            raise TwillcoreError(f"no submodules {', '.join(unknown)} to distil from")
        self._handles = [
            known[name].register_forward_hook(
                lambda _, __, out, name=name: self.outputs.__setitem__(name, out)
            )
            for name in names
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the squared error relative to how ``wanted`` varies around its channels' means."""
    spread = wanted - wanted.flatten(0, -2).mean(0)
    return (found - wanted).square().sum() / spread.square().sum().clamp_min(1e-12)


def distil(
    student: nn.Module,
    teacher: nn.Module,
    batches: Batches,
    recipe: Recipe,
    taps: Sequence[str] = (),
    checkpoint: Checkpoint | None = None,
    save_every: int = 100,
    progress: Progress = lambda done, total, text: None,
    attach: Callable[[torch.optim.Optimizer], None] = lambda optimiser: None,
) -> History:
    """Train the parameters of ``student`` that require gradients, in place.

    Parameters
    ----------
    student : may be parametrised (:func:`twillcore.models.sr_ste.sparsify`, fake quantisation)
    batches : inputs of both networks for a step; for a result that can be repeated, it must
        depend on the number only
    taps : names of submodules, the same in both, with tensors (.., channels) as outputs
    checkpoint : to save to every ``save_every`` steps and to resume from
    attach : called with the optimiser before the first step, to hook more into its steps

    Raises
    ------
    TwillcoreError
        If the loss becomes NaN or infinite, a tap does not exist, nothing is to be trained, or the
        checkpoint is damaged or of another training.
    """
    trained = [p for p in student.parameters() if p.requires_grad]
    if not trained:
        raise TwillcoreError("distillation: no parameter of the student requires a gradient")
    optimiser = torch.optim.AdamW(trained, lr=recipe.rate, weight_decay=0.0, fused=True)
    if recipe.decay:
        decouple(optimiser, student, recipe.decay)
    attach(optimiser)
    history, sad, start = History(), Sad(), 0
    if checkpoint is not None:
        checkpoint = checkpoint.of(**asdict(recipe))
        if (state := checkpoint.resume(student, optimiser)) is not None:
            start, sad = state["step"], Sad.of_state(state["sad"])
            history = History(**state["history"])

    def save(step: int) -> None:
        progress = {"step": step, "history": asdict(history), "sad": sad.state()}
        checkpoint.save(student, optimiser, progress)

    theirs, ours = _Taps(teacher, taps), _Taps(student, taps)
    began = time.monotonic()
    try:
        for step in range(start, recipe.steps):
            rate = recipe.rate_at(step)
            for group in optimiser.param_groups:
                group["lr"] = rate
            inputs = batches(step)
            with (
                torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16),
                sdpa_kernel(SDPBackend.MATH),  # on short texts several times faster than the fused
            ):
                with torch.no_grad():
                    wanted = teacher(*inputs)
                found = student(*inputs)
            loss = recipe.output_weight * (1 - functional.cosine_similarity(
                found.float(), wanted.float(), dim=-1).mean())  # fmt: skip
            for name, target in theirs.outputs.items():
                error = relative_error(ours.outputs[name].float(), target.float())
                loss = loss + error / len(taps)
            value = loss.item()
            if not math.isfinite(value):
                kept = f"; {checkpoint.path} holds an earlier step" if checkpoint else ""
                raise TwillcoreError(
                    f"distillation: the loss is {value} at step {step}: lower the rate of"
                    f" {recipe.rate:g}{kept}"
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, recipe.largest_gradient)
            optimiser.step()
            history.loss[step] = value
            history.sad[step] = sad.update(student) / max(sad.weights, 1)
            pace = (time.monotonic() - began) / (step + 1 - start)
            left = pace * (recipe.steps - step - 1)
            progress(step + 1, recipe.steps, f"loss {value:.4f}, {left / 60:.0f} min left")
            if checkpoint is not None and ((step + 1) % save_every == 0):
                save(step + 1)
        if checkpoint is not None and recipe.steps > start:
            save(recipe.steps)
    finally:
        theirs.remove()
        ours.remove()
    return history
