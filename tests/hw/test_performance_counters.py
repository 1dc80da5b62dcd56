import random

from twillcore.hw.performance_counters import PerformanceCounters
from twillcore.hw.ports import Activity
from twillcore.isa import Engine
from twillcore.registers import Counter
from twillcore.sim.bench import simulate


def cause(activity, missing):
    """Return what a cycle counts as."""
    if activity is Activity.BUSY:
        return Counter.BUSY
    if activity is Activity.BLOCKED:
        return Counter.BLOCKED
    for engine in Engine:
        if missing >> engine & 1:
            return Counter[f"WAIT_{engine.name}"]
    return Counter.ENDING if activity is Activity.ENDING else Counter.EMPTY


def test_every_cycle_counts_once():
    dut = PerformanceCounters()
    rng = random.Random(6)

    async def testbench(ctx):
        expected = dict.fromkeys(Counter, 0)
        for cycle in range(500):
            activity = rng.choice(list(Activity))
            missing = rng.getrandbits(6) & rng.getrandbits(6) & rng.getrandbits(6)
            enable, clear = rng.random() < 0.9, cycle == 50
            ctx.set(dut.activity, activity)
            ctx.set(dut.missing, missing)
            ctx.set(dut.enable, enable)
            ctx.set(dut.clear, clear)
            if enable:
                expected[cause(activity, missing)] += 1
            if clear:
                expected = dict.fromkeys(Counter, 0)
            await ctx.tick()
        ctx.set(dut.enable, 0)
        await ctx.tick()  # the last cycle is counted a cycle later
        assert min(expected.values()) > 0
        found = {counter: ctx.get(getattr(dut, counter.name.lower())) for counter in Counter}
        assert found == expected

    simulate(dut, testbench)
