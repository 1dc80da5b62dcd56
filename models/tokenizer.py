"""Text to token numbers, as all-MiniLM-L6-v2 was trained: uncased WordPiece."""

from collections.abc import Sequence
from functools import cache

import torch
from tokenizers import Tokenizer
from torch import Tensor

from twillcore.errors import TwillcoreError
from twillcore.models.weights import minilm_file

LONGEST = 512  # positions that the network has


@cache
def wordpiece() -> Tokenizer:
    """Return the tokenizer of the checkpoint without the truncation and padding set in its file."""
    tokenizer = Tokenizer.from_file(str(minilm_file("tokenizer.json")))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def count_tokens(texts: Sequence[str]) -> list[int]:
    """Return how many tokens each text has, with the start and end token, without truncation."""
    return [len(encoding.ids) for encoding in wordpiece().encode_batch(list(texts))]


def tokenize(texts: Sequence[str], tokens: int) -> tuple[Tensor, Tensor]:
    """Return token numbers and mask, int64 (len(texts), ``tokens``), cut and padded to length.

    Raises
    ------
    TwillcoreError
        If there is no text, or ``tokens`` leaves room for none or is more than the network takes.
    """
    if not texts:
        raise TwillcoreError("no text to tokenize")
    if not 3 <= tokens <= LONGEST:
        raise TwillcoreError(f"tokens must be 3..{LONGEST}, not {tokens}")
    ids = torch.zeros(len(texts), tokens, dtype=torch.int64)  # [PAD] is 0
    mask = torch.zeros_like(ids)
    for row, encoding in enumerate(wordpiece().encode_batch(list(texts))):
        kept = encoding.ids
        if len(kept) > tokens:
            kept = [*kept[: tokens - 1], kept[-1]]  # the end token stays
        ids[row, : len(kept)] = torch.tensor(kept)
        mask[row, : len(kept)] = 1
    return ids, mask
