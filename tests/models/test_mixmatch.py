"""Channels for the LUT core: by variance and divergence; the levels of SP2."""

import pytest
import torch

from twillcore.errors import TwillcoreError
from twillcore.models.mixmatch import (
    lut_channels,
    quantise_to_levels,
    row_divergence,
    row_variance,
    share_of,
    sp2_levels,
)


def test_narrow_rows_go_first_lowest_index_of_equals():
    weight = torch.tensor([[3.0, -3], [1, -1], [2, -2], [1, -1], [9, -9]])
    assert row_variance(weight).tolist() == [9, 1, 4, 1, 81]
    assert lut_channels(row_variance(weight), 0.4).tolist() == [1, 3]
    assert lut_channels(row_variance(weight), 0.2).tolist() == [1]
    assert lut_channels(row_variance(weight), 0.6, multiple=2).tolist() == [0, 1, 2, 3]
    assert lut_channels(row_variance(weight), 0.0).tolist() == []
    with pytest.raises(TwillcoreError, match=r"must be 0\.\.1, not 1\.5"):
        lut_channels(torch.ones(3), 1.5)


def test_rows_on_the_grid_diverge_least():
    torch.manual_seed(0)
    on_grid = torch.randint(-1, 2, (1, 512)).float()
    divergence = row_divergence(torch.cat([torch.randn(1, 512), on_grid]), 2)
    assert divergence[1] == pytest.approx(0, abs=1e-4)
    assert divergence[0] > 0.1


def test_sp2_levels_of_four_bits_are_the_published():
    assert sp2_levels(4) == [0, 1 / 8, 1 / 4, 1 / 2, 5 / 8, 3 / 4, 1]
    levels = sp2_levels(4)
    rounded = quantise_to_levels(torch.tensor([[8.0, -4.9, 0.4, 3.2]]), levels)  # steps of 8
    assert rounded.tolist() == [[8, -5, 0, 4]]


def test_share_balances_the_cores():
    assert share_of(1.0, 1.5) == pytest.approx(0.4)
