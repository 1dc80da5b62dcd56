"""Amaranth test benches: run one, put to and get from streams.

The waits are plain loops: in Amaranth 0.5 a bench that is abandoned inside ``ctx.tick().until()``
or ``.repeat()`` (because another one failed) cannot be closed, and buries the failure in noise.
"""

from amaranth.sim import Simulator

PERIOD = 1e-6  # seconds; the value is arbitrary, designs are checked by the cycle


def simulate(dut, *testbenches, timeout=100_000, background=()):
    """Run ``testbenches`` (async functions of ``ctx``) against ``dut`` until all have returned.

    ``background`` benches (memory models) are abandoned at the end.

    Raises
    ------
    TimeoutError
        If the test benches have not returned after ``timeout`` cycles.
    """

    async def watchdog(ctx):
        await ctx.delay(timeout * PERIOD)
        raise TimeoutError(f"test bench still running after {timeout} cycles")

    sim = Simulator(dut)
    sim.add_clock(PERIOD, if_exists=True)
    for testbench in testbenches:
        sim.add_testbench(testbench)
    for testbench in (watchdog, *background):
        sim.add_testbench(testbench, background=True)
    sim.run()


async def idle(ctx, cycles):
    """Wait for ``cycles`` clock edges."""
    for _ in range(cycles):
        await ctx.tick()


async def put(ctx, stream, payload):
    """Offer ``payload`` until it is taken."""
    ctx.set(stream.payload, payload)
    ctx.set(stream.valid, 1)
    taken = False
    while not taken:
        _, _, taken = await ctx.tick().sample(stream.ready)
    ctx.set(stream.valid, 0)


async def get(ctx, stream):
    """Wait for a payload, take it and return it."""
    ctx.set(stream.ready, 1)
    valid = False
    while not valid:
        _, _, valid, payload = await ctx.tick().sample(stream.valid, stream.payload)
    ctx.set(stream.ready, 0)
    return payload
