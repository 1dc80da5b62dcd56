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
from twillcore.models.compress import Target, compress
from twillcore.models.digits import load_digits, patches
from twillcore.models.digits_vit import DigitsViT, accuracy, fit, train_dense
from twillcore.models.idp import Candidate, chain, inherit
from twillcore.models.minilm import load_minilm
from twillcore.models.pattern import Pattern
from twillcore.models.policy import Policy
from twillcore.models.sr_ste import freeze, sparsify
from twillcore.models.text import calibration_sentences, evaluation_sentences
from twillcore.models.tokenizer import tokenize
from twillcore.models.train_minilm import RECIPE, train_minilm
from twillcore.models.zoo import batches_without_padding

Progress = Callable[[int, int, str], None]
Inputs = tuple[Tensor, ...]

MINILM_TOKENS = 32  # of the sentences that are compiled for
DIGITS_RATE, DIGITS_DECAY = 1e-3, 1.0
DIGITS_VERSION = "1"  # of network and training: change it and the dense one is trained again


@dataclass(frozen=True)
class Subject:
    """A network with its data.

    Attributes
    ----------
    load : return it trained and dense
    data : inputs without padding, to measure on and to calibrate pruning
    samples : inputs of the compiled shape, to calibrate scales
    score_name, score : how good a network is on data that nothing else has seen
    layers : names of the layers to compress; None: all
    train : (module, patterns, steps, seed, checkpoint, progress) to a trained sparse module
    """

    load: Callable[[Progress], nn.Module]
    data: Callable[[], list[Inputs]]
    samples: Callable[[], list[Inputs]]
    score_name: str
    score: Callable[[nn.Module], float]
    layers: Callable[[nn.Module], Sequence[str] | None]
    train: Callable[..., nn.Module]

    def compressed(
        self,
        target: str,
        method: str,
        steps: int,
        seed: int,
        config: str,
        name: str,
        checkpoint: Path | None = None,
        start: Path | None = None,
        progress: Progress = lambda done, total, text: None,
    ) -> tuple[nn.Module, Policy]:
        """Return the network, compressed to ``target`` and trained for ``steps``.

        ``start`` is a file of weights to take instead of the dense ones.

        Raises
        ------
        TwillcoreError
            If the target is one of bits and there are steps, the weights to start from are of
            another network, or as :func:`compress` does.
        """
        if steps and Target.parse(target).unit == "bits":
            raise TwillcoreError(f"target {target}: training is for N:M; leave out the steps")
        dense = self.load(progress)
        if start is not None:
            _load_weights(dense, start)
        module, policy = compress(
            dense, self.samples()[0], target=target, data=self.data(), config=config,
            method=method, layers=self.layers(dense), name=name, progress=progress,
        )  # fmt: skip
        patterns = {n: p for n, p in policy.patterns().items() if p.kept < p.group}
        if steps and patterns:
            module = self.train(module, patterns, steps, seed, checkpoint, progress)
            policy.enforce(module)
        return module, policy


def _load_weights(module: nn.Module, path: Path) -> None:
    try:
        module.load_state_dict(torch.load(path, weights_only=True))
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise TwillcoreError(f"{path}: no weights of this network: {reason}") from None


def _train_minilm(
    module: nn.Module,
    patterns: dict[str, Pattern],
    steps: int,
    seed: int,
    checkpoint: Path | None,
    progress: Progress,
) -> nn.Module:
    recipe = dataclasses.replace(RECIPE, steps=steps)
    return train_minilm(patterns, module, recipe, seed, checkpoint, progress)[0]


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


def _digits_batches(count: int, each: int) -> list[Inputs]:
    images = patches(load_digits().train[:count])
    return [(images[start : start + each],) for start in range(0, count, each)]


def _train_digits(
    module: nn.Module,
    patterns: dict[str, Pattern],
    steps: int,
    seed: int,
    checkpoint: Path | None,
    progress: Progress,
) -> nn.Module:
    """Train for ``steps`` epochs; too short for a checkpoint."""
    sparsify(module.requires_grad_(True), patterns, decay=0.0)
    fit(module, load_digits(), steps, DIGITS_RATE, seed, DIGITS_DECAY, progress)
    return freeze(module).eval().requires_grad_(False)


SUBJECTS = {
    "minilm": Subject(
        load=lambda progress: load_minilm(),
        data=lambda: batches_without_padding(calibration_sentences()),
        samples=lambda: [tokenize([text], MINILM_TOKENS) for text in calibration_sentences()],
        score_name="mean cosine to dense fp32",
        score=_minilm_score,
        layers=lambda module: None,
        train=_train_minilm,
    ),
    "digits-vit": Subject(
        load=_dense_digits_vit,
        data=lambda: _digits_batches(448, 64),
        samples=lambda: _digits_batches(32, 1),
        score_name="accuracy",
        score=lambda module: accuracy(module, load_digits()),
        layers=lambda module: module.sparse(),
        train=_train_digits,
    ),
}


def find_subject(name: str) -> Subject:
    """Return a network by name; raises :class:`TwillcoreError` if there is none."""
    if name not in SUBJECTS:
        raise TwillcoreError(f"no network {name!r} to compress: there is {', '.join(SUBJECTS)}")
    return SUBJECTS[name]


def inherited(
    subject: Subject,
    target: Pattern,
    steps: int,
    seed: int,
    progress: Progress = lambda done, total, text: None,
) -> list[Candidate]:
    """Return the family of inherited dynamic pruning; each level is trained for ``steps``."""
    dense = subject.load(progress)
    names = subject.layers(dense)
    levels = chain(target.group, target.kept)

    def train(module: nn.Module, pattern: Pattern, turn: int) -> None:
        if not isinstance(dense, DigitsViT):
            raise TwillcoreError("inherited pruning is for digits-vit: MiniLM takes too long")
        fit(module, load_digits(), steps, DIGITS_RATE, seed, DIGITS_DECAY, progress)

    start = copy.deepcopy(dense).requires_grad_(True)
    return inherit(start, levels, train, subject.score, decay=0.0, layers=names)
