"""Batches of sentences for training: equal lengths together, words exchanged at random.

A batch is a function of seed and step, so training can resume. Texts of the machine are of few
subjects; as distillation needs no labels, words are replaced by others of the vocabulary, which
brings the rest of the language in.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from twillcore.errors import TwillcoreError
from twillcore.models.tokenizer import wordpiece

SPECIAL = 999  # token numbers up to here are of special tokens and single characters
REPLACED_SENTENCES = 0.5  # share of the sentences in which words are replaced
REPLACED_WORDS = 0.4  # at most this share of the words, uniform from 0


class SentenceBatches:
    """Inputs (ids, mask), int64 (sentences, tokens), of about ``tokens`` tokens; no padding."""

    def __init__(self, texts: Sequence[str], tokens: int, seed: int, longest: int = 64) -> None:
        if not texts:
            raise TwillcoreError("no text to train with")
        by_length: dict[int, list[list[int]]] = {}
        for encoding in wordpiece().encode_batch(list(texts)):
            if len(encoding.ids) <= longest:
                by_length.setdefault(len(encoding.ids), []).append(encoding.ids)
        self._groups = [by_length[length] for length in sorted(by_length)]
        self._sizes = [len(group) * len(group[0]) for group in self._groups]
        self._tokens, self._seed = tokens, seed
        self._words = [
            number
            for word, number in sorted(wordpiece().get_vocab().items())
            if word.isascii() and word.isalpha() and len(word) > 2 and number > SPECIAL
        ]

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the batch of a step."""
        generator = random.Random(self._seed * 1_000_003 + step)
        group = generator.choices(self._groups, self._sizes)[0]
        count = max(1, round(self._tokens / len(group[0])))
        ids = torch.tensor([self._varied(generator.choice(group), generator) for _ in range(count)])
        return ids, torch.ones_like(ids)

    def _varied(self, ids: list[int], generator: random.Random) -> list[int]:
        if generator.random() >= REPLACED_SENTENCES:
            return ids
        share = generator.random() * REPLACED_WORDS
        return [
            generator.choice(self._words)
            if number > SPECIAL and generator.random() < share
            else number
            for number in ids
        ]
