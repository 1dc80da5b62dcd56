"""Queues and register slices under random gaps and stalls."""

import random

import pytest

from twillcore.hw.streams import Queue, RegisterSlice
from twillcore.sim.bench import simulate


def run(dut, depth, gap, stall, seed, count=300):
    """Send ``count`` payloads; returns the cycle in which each was taken, and left.

    Checks order, and that ``i`` is ready exactly while fewer than ``depth`` payloads wait.
    """
    entered, left = [], []

    async def bench(ctx):
        rng = random.Random(seed)
        offered = False
        for cycle in range(20 * count):
            offered = offered or (len(entered) < count and rng.random() >= gap)
            ready = rng.random() >= stall
            ctx.set(dut.i.valid, offered)
            ctx.set(dut.i.payload, 1000 + len(entered) if offered else rng.getrandbits(16))
            ctx.set(dut.o.ready, ready)
            waiting = len(entered) - len(left)
            assert ctx.get(dut.i.ready) == (waiting < depth)
            assert ctx.get(dut.o.valid) == (waiting > 0)
            if waiting and ready:
                assert ctx.get(dut.o.payload) == 1000 + len(left)
                left.append(cycle)
            if offered and ctx.get(dut.i.ready):
                entered.append(cycle)
                offered = False
            await ctx.tick()
            if len(left) == count:
                return
        raise TimeoutError

    simulate(dut, bench, timeout=20 * count + 10)
    return entered, left


@pytest.mark.parametrize(("gap", "stall"), [(0, 0), (0.5, 0), (0, 0.5), (0.5, 0.5), (0.1, 0.9)])
@pytest.mark.parametrize(
    ("make", "depth"),
    [(lambda: RegisterSlice(16), 2), (lambda: Queue(16, 3), 3)],
    ids=["slice", "queue"],
)
def test_order_and_room(make, depth, gap, stall):
    run(make(), depth, gap, stall, f"{gap} {stall}")


@pytest.mark.parametrize("make", [lambda: RegisterSlice(16), lambda: Queue(16, 2)])
def test_one_payload_per_cycle_after_one_cycle(make):
    entered, left = run(make(), 2, 0, 0, 1)
    assert entered == list(range(300))
    assert left == [cycle + 1 for cycle in entered]
