"""When a GEMM core does what: a closed formula per tile.

A step of the loop nest is a cycle; its beat comes W = ``window_cycles`` later. A block has as many
steps as beats, but two at least with a window of stride 2, which reads it twice, and a tile as many
blocks as taps * ``blocks``. With t the cycle of a tile's last step, S the start of its drain, P its
number of steps, C the columns that are drained (words * block)::

    t_n = max(t_(n-1) + P, S_(n-1) + C_(n-1) - BEAT_TO_START - W)
    S_n = t_n + W + BEAT_TO_START, rounded up to the phase START_PHASE
    last word of tile n is written in S_n + C_n + DRAIN_LATENCY

(the second operand of the maximum is the wait of the last beat for the shadow; one more for tiles
whose blocks are read twice and have two beats, since the first of the last two steps waits). Before
the first tile of an instruction, t is the cycle of its acceptance. An instruction that drains
nothing ends W + BEAT_TO_SUM cycles after its last step. WINDOW counts as such an instruction of
lanes + DEFINE_CYCLES steps, all of them blocked. Instructions retire at their end, but in order and
one per cycle. The next one can be accepted in the cycle of the last step, unless IN_FLIGHT
instructions have not retired. Cycle 0 has phase 0.

The constants repeat those of ``twillcore.hw.gemm.GemmEngine``, since simulators do without an HDL;
``tests/hw/test_gemm.py`` compares them, and this module with the RTL, cycle by cycle.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from twillcore.config import FRAME_CYCLES, Config
from twillcore.isa import Instruction, Opcode
from twillcore.timing import window_cycles

BEAT_TO_SUM = 9  # last beat to sums in the array
BEAT_TO_START = 9  # last beat to the earliest start of the drain
START_PHASE = 3  # of the drain
DRAIN_LATENCY = 21  # start of the drain to the write of a word, less the columns up to its last
IN_FLIGHT = 16  # instructions that may be accepted and not retired
DEFINE_CYCLES = 1  # of WINDOW, and one per lane


@dataclass(frozen=True)
class GemmTimes:
    """What becomes of one instruction, in cycles."""

    last_step: int  # also the first cycle in which the next one may be accepted, see earliest
    retire: int
    busy: int  # cycles with a step
    blocked: int  # cycles in which a step waits for the drain, or a window is set


@dataclass(frozen=True)
class TileShape:
    """What a core does in a tile."""

    blocks: int  # of all taps
    block_steps: int
    reads: int  # of activations, in the first steps of a block
    pair: bool  # the last two steps wait together for the drain, else the last one waits alone
    ahead: bool = False  # beats come a step later: the last one with the next tile's first read

    @property
    def steps(self) -> int:
        """Steps of the whole tile."""
        return self.blocks * self.block_steps


def tile_shape(
    g: Mapping[str, int], window: Mapping[str, int], refusable: bool = False
) -> TileShape:
    """Return the shape of the tiles of a GEMM with operands ``g``.

    ``refusable``: the core's reads may have to wait, so those of a block cannot follow each other
    at once, and a block that is read twice is so ahead of its beats.
    """
    if not g["windowed"]:
        return TileShape(g["blocks"], g["beats"], 1, False)
    blocks = window["taps"] * g["blocks"]
    if window["stride"] != 2:
        return TileShape(blocks, g["beats"], 1, False)
    if refusable:
        return TileShape(blocks, max(g["beats"], 2), 2, False, g["beats"] > 1)
    return TileShape(blocks, max(g["beats"], 2), 2, g["beats"] == 2)


class GemmTiming:
    """The engine's state between instructions, as far as time depends on it."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._window: Mapping[str, int] = {}
        self._last_step = 0
        self._drain_end = -(1 << 30)  # start of the last drain, and its columns
        self._retired: deque[int] = deque(maxlen=IN_FLIGHT)

    @property
    def earliest(self) -> int:
        """First cycle in which the next instruction can be accepted."""
        if len(self._retired) < IN_FLIGHT:
            return self._last_step
        return max(self._last_step, self._retired[0] + 1)

    def accept(self, instruction: Instruction, start: int) -> GemmTimes:
        """Account for an instruction accepted in cycle ``start``, not before :attr:`earliest`."""
        if start < self.earliest:
            raise ValueError(f"accepted in cycle {start}, before {self.earliest}")
        to_beat = window_cycles(self._config)
        last, busy = start, 0
        if instruction.opcode == Opcode.WINDOW:
            self._window = instruction.operands
            last += self._config.lanes + DEFINE_CYCLES
            end = last + to_beat + BEAT_TO_SUM
        else:
            shape = tile_shape(instruction.operands, self._window)
            steps, pair = shape.steps, shape.pair
            tiles = instruction["row_tiles"] * instruction["column_tiles"]
            busy = tiles * steps
            if instruction["hold"]:
                last += steps
                end = last + to_beat + BEAT_TO_SUM
            else:
                last = self._drain_tiles(instruction.operands, start, tiles, steps, pair)
                end = self._drain_end + DRAIN_LATENCY
        retire = max(end, self._retired[-1] + 1) if self._retired else end
        self._last_step = last
        self._retired.append(retire)
        return GemmTimes(last, retire, busy, last - start - busy)

    def _drain_tiles(
        self, g: Mapping[str, int], start: int, tiles: int, steps: int, pair: bool
    ) -> int:
        """Return the last step of an instruction that drains all its tiles."""
        config = self._config
        columns = (g["words"] or config.words_per_tile) * config.block
        to_start = window_cycles(config) + BEAT_TO_START
        last = start
        # From that length on, a tile that starts after its predecessor never waits for it.
        independent = steps >= columns + FRAME_CYCLES - 1 + pair
        for _ in range(min(tiles, 1) if independent else tiles):
            last = max(last + steps, self._drain_end - to_start + pair)
            self._drain_end = next_drain_start(last + to_start) + columns
        if independent:
            last += (tiles - 1) * steps
            self._drain_end = next_drain_start(last + to_start) + columns
        return last


def next_drain_start(cycle: int) -> int:
    """Round up to the phase in which a drain starts."""
    return cycle + (START_PHASE - cycle) % FRAME_CYCLES
