"""Addresses from lifetimes: where every buffer of a plan lies.

A buffer lives from the first step that touches it to the last; one of a map that comes band by band
had better live a band longer. It goes where the words have been free longest, so that a LOAD can
run far ahead of its user and drains need not wait for readers. Buffers that live where a space is
tight are packed by first fit instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from twillcore.compiler.steps import Buffer, Plan, Space, depth
from twillcore.errors import TwillcoreError
from twillcore.isa import WORD_BYTES, Opcode

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
    ``tight`` are the layers, by number, whose maps come and go with little room.
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
    """When a buffer is in use, from step to step, and when it had better be.

    ``early`` is before ``start`` if it is loaded while its predecessor of the same tensor is used,
    ``late`` behind ``end`` if it is stored while its successor is written.
    """

    buffer: Buffer
    start: int
    end: int
    early: int = 0
    late: int = 0


def allocate(plan: Plan) -> Placement:
    """Give every buffer its place.

    Raises
    ------
    OutOfSpace
        If the buffers that live at the same time do not fit.
    """
    lives: dict[Buffer, _Life] = {}
    before: dict[tuple[str | None, int], _Life] = {}
    for index, step in enumerate(plan.steps):
        for buffer in step.buffers():
            if buffer not in lives:
                lives[buffer] = life = _Life(buffer, index, index, index)
                last = before.get((buffer.stream, step.layer))
                if buffer.stream is not None and last is not None:
                    last.late = index
                    life.early = last.start if step.opcode == Opcode.LOAD else index
                before[buffer.stream, step.layer] = life
            lives[buffer].end = index
    addresses: dict[Buffer, int] = {}
    tight: set[int] = set()
    for space in Space:
        mine = [life for life in lives.values() if life.buffer.space == space]
        if not mine or space == Space.DRAM:
            continue
        found, places = _fit(mine, depth(space, plan.config))
        addresses |= found
        tight |= {
            plan.steps[life.start].layer
            for life in mine
            if life.buffer.stream and places.get(life.buffer, _Room.AMPLE) != _Room.AMPLE
        }
    return _place_dram(plan, addresses, lives, frozenset(tight))


class _Room(IntEnum):
    """How a buffer is placed.

    AMPLE: where the words were free longest, from ``early`` to ``late``. EXACT: the same, from
    ``start`` to ``end``. PACKED: at the lowest address.
    """

    AMPLE = 0
    EXACT = 1
    PACKED = 2


def _fit(lives: list[_Life], size: int) -> tuple[dict[Buffer, int], dict[Buffer, _Room]]:
    """Place buffers with as much room as possible; returns those with little, too."""
    rooms: dict[Buffer, _Room] = {}
    while True:
        try:
            return _place(lives, size, rooms), rooms
        except OutOfSpace as problem:
            about = [problem.buffer, *problem.living]
            room = min(rooms.get(buffer, _Room.AMPLE) for buffer in about)
            if room == _Room.PACKED:  # what was there before left the room in pieces
                first = min(life.start for life in lives if life.buffer in about)
                about = [life.buffer for life in lives if first <= life.end <= problem.step]
                room = min((rooms.get(b, _Room.AMPLE) for b in about), default=_Room.PACKED)
            if room == _Room.PACKED:
                rooms = {life.buffer: _Room.PACKED for life in lives}
                return _place(lives, size, rooms), rooms
            for buffer in about:
                rooms[buffer] = max(rooms.get(buffer, _Room.AMPLE), _Room(room + 1))


def _place(lives: list[_Life], size: int, rooms: Mapping[Buffer, _Room]) -> dict[Buffer, int]:
    """Place buffers in the order of their starts."""
    addresses: dict[Buffer, int] = {}
    living: list[tuple[int, Buffer]] = []
    until = np.full(size, -1, np.int64)  # the last step that touches what lies or lay there

    def span(life: _Life) -> tuple[int, int]:
        ample = rooms.get(life.buffer, _Room.AMPLE) == _Room.AMPLE
        return (life.early, max(life.late, life.end)) if ample else (life.start, life.end)

    for start, last, life in sorted(((*span(life), life) for life in lives), key=lambda s: s[0]):
        living = [other for other in living if other[0] >= start]
        length = life.buffer.size
        edges = np.flatnonzero(np.diff(until, prepend=-2)).tolist()
        ends = {0, *edges, *(edge - length for edge in edges), size - length}
        best = None
        for address in sorted(a for a in ends if 0 <= a <= size - length):
            end = int(until[address : address + length].max(initial=-1))
            if end < start and (best is None or end < best[0]):
                best = end, address
                if rooms.get(life.buffer) == _Room.PACKED:
                    break
        if best is None:
            raise OutOfSpace(life.buffer, life.start, [buffer for _, buffer in living])
        addresses[life.buffer] = best[1]
        until[best[1] : best[1] + length] = last
        living.append((last, life.buffer))
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
