import numpy as np
import pytest

from twillcore.config import PRESETS
from twillcore.hw.vector import VectorEngine
from twillcore.isa import Instruction, Opcode
from twillcore.numerics import exponential, lane_scale
from twillcore.sim.benches.vector import EngineBench

TINY = PRESETS["tiny"]
WIDE = TINY.replace(name="wide8", lanes=8)
BLOCK16 = TINY.replace(name="block16", block=16, dsp_columns=16)


def logits(rng, kind, shape):
    """Return int16 logits of shape (row tiles, words, lanes, block)."""
    if kind == "near":
        return rng.integers(-400, 400, shape)
    if kind == "extreme":
        return rng.choice([-32768, 32767], shape)
    if kind == "equal":
        return np.full(shape, rng.integers(-32768, 32768))
    peak = np.full(shape, -32768)  # "peak": one key alone, as with a mask
    peak[:, 0, :, 3] = 1000
    return peak


@pytest.mark.parametrize("config", [TINY, WIDE, BLOCK16], ids=lambda c: c.name)
def test_matches_numerics(config):
    rng = np.random.default_rng(0)
    bench = EngineBench(config, rng)
    bench.wide[:] = rng.integers(-32768, 32768, bench.wide.shape)
    jobs, expected = [], []
    place = 0
    for kind, row_tiles, words in [
        ("near", 3, 5), ("extreme", 2, 1), ("equal", 1, 3), ("peak", 2, 4), ("near", 4, 1),
    ]:  # fmt: skip
        stride = words + 1
        job = Instruction(Opcode.SOFTMAX, {
            "a": place, "a_row_stride": stride, "row_tiles": row_tiles, "words": words,
            "maximum": len(jobs) * 4, "lane": 31 - len(jobs) * 4 - row_tiles,
            "numerator": int(rng.integers(1 << 15, 1 << 16)), "shift": int(rng.integers(23, 64)),
            "out": 100 + place, "out_row_stride": stride,
        })  # fmt: skip
        x = logits(rng, kind, (row_tiles, words, config.lanes, config.block))
        for tile in range(row_tiles):
            bench.wide[place + tile * stride :][:words] = x[tile]
        maximum = x.max(axis=(1, 3))
        bench.maximum[job["maximum"] :][:row_tiles] = maximum
        e = exponential(x, maximum[:, None, :, None])
        jobs.append(job)
        scales = lane_scale(e.sum(axis=(1, 3)), job["numerator"], job["shift"])
        expected.append((e, np.stack(scales, -1)))
        place += row_tiles * stride
    result = bench.run(VectorEngine(config), jobs, [0, 3, 6, 1, 4])
    assert result.error is None
    for job, (e, scales) in zip(jobs, expected, strict=True):
        rows = range(job["row_tiles"])
        got = [bench.activation[job["out"] + r * job["out_row_stride"] :][: job["words"]]
               for r in rows]  # fmt: skip
        np.testing.assert_array_equal(got, e)
        np.testing.assert_array_equal(bench.lane_scale[job["lane"] :][: len(rows)], scales)
        # the word behind each row stays as it was
        assert not any(bench.activation[job["out"] + r * job["out_row_stride"] + job["words"]].any()
                       for r in rows)  # fmt: skip
