"""Which step waits for which, and the tokens that say so.

Found from addresses alone: :class:`Tracker` knows, for every word of every memory, which engine
read and wrote it last. A step depends on the last writer of what it reads (or writes) and on the
last readers of what it writes. Engines retire in order, so one index per engine says it all.

One engine's steps need no tokens among themselves, but for the cores: they accept an instruction
while the one before drains, so a GEMM that reads what a drain writes takes a token from GEMM itself
(and a LUT_GEMM from LUT). They read in order and drain in order, so nothing else can go wrong.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from twillcore.compiler.allocate import Placement
from twillcore.compiler.steps import Region, Space, Step, depth
from twillcore.config import Config
from twillcore.isa import TOKEN_COUNTER_BITS, Engine

NEVER = -1
CORES = (Engine.GEMM, Engine.LUT)


class Tracker:
    """Last readers and writers of every word, by engine, while steps pass in program order."""

    def __init__(self, config: Config, placement: Placement) -> None:
        self._addresses = placement.addresses
        self._dram_base = placement.constant_bytes
        self._dram_unit = config.axi_bytes
        sizes = {space: depth(space, config) for space in Space if space != Space.DRAM}
        sizes[Space.DRAM] = -(-(placement.memory_bytes - self._dram_base) // self._dram_unit)
        self._read = {s: np.full((len(Engine), n), NEVER, np.int32) for s, n in sizes.items()}
        self._written = {s: np.full((len(Engine), n), NEVER, np.int32) for s, n in sizes.items()}

    def _units(self, region: Region) -> np.ndarray | slice:
        base = self._addresses[region.buffer]
        if region.buffer.space == Space.DRAM:
            return region.units(base - self._dram_base, self._dram_unit)
        if region.runs == 1:
            start = base + region.offset
            return slice(start, start + region.length)
        return region.units(base)

    def needs(self, step: Step) -> np.ndarray:
        """Return for every engine the last index that ``step`` must wait for, or ``NEVER``."""
        needs = np.full(len(Engine), NEVER, np.int32)
        own = NEVER
        for region in step.reads:
            last = self._written[region.buffer.space][:, self._units(region)].max(axis=1)
            own = max(own, last[step.engine])
            np.maximum(needs, last, out=needs)
        for region in step.writes:
            units = self._units(region)
            for table in (self._written, self._read):
                np.maximum(needs, table[region.buffer.space][:, units].max(axis=1), out=needs)
        needs[step.engine] = own if step.engine in CORES else NEVER
        return needs

    def record(self, index: int, step: Step) -> None:
        """Note what ``step`` touches."""
        for regions, table in ((step.reads, self._read), (step.writes, self._written)):
            for region in regions:
                table[region.buffer.space][step.engine, self._units(region)] = index


@dataclass(frozen=True)
class Tokens:
    """Masks of the instructions: bit e of ``wait[i]`` and ``signal[i]`` is engine e."""

    wait: tuple[int, ...]
    signal: tuple[int, ...]


def derive_tokens(steps: Sequence[Step], config: Config, placement: Placement) -> Tokens:
    """Return the tokens that make ``steps``, in this order, safe to run side by side.

    ``known[e]`` is, for every engine, the last of its instructions that has certainly ended when
    engine e starts its next one. A token adds what its giver knew; no token is given for what is
    known already.
    """
    tracker = Tracker(config, placement)
    wait, signal = [0] * len(steps), [0] * len(steps)
    known = np.full((len(Engine), len(Engine)), NEVER, np.int32)
    known_at_start = np.full((len(steps), len(Engine)), NEVER, np.int32)
    for index, step in enumerate(steps):
        needs, mine = tracker.needs(step), known[step.engine]
        for giver in np.argsort(-needs):  # the latest first: it may know the others
            if needs[giver] > mine[giver]:
                wait[index] |= 1 << int(giver)
                signal[needs[giver]] |= 1 << step.engine
                np.maximum(mine, known_at_start[needs[giver]], out=mine)
                mine[giver] = needs[giver]
        known_at_start[index] = mine
        tracker.record(index, step)
    return Tokens(tuple(wait), tuple(signal))


def verify_order(
    steps: Sequence[Step], tokens: Tokens, config: Config, placement: Placement
) -> None:
    """Replay the tokens, first in first out, and check that they cover every dependence.

    Raises
    ------
    AssertionError
        If a step can start before one that it depends on has ended.
    """
    tracker = Tracker(config, placement)
    known = np.full((len(Engine), len(Engine)), NEVER, np.int32)
    given: dict[tuple[int, int], deque[np.ndarray]] = {
        (giver, taker): deque() for giver in Engine for taker in Engine
    }
    for index, step in enumerate(steps):
        mine = known[step.engine]
        for giver in Engine:
            if tokens.wait[index] >> giver & 1:
                np.maximum(mine, given[giver, step.engine].popleft(), out=mine)
        early = tracker.needs(step) > mine
        assert not early.any(), f"step {index} ({step}) does not wait for {np.flatnonzero(early)}"
        after = mine.copy()
        after[step.engine] = index
        for taker in Engine:
            if tokens.signal[index] >> taker & 1:
                given[step.engine, taker].append(after)
        tracker.record(index, step)


def verify_tokens(steps: Sequence[Step], tokens: Tokens, config: Config) -> None:
    """Replay the token protocol in program order.

    Raises
    ------
    AssertionError
        If a wait has no token, a token has no wait, or a counter could overflow: between the
        instruction that takes a token and the last one that DISPATCH may hand out before it has
        been taken, no more tokens may be given than a counter holds.
    """
    engines = [step.engine for step in steps]
    for taker in Engine:
        for giver in Engine:
            given = [i for i, e in enumerate(engines)
                     if e == giver and tokens.signal[i] >> taker & 1]  # fmt: skip
            taken = [i for i, e in enumerate(engines)
                     if e == taker and tokens.wait[i] >> giver & 1]  # fmt: skip
            name = f"{giver.name} -> {taker.name}"
            assert len(given) == len(taken), f"{name}: {len(given)} given, {len(taken)} taken"
            for give, take in zip(given, taken, strict=True):
                assert give < take, f"{name}: instruction {take} waits for {give}"
            if len(given) < 1 << TOKEN_COUNTER_BITS:
                continue
            mine = [i for i, e in enumerate(engines) if e == taker]
            for number, take in enumerate(taken):
                behind = mine.index(take) + config.queue_depth + 2
                horizon = mine[behind] if behind < len(mine) else len(steps)
                waiting = np.searchsorted(given, horizon) - number
                assert waiting < 1 << TOKEN_COUNTER_BITS, f"{name}: {waiting} tokens wait"


def verify_contents(steps: Sequence[Step], placement: Placement) -> None:
    """Replay who owns which on-chip word: what is read must have been written for that buffer.

    Operand rows are exempt: products read keys and values up to whole tiles.

    Raises
    ------
    AssertionError
        If a step reads a word that belongs to another buffer, or to none.
    """
    owners: dict[Space, np.ndarray] = {}
    numbers = {buffer: number for number, buffer in enumerate(placement.addresses)}
    sizes: dict[Space, int] = {}
    for buffer, address in placement.addresses.items():
        sizes[buffer.space] = max(sizes.get(buffer.space, 0), address + buffer.size)
    for space, size in sizes.items():
        if space not in (Space.DRAM, Space.OPERAND):
            owners[space] = np.full(size, -1, np.int32)
    for index, step in enumerate(steps):
        for region in step.reads:
            if region.buffer.space in owners:
                units = region.units(placement.addresses[region.buffer])
                wrong = owners[region.buffer.space][units] != numbers[region.buffer]
                assert not wrong.any(), f"step {index} ({step}) reads foreign words of {region}"
        for region in step.writes:
            if region.buffer.space in owners:
                units = region.units(placement.addresses[region.buffer])
                owners[region.buffer.space][units] = numbers[region.buffer]
