"""Program order, tokens and addresses: what they must guarantee, and that the verifiers see it."""

import dataclasses

import numpy as np
import pytest

from twillcore.compiler.allocate import OutOfSpace, allocate
from twillcore.compiler.dependences import (
    derive_tokens,
    verify_contents,
    verify_order,
    verify_tokens,
)
from twillcore.compiler.gemm_graph import gemm_graph
from twillcore.compiler.lowering import Tuning, parameter_entries, pieces
from twillcore.compiler.schedule import schedule
from twillcore.compiler.steps import Buffer, Place, Plan, Region, Space, Step
from twillcore.compiler.tile import tile
from twillcore.config import PRESETS
from twillcore.image import Layer
from twillcore.isa import ISA, Engine, Opcode, encode_parameter

TINY, U256 = PRESETS["tiny"], PRESETS["u256"]


def planned(config=TINY, shape=(40, 96, 128)):
    graph, _ = gemm_graph(*shape, config, 4)
    plan = tile(graph, frozenset({"y"}), {}, Tuning())
    placement = allocate(plan)
    return plan, placement, schedule(plan, placement)


def step(opcode, reads=(), writes=()):
    regions = [tuple(Region(b, 0, b.size) for b in buffers) for buffers in (reads, writes)]
    return Step(opcode, {f.name: 0 for f in ISA[opcode].operands}, *regions, 0)


def plan_of(*steps, config=TINY):
    return Plan(config, steps, (Layer("test"),), (), ())


def engines(mask):
    return [engine for engine in Engine if mask >> engine & 1]


def test_a_gemm_waits_for_the_drain_of_another_by_a_token_from_gemm():
    middle = Buffer("middle", Space.ACTIVATION, 4)
    plan = plan_of(step(Opcode.GEMM, writes=[middle]), step(Opcode.GEMM, reads=[middle]))
    placement = allocate(plan)
    tokens = derive_tokens(plan.steps, TINY, placement)
    assert (engines(tokens.signal[0]), engines(tokens.wait[1])) == ([Engine.GEMM], [Engine.GEMM])


def test_steps_of_one_engine_need_no_token_otherwise():
    middle = Buffer("middle", Space.WIDE, 4)
    plan = plan_of(step(Opcode.LAYER_NORM, writes=[middle]), step(Opcode.SOFTMAX, reads=[middle]))
    tokens = derive_tokens(plan.steps, TINY, allocate(plan))
    assert not any(tokens.wait)
    assert not any(tokens.signal)


def test_what_follows_from_other_tokens_gets_none():
    a, b, c = (Buffer(name, Space.WIDE, 4) for name in "abc")
    plan = plan_of(
        step(Opcode.LOAD, writes=[a]),
        step(Opcode.GEMM, reads=[a], writes=[b]),
        step(Opcode.LAYER_NORM, reads=[a, b], writes=[c]),
    )
    tokens = derive_tokens(plan.steps, TINY, allocate(plan))
    assert [engines(mask) for mask in tokens.wait] == [[], [Engine.LOAD], [Engine.GEMM]]


def test_a_load_waits_for_the_reader_of_what_it_overwrites():
    first, second = (Buffer(name, Space.TABLE, 64) for name in ("first", "second"))
    plan = plan_of(
        step(Opcode.LOAD, writes=[first]),
        step(Opcode.GEMM, reads=[first]),
        step(Opcode.LOAD, writes=[second]),
        step(Opcode.GEMM, reads=[second]),
    )
    placement = allocate(plan)
    assert schedule(plan, placement) == list(plan.steps)
    tokens = derive_tokens(plan.steps, TINY, placement)
    assert engines(tokens.wait[2]) == [Engine.GEMM]


def test_loads_run_ahead_of_the_work_before_them_but_not_beyond_the_queue():
    buffers = [Buffer(str(i), Space.PARAMETER, 8) for i in range(20)]
    steps = []
    for buffer in buffers:
        steps += [step(Opcode.LOAD, writes=[buffer]), step(Opcode.GEMM, reads=[buffer])]
    plan = plan_of(*steps)
    order = schedule(plan, allocate(plan))
    opcodes = [s.opcode for s in order]
    assert opcodes[: TINY.queue_depth] == [Opcode.LOAD] * TINY.queue_depth
    for i, opcode in enumerate(opcodes):
        ahead = opcodes[:i].count(Opcode.LOAD) - opcodes[:i].count(Opcode.GEMM)
        assert ahead <= TINY.queue_depth, f"{ahead} loads ahead before {opcode.name} {i}"


def test_missing_and_surplus_tokens_are_seen():
    _, placement, steps = planned()
    tokens = derive_tokens(steps, TINY, placement)
    verify_tokens(steps, tokens, TINY)
    verify_order(steps, tokens, TINY, placement)
    index = next(i for i, mask in enumerate(tokens.wait) if mask)
    wait = list(tokens.wait)
    wait[index] = 0
    with pytest.raises(AssertionError, match="given"):
        verify_tokens(steps, dataclasses.replace(tokens, wait=tuple(wait)), TINY)


def test_every_token_is_needed_and_its_absence_is_seen():
    _, placement, steps = planned()
    tokens = derive_tokens(steps, TINY, placement)
    seen = 0
    for giver in Engine:
        for taker in Engine:
            takers = [i for i, s in enumerate(steps)
                      if s.engine == taker and tokens.wait[i] >> giver & 1]  # fmt: skip
            givers = [i for i, s in enumerate(steps)
                      if s.engine == giver and tokens.signal[i] >> taker & 1]  # fmt: skip
            if not takers:
                continue
            wait, signal = list(tokens.wait), list(tokens.signal)
            wait[takers[-1]] &= ~(1 << giver)
            signal[givers[-1]] &= ~(1 << taker)
            fewer = dataclasses.replace(tokens, wait=tuple(wait), signal=tuple(signal))
            verify_tokens(steps, fewer, TINY)
            with pytest.raises(AssertionError, match="does not wait"):
                verify_order(steps, fewer, TINY, placement)
            seen += 1
    assert seen >= 3


def test_too_many_waiting_tokens_are_seen():
    buffer = Buffer("word", Space.WIDE, 1)
    plan = plan_of(*[step(Opcode.LOAD, writes=[buffer])] * 5000, step(Opcode.GEMM, reads=[buffer]))
    count = len(plan.steps)
    tokens = derive_tokens(plan.steps, TINY, allocate(plan))
    verify_tokens(plan.steps, tokens, TINY)
    surplus = plan.steps[:5000] + (plan.steps[-1],) * 5000
    signal = (1 << Engine.GEMM,) * 5000 + (0,) * 5000
    wait = (0,) * 5000 + (1 << Engine.LOAD,) * 5000
    with pytest.raises(AssertionError, match="tokens wait"):
        verify_tokens(surplus, dataclasses.replace(tokens, wait=wait, signal=signal), TINY)
    assert count == 5001


def test_overlapping_addresses_are_seen():
    _, placement, steps = planned()
    verify_contents(steps, placement)
    buffers = [b for b in placement.addresses if b.space == Space.WEIGHT]
    addresses = placement.addresses | dict.fromkeys(buffers, 0)
    with pytest.raises(AssertionError, match="foreign"):
        verify_contents(steps, dataclasses.replace(placement, addresses=addresses))


def test_buffers_that_live_together_never_overlap():
    plan, placement, _ = planned(U256, (100, 200, 300))
    lives = {}
    for index, s in enumerate(plan.steps):
        for buffer in s.buffers():
            low, _ = lives.get(buffer, (index, index))
            lives[buffer] = low, index
    for a, (a_start, a_end) in lives.items():
        for b, (b_start, b_end) in lives.items():
            if a is b or a.space != b.space or a_end < b_start or b_end < a_start:
                continue
            low, high = placement.addresses[a], placement.addresses[b]
            assert low + a.size <= high or high + b.size <= low, (a, b)


def test_a_full_memory_names_the_living():
    big, small = Buffer("big", Space.NORM, 200), Buffer("small", Space.NORM, 100)
    plan = plan_of(step(Opcode.LOAD, writes=[big]), step(Opcode.LAYER_NORM, reads=[big, small]))
    with pytest.raises(OutOfSpace, match=r"no place for small \(100\) in NORM") as caught:
        allocate(plan)
    assert caught.value.living == [big]


def test_parameter_entries_are_those_of_the_isa():
    rng = np.random.default_rng(0)
    fields = (
        rng.integers(-(1 << 31), 1 << 31, 50), rng.integers(-(1 << 15), 1 << 15, 50),
        rng.integers(0, 64, 50), rng.integers(0, 16, 50),
    )  # fmt: skip
    expected = [encode_parameter(*map(int, row)) for row in zip(*fields, strict=True)]
    assert parameter_entries(*fields).tolist() == expected


@pytest.mark.parametrize(("count", "most"), [(1, 1), (7, 3), (3, 7), (8, 8)])
def test_pieces_cover_everything_in_order(count, most):
    parts = pieces(count, most)
    assert len(parts) == min(count, most)
    assert [i for low, length in parts for i in range(low, low + length)] == list(range(count))


def test_plans_and_places_print():
    plan, placement, _ = planned()
    assert "gemm 40 96 128: gemm a=x+0" in str(plan)
    assert str(Place(Buffer("b", Space.WIDE, 2), 1)) == "b+1"
    assert "ACTIVATION 0.." in str(placement)
