"""When instruction words and the data of LOAD arrive: FETCH, LOAD and the read channels they share.

State steps from cycle to cycle as in ``hw/fetch.py``, ``hw/load.py`` and ``hw/read_port.py``, but
only through cycles in which something can change: when the memory accepts a burst, the times of its
beats follow at once, since those of all before it are known.
"""

import heapq
from collections import deque
from dataclasses import dataclass

from twillcore.config import Config
from twillcore.dram import Dram
from twillcore.isa import WORD_BITS, WORD_BYTES
from twillcore.sim.timing_load import LoadTiming

GROUP_WORDS = 4  # instruction words that FETCH asks for at once
BUFFER_WORDS = 16  # instruction words that FETCH has room for


@dataclass(frozen=True)
class FetchBurst:
    """A burst of FETCH: beats taken in cycle ``first`` and every ``step`` cycles from then on."""

    first: int
    beats: int
    step: int

    @property
    def last(self) -> int:
        """Cycle of the last beat."""
        return self.first + (self.beats - 1) * self.step

    def taken_until(self, cycle: int) -> int:
        """Return how many of the beats have been taken by the end of ``cycle``."""
        return min(max((cycle - self.first) // self.step + 1, 0), self.beats)


class ReadPath:
    """FETCH, the address stage of LOAD, the port that merges their requests, and the memory.

    :meth:`step` is called with the ascending cycles that :attr:`next_cycle` gives. Whoever changes
    something that counts from some cycle on wakes it for that cycle.

    Attributes
    ----------
    words : the cycle from which each instruction word stands before DISPATCH, as far as known
    fetched : bursts of FETCH
    """

    def __init__(self, config: Config, dram: Dram, load: LoadTiming) -> None:
        self._dram, self._load = dram, load
        self.words: list[int] = []
        self.fetched: list[FetchBurst] = []
        self._wakes: list[int] = [0]
        # FETCH
        group_beats = GROUP_WORDS * WORD_BYTES // config.axi_bytes
        self._burst_beats = min(group_beats, 1 << config.axi_burst_beats.bit_length() - 1)
        self._group_bursts = group_beats // self._burst_beats
        self._entry_beats = max(1, WORD_BITS // config.axi_data_bits)
        self._entry_words = max(1, config.axi_data_bits // WORD_BITS)
        self._in_group = 0  # bursts of the group that have been requested
        self._room = BUFFER_WORDS
        self._leaving: deque[int] = deque()  # words whose leaving is not yet in _room
        self._beats = 0  # of an entry of the buffer that is not complete
        self._fetch_waits = False  # an address of FETCH stands before the port
        # The port's register ("fetch", or a burst of LOAD), and the memory
        self._register: str | tuple[int, bool] | None = None
        self._ends: deque[int] = deque()  # last beats of the bursts in the memory
        self._last_beat = -dram.beat_cycles

    def wake(self, cycle: int) -> None:
        """Let :meth:`step` run in ``cycle``."""
        heapq.heappush(self._wakes, cycle)

    @property
    def next_cycle(self) -> int | None:
        """The next cycle to step through; None: nothing will ever change."""
        return self._wakes[0] if self._wakes else None

    def known(self) -> tuple:
        """Return what changes whenever a step found out something that others wait for."""
        return len(self.words), self._load.ready, len(self._load.retired)

    def take_word(self, cycle: int) -> None:
        """Let DISPATCH take the next word in ``cycle``."""
        self._leaving.append(cycle)
        self.wake(cycle + 1)

    def step(self, cycle: int) -> None:
        """Do what happens at the end of ``cycle``."""
        while self._wakes and self._wakes[0] == cycle:
            heapq.heappop(self._wakes)
        while self._ends and self._ends[0] < cycle:
            self._ends.popleft()
        while self._leaving and self._leaving[0] < cycle:
            self._leaving.popleft()
            self._room += 1

        accepts = len(self._ends) < self._dram.outstanding
        if self._register is not None and accepts:
            self._read(cycle, self._register)
        free = self._register is None or accepts
        fetch_taken = free and self._fetch_waits
        load_taken = free and not self._fetch_waits and self._load.offered is not None
        moved = fetch_taken or load_taken or (free and self._register is not None)
        if free:
            self._register = "fetch" if fetch_taken else self._load.offered

        moved |= self._load.step(cycle, load_taken)
        if fetch_taken:
            self._fetch_waits = False
        if not self._fetch_waits and (self._in_group or self._room >= GROUP_WORDS):
            if not self._in_group:
                self._room -= GROUP_WORDS
            self._in_group = (self._in_group + 1) % self._group_bursts
            self._fetch_waits = moved = True

        if moved:
            self.wake(cycle + 1)
        elif self._register is not None:
            self.wake(self._ends[0] + 1)

    def _read(self, cycle: int, burst: str | tuple[int, bool]) -> None:
        """Let the memory accept a burst in ``cycle``."""
        step = self._dram.beat_cycles
        offer = max(cycle + self._dram.latency, self._last_beat + step)
        if burst == "fetch":
            fetched = FetchBurst(offer, self._burst_beats, step)
            self.fetched.append(fetched)
            for beat in range(self._burst_beats):
                self._beats += 1
                if self._beats == self._entry_beats:
                    self._beats = 0
                    self.words += [offer + beat * step + 1] * self._entry_words
            self._last_beat = fetched.last
        else:
            beats, last = burst
            self._last_beat = self._load.receive(offer, beats, step, last)
        self._ends.append(self._last_beat)
