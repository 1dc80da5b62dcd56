"""When STORE reads words, sends beats and retires: ``hw/store.py`` as a formula per word and burst.

The write channels are STORE's alone and the memory always accepts addresses, so that everything
follows from the cycles in which instructions are accepted.
"""

from collections import deque
from collections.abc import Mapping

from twillcore.config import Config
from twillcore.dram import Dram
from twillcore.isa import Memory
from twillcore.sim.timing_load import slot_from
from twillcore.sim.transfer import burst_lengths, unit_bytes
from twillcore.timing import SHARED_READ_CYCLES, ActivationSlot

IN_FLIGHT = 8  # instructions that may be accepted and not retired
REQUEST_CYCLES = 3  # from acceptance to the request, and to the first read
OUTSTANDING_BURSTS = 16  # announced, and without a response
SLICE_BEATS = 2  # in the register slice before the port
WAITING_WORDS = 2  # read, and not yet taken by the data part
READ_CYCLES = SHARED_READ_CYCLES + 1  # from the slot in which a word is read to where it waits


class StoreTiming:
    """STORE's state as far as time depends on it.

    Attributes
    ----------
    earliest : first cycle in which the next instruction can be accepted
    beats : of each accepted instruction
    """

    def __init__(self, config: Config, dram: Dram) -> None:
        self._config, self._dram = config, dram
        self._ready = 0  # the address part can accept
        self._retired: deque[int] = deque(maxlen=IN_FLIGHT)
        self.beats: list[int] = []
        # Address part: the last burst left Bursts' first register, or was announced, in ...
        self._moved = self._announced = -1
        self._responses: deque[int] = deque(maxlen=OUTSTANDING_BURSTS)
        # Reader and data part
        self._read = -1
        self._words_taken: deque[int] = deque(maxlen=WAITING_WORDS)
        self._handed_on = -1  # the last beat, to the register slice
        self._sent: deque[int] = deque([-dram.beat_cycles] * SLICE_BEATS, SLICE_BEATS)

    @property
    def earliest(self) -> int:
        """First cycle in which the next instruction can be accepted."""
        if len(self._retired) < IN_FLIGHT:
            return self._ready
        return max(self._ready, self._retired[0] + 1)

    def accept(self, i: Mapping[str, int], start: int) -> int:
        """Take an instruction in cycle ``start``; returns the cycle in which it retires."""
        config = self._config
        word_beats = unit_bytes(Memory(i["memory"]), config) // config.axi_bytes
        self.beats.append(i["count"] * word_beats * i["runs"])

        request = max(start + REQUEST_CYCLES, self._moved)
        self._ready = request + 1
        arrives = request + 1  # the burst stands in the first register of Bursts
        reads_from = start + REQUEST_CYCLES
        left = 0  # beats of the current word
        for beats, _ in burst_lengths(i, config):
            self._moved = max(arrives, self._announced)
            arrives = self._moved + 1
            announced = max(self._moved + 1, self._announced + 1)
            if len(self._responses) == OUTSTANDING_BURSTS:
                announced = max(announced, self._responses[0] + 1)
            self._announced = announced
            while beats:
                if not left:
                    self._next_word(reads_from)
                    left = word_beats
                self._handed_on = 1 + max(
                    self._handed_on, self._words_taken[-1], announced, self._sent[0]
                )
                self._sent.append(max(self._sent[-1] + self._dram.beat_cycles, self._handed_on + 1))
                left, beats = left - 1, beats - 1
            self._responses.append(self._sent[-1] + self._dram.latency)
        self._retired.append(self._responses[-1])
        return self._responses[-1]

    def _next_word(self, reads_from: int) -> None:
        """Read the next word, at ``reads_from`` or later, and bring it to the data part."""
        read = max(reads_from, self._read + 1)
        if len(self._words_taken) == WAITING_WORDS:
            read = max(read, self._words_taken[0] + 1)
        self._read = slot_from(read, ActivationSlot.STORE_READ)
        self._words_taken.append(max(self._read + READ_CYCLES, self._handed_on))
