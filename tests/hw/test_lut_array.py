"""LutArray against numpy: every number of bits, extremes, gaps, tiles as close as they may be."""

import numpy as np
import pytest

from twillcore.config import PRESETS
from twillcore.hw.lut_array import LutArray, beat_to_shadow
from twillcore.sim.bench import simulate

TINY = PRESETS["tiny"].replace(lut_columns=8, lut_weight_depth=64)
EXTREMES = np.array([-128, -127, -1, 0, 1, 127])


def wrap(values, bits):
    """Two's complement of ``bits`` bits."""
    half = 1 << (bits - 1)
    return ((values + half) & ((1 << bits) - 1)) - half


def run_tiles(config, bits, seed, *, extreme=False, gap=0.2, tiles=12, hold=0.0):
    """Run tiles of random length and check every column of every one that is drained.

    ``bits`` of weights, or a tuple of which every tile has one.
    """
    rng = np.random.default_rng(seed)
    dut = LutArray(config)
    to_shadow = beat_to_shadow(config.block)
    lanes, block, columns = config.lanes, config.block, config.lut_columns

    def activations():
        if extreme:
            return np.full((lanes, block), -128)
        values = rng.integers(-128, 128, (lanes, block))
        return np.where(
            rng.random((lanes, block)) < 0.3, rng.choice(EXTREMES, values.shape), values
        )

    def weights(bits):
        if extreme:  # all planes, or the first one alone: -1, and the lowest value
            return np.where(rng.random((columns, block)) < 0.5, -1, -(1 << (bits - 1)))
        return rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), (columns, block))

    def plane(values, bits, beat):
        has = values >> (bits - 1 - beat) & 1
        return (has << np.arange(block)).sum(axis=1)

    checked = finishes = 0

    async def bench(ctx):
        nonlocal checked, finishes
        cycle, data = 0, None
        ready = {}  # by the cycle from which column 0 stands: the sums of the tile
        current, column, free = None, columns, 0

        async def tick(beat):
            nonlocal cycle, data, current, column, checked
            activation, row = data if data is not None else (
                rng.integers(-128, 128, (lanes, block)), rng.integers(0, 1 << block, columns),
            )  # fmt: skip
            ctx.set(dut.activation, activation.tolist())
            ctx.set(dut.weight, row.tolist())
            ctx.set(dut.beat, beat)
            if cycle in ready:
                current, column = ready.pop(cycle), 0
            shift = 0
            if column < columns:
                seen = [ctx.get(dut.column[lane]) for lane in range(lanes)]
                assert seen == current[:, column].tolist(), (cycle, column)
                column, shift = column + 1, 1
                checked += 1
            ctx.set(dut.shift, shift)
            data = None
            await ctx.tick()
            cycle += 1

        sums = np.zeros((lanes, columns), int)
        drained = True
        for tile in range(tiles):
            of_tile = int(rng.choice(np.atleast_1d(bits)))
            blocks = int(rng.integers(1, 6))
            held = rng.random() < hold and tile < tiles - 1
            if drained and held and of_tile == blocks == 1:
                blocks = 2  # else illegal
            drained = not held
            finishes += drained
            accumulate = rng.random() < (0.7 if hold else 0.2)
            if not accumulate:
                sums = np.zeros_like(sums)
            for number in range(blocks):
                values, word = weights(of_tile), activations()
                sums = wrap(sums + word @ values.T, config.accumulator_bits)
                for beat in range(of_tile):
                    while rng.random() < gap:
                        await tick({"valid": 0})
                    end = beat == of_tile - 1
                    finish = end and number == blocks - 1 and drained
                    while finish and cycle < free:
                        await tick({"valid": 0})
                    if finish:
                        ready[cycle + to_shadow] = sums
                        free = cycle + columns  # as soon as it may be
                    next_data = word, plane(values, of_tile, beat)
                    if beat:  # the word is held, whatever the port says
                        next_data = rng.integers(-128, 128, (lanes, block)), next_data[1]
                    await tick({
                        "valid": 1, "load": int(beat == 0), "block_end": int(end),
                        "clear": int(number == beat == 0 and not accumulate),
                        "finish": int(finish),
                    })  # fmt: skip
                    data = next_data
        for _ in range(to_shadow + columns):
            await tick({"valid": 0})

    simulate(dut, bench)
    assert checked == finishes * columns


@pytest.mark.parametrize("bits", range(1, 9))
def test_sums_for_every_number_of_bits(bits):
    run_tiles(TINY, bits, bits)


@pytest.mark.parametrize("bits", [1, 2, 7, 8])
def test_lowest_activations_and_weights(bits):
    run_tiles(TINY, bits, bits, extreme=True, gap=0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bits", [(1, 1, 1, 2), (1, 2, 3), tuple(range(1, 9))])
def test_tiles_of_different_bits_and_tiles_that_are_held(bits, seed):
    """What follows what in the shared adders: blocks of one plane and of more, tiles and gaps."""
    run_tiles(TINY, bits, seed, gap=0.1 * (seed % 2), tiles=60, hold=0.6)


def test_blocks_of_16_and_more_columns():
    config = TINY.replace(
        lanes=3, block=16, dsp_columns=16, lut_columns=48, operand_depth=0, axi_data_bits=128
    )
    for bits in (1, 5, 8):
        run_tiles(config, bits, bits, tiles=4)
    run_tiles(config, 8, 0, extreme=True, tiles=3)


def test_accumulators_wrap():
    run_tiles(TINY.replace(accumulator_bits=20), 8, 1, extreme=True, gap=0)
