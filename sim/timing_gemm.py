"""When the GEMM engine does what: a closed formula per tile.

With t the cycle of a tile's last beat, S the start of its drain, P its number of beats::

    t_n = max(t_(n-1) + P, S_(n-1) + columns - BEAT_TO_START)
    S_n = t_n + BEAT_TO_START, rounded up to the phase START_PHASE
    last word of tile n is written in S_n + columns + DRAIN_LATENCY

(the second operand of the maximum is the wait of the last beat for the shadow). Before the first
tile of an instruction, t is the cycle of its acceptance. An instruction that drains nothing ends
BEAT_TO_SUM cycles after its last beat. Instructions retire at their end, but in order and one per
cycle. The next one can be accepted in the cycle of the last beat, unless IN_FLIGHT instructions
have not retired. Cycle 0 has phase 0.

The constants repeat those of ``twillcore.hw.gemm.GemmEngine``, since simulators do without an HDL;
``tests/hw/test_gemm.py`` compares them, and this module with the RTL, cycle by cycle.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from twillcore.config import FRAME_CYCLES, Config

BEAT_TO_SUM = 9  # last beat to sums in the array
BEAT_TO_START = 9  # last beat to the earliest start of the drain
START_PHASE = 3  # of the drain
DRAIN_LATENCY = 21  # start of the drain to the write of a word, less the columns up to its last
IN_FLIGHT = 16  # instructions that may be accepted and not retired


@dataclass(frozen=True)
class GemmTimes:
    """What becomes of one instruction, in cycles."""

    last_beat: int  # also the first cycle in which the next one may be accepted, see earliest
    retire: int
    busy: int  # cycles with a beat
    blocked: int  # cycles in which a beat waits for the drain


class GemmTiming:
    """The engine's state between instructions, as far as time depends on it."""

    def __init__(self, config: Config) -> None:
        self._columns = config.dsp_columns
        self._last_beat = 0
        self._drain_start = -(1 << 30)
        self._retired: deque[int] = deque(maxlen=IN_FLIGHT)

    @property
    def earliest(self) -> int:
        """First cycle in which the next instruction can be accepted."""
        if len(self._retired) < IN_FLIGHT:
            return self._last_beat
        return max(self._last_beat, self._retired[0] + 1)

    def accept(self, operands: Mapping[str, int], start: int) -> GemmTimes:
        """Account for an instruction accepted in cycle ``start``, not before :attr:`earliest`."""
        if start < self.earliest:
            raise ValueError(f"accepted in cycle {start}, before {self.earliest}")
        tiles = operands["row_tiles"] * operands["column_tiles"]
        beats = operands["blocks"] * operands["beats"]
        last = start
        if operands["hold"]:
            last += beats
            end = last + BEAT_TO_SUM
        else:
            # From that length on, a tile that starts after its predecessor never waits for it.
            independent = beats >= self._columns + FRAME_CYCLES - 1
            for _ in range(min(tiles, 1) if independent else tiles):
                last = max(last + beats, self._drain_start + self._columns - BEAT_TO_START)
                self._drain_start = _next_start(last + BEAT_TO_START)
            if independent:
                last += (tiles - 1) * beats
                self._drain_start = _next_start(last + BEAT_TO_START)
            end = self._drain_start + self._columns + DRAIN_LATENCY
        retire = max(end, self._retired[-1] + 1) if self._retired else end
        self._last_beat = last
        self._retired.append(retire)
        return GemmTimes(last, retire, tiles * beats, last - start - tiles * beats)


def _next_start(cycle: int) -> int:
    """Round up to the phase in which a drain starts."""
    return cycle + (START_PHASE - cycle) % FRAME_CYCLES
