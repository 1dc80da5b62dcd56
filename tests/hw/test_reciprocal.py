import numpy as np
import pytest

from twillcore.hw.reciprocal import Reciprocal, SquareRoot
from twillcore.numerics import isqrt, lane_scale
from twillcore.sim.bench import simulate

LANES = 4


async def compute(ctx, dut, operand, values):
    """Start, count the cycles until done, and check that they are the latency."""
    for lane, value in enumerate(values):
        ctx.set(operand[lane], int(value))
    ctx.set(dut.start, 1)
    await ctx.tick()
    ctx.set(dut.start, 0)
    for lane in range(LANES):
        ctx.set(operand[lane], 12345)  # taken with start, not later
    for _ in range(dut.LATENCY - 1):
        assert not ctx.get(dut.done)
        await ctx.tick()
    assert ctx.get(dut.done)


def log_uniform(rng, bits, count):
    return np.minimum(2.0 ** rng.uniform(0, bits, count), (1 << bits) - 1).astype(np.int64)


def test_reciprocal_is_lane_scale():
    rng = np.random.default_rng(0)
    totals = log_uniform(rng, 24, 120)
    totals[:8] = 1, 2, 3, (1 << 24) - 1, 1 << 23, (1 << 23) - 1, (1 << 23) + 1, 127
    dut = Reciprocal(LANES)

    async def bench(ctx):
        for row in totals.reshape(-1, LANES):
            numerator = int(rng.choice([1 << 15, (1 << 16) - 1, rng.integers(1 << 15, 1 << 16)]))
            ctx.set(dut.remainder, numerator << 11)
            await compute(ctx, dut, dut.divisor, row)
            multiplier, shift = lane_scale(row, numerator, 30)
            assert [ctx.get(q) for q in dut.quotient] == multiplier.tolist()
            assert [34 - ctx.get(n) for n in dut.leading_zeros] == shift.tolist()

    simulate(dut, bench)


@pytest.mark.parametrize("bits", [8, 56])
def test_square_root(bits):
    rng = np.random.default_rng(0)
    roots = log_uniform(rng, bits // 2, 60)
    squares = np.concatenate([
        roots * roots, roots * roots - 1, log_uniform(rng, bits, 116), [0, 1, 2, (1 << bits) - 1]
    ])  # fmt: skip
    dut = SquareRoot(LANES)

    async def bench(ctx):
        for row in squares.reshape(-1, LANES):
            await compute(ctx, dut, dut.square, row)
            assert [ctx.get(root) for root in dut.root] == isqrt(row).tolist()

    simulate(dut, bench)
