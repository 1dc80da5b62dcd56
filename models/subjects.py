"""Networks that ``twillcore compress`` knows: how to load, feed, train and judge each."""

import copy
import dataclasses
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from twillcore.cache import cached_file, content_key
from twillcore.errors import TwillcoreError
from twillcore.models.checkpoint import Checkpoint, fingerprint
from twillcore.models.compress import Attach, ProgramCycles, compress
from twillcore.models.digits import load_digits, patches
from twillcore.models.digits_cnn import digits_accuracy, planes
from twillcore.models.digits_vit import DigitsViT, accuracy, fit, train_dense
from twillcore.models.idp import Candidate, chain, inherit
from twillcore.models.layout import is_depthwise, sparse_layers
from twillcore.models.minilm import load_minilm
from twillcore.models.pattern import Pattern
from twillcore.models.policy import Policy
from twillcore.models.text import calibration_sentences, evaluation_sentences
from twillcore.models.tokenizer import tokenize
from twillcore.models.train_minilm import RECIPE, distil_minilm
from twillcore.models.vision import load_vision_network
from twillcore.models.zoo import batches_without_padding

Progress = Callable[[int, int, str], None]
Inputs = tuple[Tensor, ...]

MINILM_TOKENS = 32  # of the sentences that are compiled for
DIGITS_RATE, DIGITS_DECAY = 2e-3, 0.1
DIGITS_VERSION = "1"  # of network and training: change it and the dense one is trained again


@dataclass(frozen=True)
class Training:
    """How to train a network that has been prepared.

    Attributes
    ----------
    steps : of the distillation (MiniLM), or epochs (digits)
    checkpoint : to resume from, and to save to
    """

    steps: int
    seed: int = 0
    checkpoint: Checkpoint | None = None
    progress: Progress = lambda done, total, text: None

    def of(self, dense: nn.Module) -> "Training":
        """Return the training that starts from ``dense``: its checkpoint knows these weights.

        Raises
        ------
        TwillcoreError
            If the checkpoint's file is damaged or of another training.
        """
        if self.checkpoint is None or not self.steps:
            return dataclasses.replace(self, checkpoint=None)
        checkpoint = self.checkpoint.of(weights=fingerprint(*dense.state_dict().values()))
        checkpoint.check()
        return dataclasses.replace(self, checkpoint=checkpoint)


@dataclass(frozen=True)
class Subject:
    """A network with its data.

    Attributes
    ----------
    config : that it is compiled for unless said otherwise
    load : return it trained and dense
    data : inputs without padding, to measure on and to calibrate pruning
    samples : inputs of the compiled shape, to calibrate scales
    score_name, score : how good a network is on data that nothing else has seen
    layers : names of the layers to compress; None: all
    train : train a prepared module in place (masks and fake quantisation follow by themselves);
        the last argument is called with the optimiser. Return the SAD per weight
    """

    config: str
    load: Callable[[Progress], nn.Module]
    data: Callable[[], list[Inputs]]
    samples: Callable[[], list[Inputs]]
    score_name: str
    score: Callable[[nn.Module], float]
    layers: Callable[[nn.Module], Sequence[str] | None]
    train: Callable[[nn.Module, Training, Attach], float]

    def compressed(
        self,
        target: str | Policy,
        method: str,
        training: Training,
        config: str,
        name: str,
        program_cycles: ProgramCycles,
        start: Path | None = None,
    ) -> tuple[nn.Module, Policy, float]:
        """Return the network, compressed and trained, its policy and the SAD of the training.

        ``program_cycles`` times programs; ``start`` is a file of weights to take instead of the
        dense ones.

        Raises
        ------
        TwillcoreError
            If the weights to start from are of another network, or as :func:`compress` does.
        """
        dense = self.load(training.progress)
        if start is not None:
            load_weights(dense, start)
        training = training.of(dense)
        moved = []
        module, policy = compress(
            dense, self.samples()[0], target=target, data=self.data(), config=config,
            method=method, layers=self.layers(dense), name=name, progress=training.progress,
            checkpoint=training.checkpoint, program_cycles=program_cycles,
            trainer=(lambda m, attach: moved.append(self.train(m, training, attach)))
            if training.steps else None,
        )  # fmt: skip
        return module, policy, sum(moved)


def load_weights(module: nn.Module, path: Path) -> None:
    """Read a file of weights; raises :class:`TwillcoreError` if it is of another network."""
    try:
        module.load_state_dict(torch.load(path, weights_only=True))
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise TwillcoreError(f"{path}: no weights of this network: {reason}") from None


def _train_minilm(module: nn.Module, training: Training, attach: Attach) -> float:
    recipe = dataclasses.replace(RECIPE, steps=training.steps)
    history = distil_minilm(
        module, recipe, training.seed, training.checkpoint, training.progress, attach
    )
    return sum(history.sad.values())


def _minilm_score(module: nn.Module) -> float:
    batches = batches_without_padding(evaluation_sentences())
    dense = load_minilm()
    with torch.no_grad():
        cosines = [torch.cosine_similarity(module(*b), dense(*b)) for b in batches]
    return float(torch.cat(cosines).mean())


def _dense_digits_vit(progress: Progress) -> DigitsViT:
    """Return the trained network, from the cache if possible."""

    def make(path: Path) -> None:
        torch.save(train_dense(load_digits(), 0, progress=progress).state_dict(), path)

    module = DigitsViT()
    file = cached_file("digits-vit", content_key("digits-vit", DIGITS_VERSION), ".pt", make)
    module.load_state_dict(torch.load(file, weights_only=True))
    return module.eval().requires_grad_(False)


def _digits_batches(view: Callable[[Tensor], Tensor], count: int, each: int) -> list[Inputs]:
    images = view(load_digits().train[:count])
    return [(images[start : start + each],) for start in range(0, count, each)]


def _train_digits(view: Callable[[Tensor], Tensor]) -> Callable[..., float]:
    """Return a training for so many epochs."""

    def train(module: nn.Module, training: Training, attach: Attach) -> float:
        sad = fit(
            module.requires_grad_(True), load_digits(), training.steps, DIGITS_RATE, training.seed,
            DIGITS_DECAY, training.progress, view, attach, training.checkpoint,
        )  # fmt: skip
        return sad.per_weight

    return train


def _inner_layers(module: nn.Module) -> list[str]:
    """Return the layers but the first and the last, and but depthwise ones."""
    layers = list(sparse_layers(module).items())[1:-1]
    return [name for name, layer in layers if not is_depthwise(layer)]


SUBJECTS = {
    "minilm": Subject(
        config="u256",
        load=lambda progress: load_minilm(),
        data=lambda: batches_without_padding(calibration_sentences()),
        samples=lambda: [tokenize([text], MINILM_TOKENS) for text in calibration_sentences()],
        score_name="mean cosine to dense fp32",
        score=_minilm_score,
        layers=lambda module: None,
        train=_train_minilm,
    ),
    "digits-vit": Subject(
        config="u256",
        load=_dense_digits_vit,
        data=lambda: _digits_batches(patches, 448, 64),
        samples=lambda: _digits_batches(patches, 32, 1),
        score_name="accuracy",
        score=lambda module: accuracy(module, load_digits()),
        layers=lambda module: module.sparse(),
        train=_train_digits(patches),
    ),
    "digits-cnn": Subject(
        config="z7020",
        load=lambda progress: load_vision_network("digits-cnn", progress=progress),
        data=lambda: _digits_batches(planes, 448, 64),
        samples=lambda: _digits_batches(planes, 32, 1),
        score_name="accuracy",
        score=digits_accuracy,
        layers=_inner_layers,
        train=_train_digits(planes),
    ),
}


def find_subject(name: str) -> Subject:
    """Return a network by name; raises :class:`TwillcoreError` if there is none."""
    if name not in SUBJECTS:
        raise TwillcoreError(f"no network {name!r} to compress: there is {', '.join(SUBJECTS)}")
    return SUBJECTS[name]


def level_folder(pattern: Pattern) -> str:
    """Return the name of the folder of a candidate of inherited dynamic pruning."""
    return str(pattern).replace(":", "of")


def inherited(
    subject: Subject, target: Pattern, training: Training, halving: bool = False
) -> tuple[list[Candidate], list[float]]:
    """Return the family of inherited dynamic pruning, and the SAD of each level's training.

    Every level is trained for the steps. ``halving``: N is halved from level to level, not less by
    one.
    """
    dense = subject.load(training.progress)
    training = training.of(dense)
    levels, moved = chain(target.group, target.kept, halving), []

    def train(module: nn.Module, pattern: Pattern, turn: int) -> None:
        checkpoint = training.checkpoint
        if checkpoint is not None:
            path = checkpoint.path
            checkpoint = checkpoint.at(path.parent / level_folder(pattern) / path.name)
        moved.append(
            subject.train(
                module.train(), dataclasses.replace(training, checkpoint=checkpoint), lambda _: None
            )
        )
        module.eval()

    names = subject.layers(dense)
    family = inherit(copy.deepcopy(dense), levels, train, subject.score, decay=0.0, layers=names)
    for candidate in family:
        candidate.module.eval().requires_grad_(False)
    return family, moved
