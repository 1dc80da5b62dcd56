import numpy as np
import pytest

from twillcore.config import PRESETS
from twillcore.hw.drain import Drain
from twillcore.hw.dsp_array import GROUP, DspArray
from twillcore.sim.bench import simulate

TINY = PRESETS["tiny"]
EXTREMES = np.array([-128, -127, -1, 0, 1, 127])
CONFIGS = {
    "one lane per multiplier": TINY,
    "two lanes": TINY.replace(family="xcup"),
    "two lanes and one, 16 positions": TINY.replace(
        family="xc7", lanes=3, block=16, dsp_columns=16, operand_depth=0, axi_data_bits=128
    ),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def run(config, tiles, seed=0, dense=False, extremes=EXTREMES):
    """Issue tiles; check every column of every drained one at the promised cycle.

    ``tiles`` are tuples (beats, accumulate, hold, density of beats). The drain follows as closely
    as it may, or not; the last beat of a tile comes as early as it may.
    """
    rng = np.random.default_rng(seed)
    dut = DspArray(config, dense)
    lanes, block, columns = config.lanes, config.block, config.dsp_columns
    expected = {}  # by cycle: the column that leaves
    checked = 0

    def int8(*shape, constant=None):
        """Random values, often extreme; with ``constant``, the same for all of the last axis."""
        if constant:
            return np.broadcast_to(rng.choice(extremes, (*shape[:-1], 1)), shape)
        return np.where(
            rng.random(shape) < 0.5, rng.choice(extremes, shape), rng.integers(-128, 128, shape)
        )

    def schedule():
        """Yield the beats of all tiles: (fields, what memories return, sums, density)."""
        held, sums = None, np.zeros((lanes, columns), int)
        for beats, accumulate, hold, density in tiles:
            constant = rng.random() < 0.5
            words = int8(lanes, block, constant=constant)
            row = rng.choice(extremes, columns)
            for n in range(beats):
                load = held is None or n == 0 or rng.random() < 0.4
                data = (
                    words if constant else int8(lanes, block),
                    row if constant else int8(columns),
                    row if constant else int8(columns),
                    rng.integers(0, block, columns),
                )
                beat = {
                    "valid": 1, "load": int(load), "clear": int(n == 0 and not accumulate),
                    "finish": int(n == beats - 1 and not hold), "operand": int(rng.integers(2)),
                    "counted": int(rng.integers(2)), "position": int(rng.integers(block)),
                }  # fmt: skip
                held = data[0] if load else held
                counted = beat["counted"] or dense
                position = np.full(columns, beat["position"]) if counted else data[3]
                products = held[:, position] * (data[2] if beat["operand"] else data[1])
                sums = products if beat["clear"] else sums + products
                yield beat, data, sums, density

    async def bench(ctx):
        nonlocal checked
        start = -1000  # of the last drain
        data = None
        pending = schedule()
        following = next(pending)
        cycle = 0
        while following or expected:
            ctx.set(dut.shift, cycle in expected)
            if cycle in expected:
                seen = [ctx.get(dut.column[lane]) for lane in range(lanes)]
                assert seen == expected.pop(cycle).tolist(), cycle
                checked += 1
            # Data of the beat before stand on the ports; rubbish where nothing was read.
            activation, weight, operand, index = data or (
                int8(lanes, block), int8(columns), int8(columns), np.zeros(columns, int),
            )  # fmt: skip
            ctx.set(dut.activation, activation.tolist())
            ctx.set(dut.weight, {"weight": weight.tolist(), "index": index.tolist()})
            ctx.set(dut.operand, operand.tolist())
            data = None
            fields = {"valid": 0}
            if following and rng.random() < following[3]:
                beat, read, sums, _ = following
                if not beat["finish"] or cycle >= start + columns - Drain.BEAT_TO_START:
                    fields, data = beat, read
                    following = next(pending, None)
            if fields.get("finish"):
                start = max(cycle + Drain.BEAT_TO_START, start + columns)
                start += int(rng.integers(0, 8)) if rng.random() < 0.5 else 0
                for c in range(columns):
                    expected[start + 2 + c] = sums[:, c]
            ctx.set(dut.beat, fields)
            await ctx.tick()
            cycle += 1

    simulate(dut, bench)
    assert checked == columns * sum(not hold for _, _, hold, _ in tiles)


@every_config
def test_tiles_of_every_length(config):
    """Without gaps and with some: the windows of the beats of a tile are cut in every way."""
    run(config, [(beats, 0, 0, density) for density in (1, 0.7) for beats in range(1, 21)])


@every_config
def test_sums_go_on_after_a_held_tile(config):
    """Held tiles of every length, whose last window is cut short or goes on in the next tile."""
    rng = np.random.default_rng(1)
    tiles = []
    for hold in rng.integers(0, 2, 50).tolist():
        follows_held = bool(tiles) and tiles[-1][2]
        accumulate = int(follows_held and rng.random() < 0.7)
        tiles.append((int(rng.integers(1, 8)), accumulate, hold, rng.choice([1, 0.5])))
    tiles += [(5, 0, 1, 1), (1, 0, 0, 1), (3, 1, 0, 1), (9, 0, 0, 1)]  # also without hold before
    run(config, tiles, seed=2)


@pytest.mark.parametrize("value", [-128, 127])
def test_longest_windows_of_extremes(value):
    """Windows of every length full of the largest products of either sign."""
    tiles = [(beats, 0, 0, 1) for beats in (4, 5, 6, 7, 11, 14, 15, 7, 7, 7, 7)]
    for config in (TINY.replace(family="xc7"), TINY):
        run(config, tiles, seed=3, extremes=np.array([-128, value]))


def test_gaps_between_windows():
    """A tile that stops and goes on, with every pause and every rest."""
    config = TINY.replace(family="xc7")
    run(config, [(beats, 0, 0, 0.2) for beats in (2, 5, 9, 13)] * 3, seed=4)


def test_dense():
    run(TINY.replace(family="xc7"), [(beats, 0, 0, 1) for beats in (1, 8, 9)], dense=True)


def test_columns_are_whole_groups():
    assert all(config.dsp_columns % GROUP == 0 for config in PRESETS.values())
