import numpy as np
import pytest

from twillcore.config import PRESETS
from twillcore.hw.vector import VectorEngine
from twillcore.isa import ElementwiseOp, Instruction, Opcode
from twillcore.numerics import elementwise_add, elementwise_multiply, narrow
from twillcore.sim.benches.vector import EngineBench

TINY = PRESETS["tiny"]
WIDE = TINY.replace(name="wide8", lanes=8)
BLOCK16 = TINY.replace(name="block16", block=16, dsp_columns=16)
MULTIPLIERS = (-32768, 32767, 1, 0, -1)


@pytest.mark.parametrize("config", [TINY, WIDE, BLOCK16], ids=lambda c: c.name)
def test_matches_numerics(config):
    rng = np.random.default_rng(0)
    bench = EngineBench(config, rng)
    bench.wide[:] = rng.integers(-32768, 32768, bench.wide.shape) >> rng.integers(
        0, 16, bench.wide.shape
    )
    bench.wide[:8] = -32768  # the largest product there is
    bench.activation[:] = rng.integers(-128, 128, bench.activation.shape)
    wide, activation = bench.wide.copy(), bench.activation.copy()
    jobs, expected, place = [], [], 0
    for n in range(24):
        row_tiles, words = int(rng.integers(1, 4)), int(rng.integers(1, 4))
        a_wide, b_wide, out_wide, op = (int(v) for v in rng.integers(0, 2, 4))
        a, b = (int(v) for v in rng.integers(0, 100, 2))
        if n == 0:
            a, b, a_wide, b_wide, op, row_tiles, words = 0, 4, 1, 1, 1, 1, 2
        strides = [int(v) for v in rng.integers(0, 8, 2)]
        multipliers = [
            int(rng.choice(MULTIPLIERS) if rng.random() < 0.3 else rng.integers(-32768, 32768))
            for _ in range(2)
        ]
        if n == 0:
            multipliers = [-32768, 1]
        shift = int(rng.integers(0, 36)) if n % 5 else [30, 63, 0, 1, 48][n // 5]
        job = Instruction(Opcode.ELEMENTWISE, {
            "op": op, "a_wide": a_wide, "a": a, "a_row_stride": strides[0], "b_wide": b_wide,
            "b": b, "b_row_stride": strides[1], "row_tiles": row_tiles, "words": words,
            "a_multiplier": multipliers[0], "b_multiplier": multipliers[1], "shift": shift,
            "narrow_shift": int(rng.integers(0, 16)), "wide": out_wide, "out": 130 + place,
            "out_row_stride": words,
        })  # fmt: skip
        rows = np.arange(row_tiles)[:, None]
        columns = np.arange(words)
        x = (wide if a_wide else activation)[a + rows * strides[0] + columns]
        y = (wide if b_wide else activation)[b + rows * strides[1] + columns]
        if op == ElementwiseOp.ADD:
            result = elementwise_add(x, y, *multipliers, shift)
        else:
            result = elementwise_multiply(x, y, multipliers[0], shift)
        jobs.append(job)
        expected.append(result if out_wide else narrow(result, job["narrow_shift"]))
        place += row_tiles * words
    assert 130 + place <= config.wide_depth
    run = bench.run(VectorEngine(config), jobs, [int(g) for g in rng.integers(0, 9, len(jobs))])
    assert run.error is None
    for job, values in zip(jobs, expected, strict=True):
        memory = bench.wide if job["wide"] else bench.activation
        got = memory[job["out"] :][: job["row_tiles"] * job["words"]].reshape(values.shape)
        np.testing.assert_array_equal(got, values, str(job))
