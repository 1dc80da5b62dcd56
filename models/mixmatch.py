"""Which output channels go to the core of look-up tables, at few bits.

By variance, as Mix&Match (Chang et al. 2021, HPCA): narrow rows suit few or power-of-two levels.
By divergence, as N3H-Core (2022): the rows whose histogram few bits change least. The share is the
throughput of the LUT core over that of both.
"""

import itertools

import torch
from torch import Tensor

from twillcore.errors import TwillcoreError
from twillcore.models.qat import quantise_rows

BINS = 64


def lut_channels(score: Tensor, share: float, multiple: int = 1) -> Tensor:
    """Return the channels of lowest ``score``, ascending: ``share`` of all, in whole multiples.

    Of equal scores the lower channel is taken first.

    Raises
    ------
    TwillcoreError
        If the share is not 0..1.
    """
    if not 0 <= share <= 1:
        raise TwillcoreError(f"the share of the LUT core must be 0..1, not {share}")
    count = round(share * len(score) / multiple) * multiple
    return score.sort(stable=True).indices[: min(count, len(score))].sort().values


def share_of(lut_throughput: float, dsp_throughput: float) -> float:
    """Return the share at which both cores take equally long."""
    return lut_throughput / (lut_throughput + dsp_throughput)


def row_variance(weight: Tensor) -> Tensor:
    """Return the variance of each row of ``weight`` (outputs, inputs)."""
    return weight.var(1, correction=0)


def row_divergence(weight: Tensor, bits: int) -> Tensor:
    """Return the Kullback-Leibler divergence of each row's histogram from that at ``bits``.

    Weights are clipped to the rounded row's range; empty bins count as one millionth.
    """
    rounded = quantise_rows(weight, bits)
    found = []
    for row, few in zip(weight, rounded, strict=True):
        reach = max(float(few.abs().max()), 1e-12)
        p, q = (
            torch.histc(x.clamp(-reach, reach), BINS, -reach, reach).add(1e-6) for x in (row, few)
        )
        p, q = p / p.sum(), q / q.sum()
        found.append((p * (p / q).log()).sum())
    return torch.stack(found)


def sp2_levels(bits: int) -> list[float]:
    """Return the non-negative levels of SP2, sums of two powers of two, up to 1.

    ``q1 + q2`` with q1 in 0, 2**-1 .. 2**-(2**m1 - 1), q2 likewise with m2, and
    m1 + m2 = bits - 1, m1 >= m2. A product is two shifts and an addition.
    """
    m2 = (bits - 1) // 2
    m1 = bits - 1 - m2
    first, second = ([0.0] + [2.0**-k for k in range(1, 2**m)] for m in (m1, m2))
    return sorted({a + b for a, b in itertools.product(first, second)})


def quantise_to_levels(weight: Tensor, levels: list[float]) -> Tensor:
    """Return ``weight`` (outputs, inputs) at the nearest of +-levels times each row's largest."""
    scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-30) / max(levels)
    grid = torch.tensor(levels)
    nearest = ((weight / scale).abs()[..., None] - grid).abs().argmin(-1)
    return grid[nearest] * weight.sign() * scale
