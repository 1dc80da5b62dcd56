"""Addresses from lifetimes: where every buffer of a plan lies.

A buffer lives from the first step that touches it to the last. It goes where the words have been
free longest, so that a LOAD can run far ahead of its user and drains need not wait for readers.
Buffers that live where a space is tight are packed by first fit instead.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from twillcore.compiler.steps import Buffer, Plan, Space, depth
from twillcore.errors import TwillcoreError
from twillcore.isa import WORD_BYTES

DRAM_ALIGNMENT = 128  # bytes: FETCH reads bursts of it, and it is a multiple of any AXI width
PREFETCH_BYTES = 1024  # that FETCH may read behind the program


class OutOfSpace(TwillcoreError):
    """No place for ``buffer``, which ``step`` (an index) needs, among the ``living``."""

    def __init__(self, buffer: Buffer, step: int, living: list[Buffer]) -> None:
        super().__init__(f"no place for {buffer.name} ({buffer.size}) in {buffer.space.name}")
        self.buffer, self.step, self.living = buffer, step, living


@dataclass(frozen=True, eq=False)
class Placement:
    """The address of every buffer; DRAM in bytes, other spaces in their units.

    ``constant_bytes`` is the end of program and constants, ``memory_bytes`` that of all DRAM.
    ``tight`` are the layers, by number, whose activations had to be packed.
    """

    addresses: dict[Buffer, int]
    constant_bytes: int
    memory_bytes: int
    tight: frozenset[int] = frozenset()

    def __str__(self) -> str:
        lines = [
            f"{buffer.space.name} {address}..{address + buffer.size - 1} {buffer.name}"
            for buffer, address in self.addresses.items()
        ]
        return "\n".join(lines)


@dataclass
class _Life:
    buffer: Buffer
    start: int
    end: int


def allocate(plan: Plan) -> Placement:
    """Give every buffer its place.

    Raises
    ------
    OutOfSpace
        If the buffers that live at the same time do not fit.
    """
    lives: dict[Buffer, _Life] = {}
    for index, step in enumerate(plan.steps):
        for buffer in step.buffers():
            life = lives.setdefault(buffer, _Life(buffer, index, index))
            life.end = index
    addresses: dict[Buffer, int] = {}
    tight: set[int] = set()
    for space in Space:
        mine = [life for life in lives.values() if life.buffer.space == space]
        if not mine or space == Space.DRAM:
            continue
        found, packed = _fit_mostly_rotating(mine, depth(space, plan.config))
        addresses |= found
        if space == Space.ACTIVATION:
            tight = {plan.steps[life.start].layer for life in mine if life.buffer in packed}
    return _place_dram(plan, addresses, lives, frozenset(tight))


def _fit_mostly_rotating(
    lives: list[_Life], size: int
) -> tuple[dict[Buffer, int], Collection[Buffer]]:
    """Place buffers where words were free longest, and packed those that live where that fails.

    Returns those, too.
    """
    packed: set[Buffer] = set()
    while True:
        try:
            return _fit(lives, size, packed), packed
        except OutOfSpace as problem:
            living = {problem.buffer, *problem.living}
            if living <= packed:
                start = min(life.start for life in lives if life.buffer in living)
                living = {life.buffer for life in lives if start <= life.end <= problem.step}
            if living <= packed:
                packed = {life.buffer for life in lives}
                return _fit(lives, size, packed), packed
            packed |= living


def _fit(lives: Iterable[_Life], size: int, packed: Collection[Buffer]) -> dict[Buffer, int]:
    """Place buffers in the order of their starts: where words were free longest; packed, lowest."""
    addresses: dict[Buffer, int] = {}
    living: list[_Life] = []
    until = np.full(size, -1, np.int64)  # the last step that touches what lies or lay there
    for life in lives:
        living = [other for other in living if other.end >= life.start]
        length = life.buffer.size
        edges = np.flatnonzero(np.diff(until, prepend=-2)).tolist()
        starts = {0, *edges, *(edge - length for edge in edges), size - length}
        best = None
        for start in sorted(start for start in starts if 0 <= start <= size - length):
            end = int(until[start : start + length].max(initial=-1))
            if end < life.start and (best is None or end < best[0]):
                best = end, start
                if life.buffer in packed:
                    break
        if best is None:
            raise OutOfSpace(life.buffer, life.start, [other.buffer for other in living])
        addresses[life.buffer] = best[1]
        until[best[1] : best[1] + length] = life.end
        living.append(life)
    return addresses


def _align(address: int) -> int:
    return -(-address // DRAM_ALIGNMENT) * DRAM_ALIGNMENT


def _place_dram(
    plan: Plan, addresses: dict[Buffer, int], lives: dict, tight: frozenset[int]
) -> Placement:
    """Program, constants, then what the program writes or the host provides."""
    end = _align((len(plan.steps) + 1) * WORD_BYTES)
    buffers = [buffer for buffer in lives if buffer.space == Space.DRAM]
    slots = [buffer for _, buffer in (*plan.inputs, *plan.outputs)]
    constants = [buffer for buffer in buffers if buffer.data is not None]
    others = dict.fromkeys([*slots, *(b for b in buffers if b.data is None)])
    for buffer in constants:
        addresses[buffer] = end
        end = _align(end + buffer.size)
    constant_bytes = end
    for buffer in others:
        addresses[buffer] = end
        end = _align(end + buffer.size)
    return Placement(addresses, constant_bytes, _align(end + PREFETCH_BYTES), tight)
