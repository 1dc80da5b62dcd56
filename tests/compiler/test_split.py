"""The division of a layer between the two cores."""

import itertools
from dataclasses import replace

import pytest

from twillcore.compiler.errors import CompileError
from twillcore.compiler.split import (
    MOST_HELPED,
    NEAR,
    LayerShape,
    finish_cycles,
    lut_block_cycles,
    split_channels,
)
from twillcore.config import PRESETS

TINY = PRESETS["tiny"]
DUAL = TINY.replace(lanes=14, dsp_columns=24, operand_depth=0, lut_columns=16,
                    lut_weight_depth=1024)  # fmt: skip
LAYER = LayerShape(rows=196, blocks=32, channels=256, beats=8, lut_bits=4, taps=9)


def test_no_core_no_channels():
    assert split_channels(TINY, LAYER) == 0


def test_both_cores_finish_together():
    """24 columns at 8 beats and 16 at 4: 5 and 9 column tiles."""
    dsp = finish_cycles(DUAL, replace(LAYER, channels=120), 0)
    assert dsp == 14 * 5 * 9 * 32 * 8
    assert finish_cycles(DUAL, LAYER, 136) == dsp


def test_a_core_that_would_idle_helps_the_other_one():
    """2 column tiles at 8 beats beside 13 at 4; 9 tiles at 8 for each of the rows that it helps."""
    best = finish_cycles(DUAL, LAYER, split_channels(DUAL, LAYER))
    assert best < 0.96 * finish_cycles(DUAL, LAYER, 136)
    rows = next(n for n in range(14) if 13 * 4 * (14 - n) <= 2 * 8 * 14 + 9 * 8 * n)
    expected = min(max(13 * 4 * (14 - n), 2 * 8 * 14 + 9 * 8 * n) for n in (rows - 1, rows))
    cycles = finish_cycles(DUAL, LAYER, 208)
    assert cycles == pytest.approx(expected * 9 * 32 / MOST_HELPED, rel=0.01)


@pytest.mark.parametrize(
    ("channels", "beats", "bits"), list(itertools.product([8, 64, 200, 512], [2, 4, 8], [2, 4, 8]))
)
def test_no_other_division_is_faster(channels, beats, bits):
    layer = replace(LAYER, channels=channels, beats=beats, lut_bits=bits)
    count = split_channels(DUAL, layer)
    assert count % 8 == 0
    best = finish_cycles(DUAL, layer, count)
    for other in range(0, channels + 1, 8):
        cycles = finish_cycles(DUAL, layer, other)
        assert cycles > best / NEAR


def test_a_core_that_never_gets_a_word_gets_no_channels():
    """With one beat per word the DSP core reads in every cycle."""
    assert split_channels(DUAL, replace(LAYER, channels=48, beats=1, lut_bits=8)) == 0


@pytest.mark.parametrize(
    ("beats", "bits", "stride", "cycles"),
    [
        (8, 4, 1, 4),  # reads of every fourth cycle meet those of every eighth only once
        (4, 4, 1, 4),
        (2, 3, 1, 4),  # every read waits, so that blocks begin in every second cycle
        (3, 4, 2, 6),  # one cycle in three is left for two reads, and the others follow at once
        (1, 4, 1, float("inf")),
        (2, 4, 2, float("inf")),
    ],
)
def test_reads_of_the_lut_core_wait_for_those_of_the_other(beats, bits, stride, cycles):
    assert lut_block_cycles(beats, bits, stride) == pytest.approx(cycles, rel=0.05)


def test_reads_of_the_lut_core_beside_a_core_that_reads_always():
    """Three blocks in two frames; two reads in a row, four cycles apart, wait for nothing."""
    assert lut_block_cycles(2, 4, 2, frozenset({1, 3, 6, 7})) == pytest.approx(16 / 3, rel=0.01)
    assert lut_block_cycles(2, 4, 2, frozenset({2, 3, 6, 7})) == pytest.approx(4, rel=0.01)


def test_a_layer_whose_channels_fill_no_blocks_is_not_divided():
    assert split_channels(DUAL, replace(LAYER, channels=1001)) in (0, 1001)


@pytest.mark.parametrize(("share", "count"), [(0, 0), (0.5, 128), (1, 256), (0.26, 64)])
def test_a_share_is_kept(share, count):
    assert split_channels(DUAL, LAYER, share) == count


@pytest.mark.parametrize(
    ("config", "share", "message"),
    [
        (DUAL, 1.5, r"the LUT core's share must be 0..1, not 1.5"),
        (DUAL, 0.01, "a share of 0.01 of 256 channels leaves the LUT core no block of 8"),
        (TINY, 0.5, "the LUT core's share is 0.5, but configuration 'tiny' has none"),
    ],
)
def test_shares_that_cannot_be(config, share, message):
    with pytest.raises(CompileError, match=message):
        split_channels(config, LAYER, share)
