"""The 1,797 handwritten digits that come with scikit-learn, as patches, split 75 to 25."""

import gzip
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from twillcore.errors import TwillcoreError

SIDE, PATCH = 8, 2
TEST_SHARE = 0.25


@dataclass(frozen=True)
class Digits:
    """Images (n, 8, 8) float32 around 0, labels (n,) int64; for training and apart for testing."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@cache
def load_digits(seed: int = 0) -> Digits:
    """Return the digits; every class is split alike, by ``seed``.

    Raises
    ------
    TwillcoreError
        If scikit-learn is not installed.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise TwillcoreError("the digits come with scikit-learn: pip install scikit-learn")
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",")
    images = torch.from_numpy(table[:, :-1]).float().view(-1, SIDE, SIDE) / 8 - 1
    labels = torch.from_numpy(table[:, -1]).long()
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        members = (labels == label).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator)]
        chosen[members[: round(TEST_SHARE * len(members))]] = True
    return Digits(images[~chosen], labels[~chosen], images[chosen], labels[chosen])


def patches(images: Tensor) -> Tensor:
    """Return images (n, 8, 8) as patches of 2 x 2, (n, 16, 4)."""
    split = images.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)
    return split.reshape(len(images), (SIDE // PATCH) ** 2, PATCH * PATCH)


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images, each moved by up to a pixel in both directions at random."""
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), value=-1.0)
    dy, dx = torch.randint(3, (2, len(images), 1, 1), generator=generator)
    step = torch.arange(SIDE)
    rows, columns = dy + step[None, :, None], dx + step[None, None, :]
    return padded[torch.arange(len(images))[:, None, None], rows, columns]
