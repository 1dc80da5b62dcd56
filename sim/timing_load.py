"""When LOAD asks for bursts, takes their beats and retires: ``hw/load.py`` and ``hw/bursts.py``.

The address stage depends on when the read port takes bursts, so it is stepped by
:class:`twillcore.sim.read_path.ReadPath`; the data stage is a closed formula of the cycles in which
the memory offers beats.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from twillcore.config import FRAME_CYCLES, Config
from twillcore.isa import Memory, WeightFormat
from twillcore.sim.transfer import burst_lengths, run_bytes, unit_bytes
from twillcore.timing import ActivationSlot

IN_FLIGHT = 8  # instructions that may be accepted and not retired
CHECK_CYCLES = 4  # from acceptance to the request
DIVISION_CYCLES = 16  # more for BITMAP
ROW_CYCLES = 3  # from the last beat of rows, which wait for no slot, to retirement


def slot_from(cycle: int, slot: int) -> int:
    """Return the first cycle from ``cycle`` on whose phase is ``slot``."""
    return cycle + (slot - cycle) % FRAME_CYCLES


def row_beats(memory: Memory, config: Config) -> int:
    """Return the beats that LOAD gathers before it writes: a word, a weight row, some entries."""
    return max(1, unit_bytes(memory, config) // config.axi_bytes)


@dataclass
class _Transfer:
    """What the data stage has to know of an instruction."""

    is_word: bool  # activation and wide words, which are written in slots
    row_beats: int


class LoadTiming:
    """LOAD's state as far as time depends on it.

    Attributes
    ----------
    retired : cycle of retirement of each instruction whose last beat is known
    ready : first cycle in which the address stage can take another instruction; None while that
        depends on the port
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.retired: list[int] = []
        self.ready: int | None = 0
        self.beats: list[int] = []  # of each accepted instruction
        # Address stage
        self._request: tuple[int, Iterator] | None = None  # (first cycle, bursts)
        self._bursts: Iterator | None = None
        self._next: tuple[int, bool] | None = None  # the burst that Bursts computes
        self.offered: tuple[int, bool] | None = None  # the burst on the port
        # Data stage
        self._transfers: deque[_Transfer] = deque()
        self._beat = 0  # beats of the row that have come
        self._free = 0  # cycle from which the next beat can be taken
        self._written = 0  # last write of a word

    @property
    def earliest(self) -> int | None:
        """First cycle in which the next instruction can be accepted; None if not known yet."""
        waiting = len(self.beats) - IN_FLIGHT
        if self.ready is None or waiting >= len(self.retired):
            return None
        return max(self.ready, self.retired[waiting] + 1) if waiting >= 0 else self.ready

    def accept(self, i: Mapping[str, int], start: int) -> int:
        """Take an instruction in cycle ``start``; returns the cycle to step the port in."""
        memory = Memory(i["memory"])
        self._transfers.append(_Transfer(memory <= Memory.WIDE, row_beats(memory, self._config)))
        self.beats.append(run_bytes(i, self._config) // self._config.axi_bytes * i["runs"])
        request = start + CHECK_CYCLES
        if i["format"] == WeightFormat.BITMAP:
            request += DIVISION_CYCLES
        self._request, self.ready = (request, burst_lengths(i, self._config)), None
        return request

    # address stage

    def step(self, cycle: int, taken: bool) -> bool:
        """Move bursts on; ``taken``: the port takes the offered one in this cycle.

        Returns whether anything moved.
        """
        moved = taken
        advance = self.offered is None or taken
        last = self._next is not None and self._next[1]
        takes = self._next is None or (advance and last)
        if advance:
            moved |= self.offered is not self._next
            self.offered = self._next
            if self._next is not None:
                self._next = None if last else next(self._bursts)
        if takes and self._request is not None and self._request[0] <= cycle:
            self._bursts, self._request = self._request[1], None
            self._next = next(self._bursts)
            self.ready = cycle + 1
            moved = True
        return moved

    # data stage

    def receive(self, offer: int, beats: int, step: int, last: bool) -> int:
        """Take the beats of a burst, offered from cycle ``offer`` on, at most every ``step``.

        ``last`` says that the instruction ends with it. Returns the cycle of the last beat.
        """
        transfer = self._transfers[0]
        row = transfer.row_beats
        if not transfer.is_word:
            end = max(offer, self._free) + (beats - 1) * step
        elif (row - 1) * step >= FRAME_CYCLES - 1:  # a slot comes before the next word is complete
            end = max(offer, self._free) + (beats - 1) * step
            complete, partial = divmod(self._beat + beats, row)
            if complete:
                self._complete_word(end - partial * step)
            self._beat = partial
        else:
            while beats:
                count = min(row - self._beat, beats)
                end = max(offer, self._free) + (count - 1) * step
                offer, beats = end + step, beats - count
                self._beat += count
                if self._beat == row:
                    self._beat = 0
                    self._complete_word(end)
        if last:
            self._transfers.popleft()
            done = self._written + 1 if transfer.is_word else end + ROW_CYCLES
            self.retired.append(max(done, self.retired[-1] + 1) if self.retired else done)
        return end

    def _complete_word(self, cycle: int) -> None:
        """Bring the word whose last beat is taken in ``cycle`` to its slot."""
        self._free = max(cycle + 1, self._written)  # it moves to the second register
        self._written = slot_from(self._free + 1, ActivationSlot.LOAD_WRITE)
