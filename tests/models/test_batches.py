"""Text to train with: what counts as a sentence, batches that depend on the step only."""

import pytest
import torch

from twillcore.errors import TwillcoreError
from twillcore.models.batches import SPECIAL, SentenceBatches
from twillcore.models.corpus import sentences_of
from twillcore.models.tokenizer import wordpiece

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A harbour at dawn is full of small boats.",
    "Nobody had told them that the bridge was closed.",
]


def test_prose_is_kept_and_code_is_not():
    text = """
    Return the largest value that is found in the given list.  It is
    computed by comparing every pair of neighbours in turn.

    >>> maximum([1, 2, 3])

    x = f(y) is evaluated for every row of the table below.
    Short one.
    NAME TYPE SIZE OF THE FIELD AND ITS LONG DESCRIPTION.
    """
    assert list(sentences_of(text)) == [
        "Return the largest value that is found in the given list.",
        "It is computed by comparing every pair of neighbours in turn.",
    ]


def test_batches_depend_on_the_step_and_have_no_padding():
    batches = SentenceBatches(TEXTS, 64, seed=1)
    again = SentenceBatches(TEXTS, 64, seed=1)
    other = SentenceBatches(TEXTS, 64, seed=2)
    for step in (0, 7):
        ids, mask = batches(step)
        assert torch.equal(ids, again(step)[0])
        assert mask.all()
        assert 48 <= ids.numel() <= 80
        assert (ids[:, 0] == 101).all()
        assert (ids[:, -1] == 102).all()
    assert any(not torch.equal(batches(s)[0], other(s)[0]) for s in range(4))


def test_words_are_exchanged_for_words_in_some_sentences():
    batches = SentenceBatches(TEXTS[:1], 256, seed=0)
    original = torch.tensor(wordpiece().encode(TEXTS[0]).ids)
    ids = torch.cat([batches(step)[0] for step in range(10)])
    changed = ids != original
    assert 0.3 < changed.any(1).float().mean() < 0.7
    assert not changed[:, original <= SPECIAL].any()
    assert (ids[changed] > SPECIAL).all()


def test_no_text_is_refused():
    with pytest.raises(TwillcoreError, match="no text to train with"):
        SentenceBatches([], 64, 0)
