"""When the DSP core and the LUT core do what, side by side.

By itself each does what ``sim/timing_gemm.py`` says. They meet in two places:

* A step of the LUT core that reads an activation word waits while the DSP core reads one, but not
  in the phases ``lut_phases``, in which it has another port. With a stride of 2 the last beat of a
  tile comes with the first read of the next one. So the LUT core's steps follow from the cycles in
  which the DSP core reads, which the LUT core has no influence on but through the drain.
* The drain takes tiles in the order of their last steps, of two in one cycle the DSP core's first::

      S = max(t + to_start, end of the drain before), rounded up to the phase START_PHASE
      end = S + columns

  and the last step of a core's next tile comes in ``S + max(columns - to_start, -1)`` at the
  earliest, where ``to_start`` is the core's.

Here all of that is in cycles of steps; words are written ``window_cycles`` later. The state moves
from the end of a tile to the next one's, in the order of time, since when a core gets its next
instruction depends on other engines. What the DSP core reads is known up to the end of its tile.
"""

from collections import deque
from collections.abc import Mapping
from math import gcd

from twillcore.config import FRAME_CYCLES, Config
from twillcore.isa import Engine, Instruction, Opcode
from twillcore.sim.timing_gemm import (
    BEAT_TO_START,
    BEAT_TO_SUM,
    DEFINE_CYCLES,
    DRAIN_LATENCY,
    IN_FLIGHT,
    TileShape,
    next_drain_start,
    tile_shape,
)
from twillcore.timing import lut_phases, window_cycles

LUT_TO_SUM = 5  # last beat to sums in the accumulators, and a cycle per pair of positions
LUT_TO_START = 6  # last beat to the earliest start of the drain, and a cycle per pair of positions
ENGINES = (Engine.GEMM, Engine.LUT)


class _Core:
    """A core and the instruction that it executes.

    Attributes
    ----------
    event : cycle of the last step of the current tile, or before which it cannot be; None: idle
    times : busy cycles, blocked cycles and last step of each instruction whose end is known
    retired : cycle of retirement of each of them
    """

    def __init__(self, config: Config, engine: Engine) -> None:
        lut = engine == Engine.LUT
        pairs = config.block // 2
        self.refusable = lut
        self.columns = config.lut_columns if lut else config.dsp_columns
        self.to_sum = LUT_TO_SUM + pairs if lut else BEAT_TO_SUM
        self.to_start = LUT_TO_START + pairs if lut else BEAT_TO_START
        self.window: Mapping[str, int] = {}
        self.event: int | None = None
        self.release = 0  # earliest last step of the next tile
        self.last_step = 0
        self.times: list[tuple[int, int, int]] = []
        self.retired: list[int] = []
        # The instruction
        self.shape = TileShape(0, 0, 0, False)
        self.start = 0
        self.tiles = self.tiles_left = 0
        self.drained = 0  # columns
        self.hold = False

    @property
    def earliest(self) -> int | None:
        """First cycle in which the next instruction can be accepted; None if not known yet."""
        if self.event is not None:
            return None
        if len(self.retired) < IN_FLIGHT:
            return self.last_step
        return max(self.last_step, self.retired[-IN_FLIGHT] + 1)

    def finish(self, last: int, busy: int, start: int, end: int) -> None:
        """Note the end of an instruction with its last step in cycle ``last``."""
        self.event, self.last_step = None, last
        self.times.append((busy, last - start - busy, last))
        self.retired.append(max(end, self.retired[-1] + 1) if self.retired else end)


class CoresTiming:
    """The state of both cores and of the drain.

    :meth:`step` is called with the ascending cycles that :attr:`next_cycle` gives; instructions are
    accepted before a cycle later than their acceptance is stepped through.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        phases = lut_phases(config)
        # Cycles from each phase to the next one of these.
        self._to_phase = [
            min(((free - phase) % FRAME_CYCLES for free in phases), default=None)
            for phase in range(FRAME_CYCLES)
        ]
        self.cores = {engine: _Core(config, engine) for engine in ENGINES}
        self._dsp, self._lut = self.cores.values()
        self._drain_end = 0
        # What the DSP core reads: in cycle c of first <= c < end, if (c - first) % period < reads.
        self._reads: deque[list[int]] = deque()  # [first, end, period, reads]
        # The LUT core's next step, what it has left in its tile, and whether ``event`` is exact.
        self._cursor = 0
        self._blocks_left = self._reads_left = 0
        self._exact = False

    @property
    def next_cycle(self) -> int | None:
        """The next cycle to step through; None while both cores are idle."""
        return min(
            (core.event for core in self.cores.values() if core.event is not None), default=None
        )

    def known(self) -> int:
        """Return what changes whenever a step found out something that others wait for."""
        return len(self._dsp.retired) + len(self._lut.retired)

    def accept(self, engine: Engine, i: Instruction, start: int) -> None:
        """Take an instruction in cycle ``start``, not before the core's ``earliest``."""
        core = self.cores[engine]
        if core.earliest is None or start < core.earliest:
            raise ValueError(f"accepted in cycle {start}, before {core.earliest}")
        if i.opcode in (Opcode.WINDOW, Opcode.LUT_WINDOW):
            core.window = i.operands
            last = start + self._config.lanes + DEFINE_CYCLES
            core.finish(last, 0, start, last + window_cycles(self._config) + core.to_sum)
            return
        core.start = start
        core.shape = tile_shape(i.operands, core.window, core.refusable)
        core.tiles = core.tiles_left = i["row_tiles"] * i["column_tiles"]
        core.drained = (i["words"] or core.columns // self._config.block) * self._config.block
        core.hold = bool(i["hold"])
        self._start_tile(core, start)

    def step(self, cycle: int) -> None:
        """Do what happens in ``cycle``."""
        if self._dsp.event == cycle:
            self._finish_tile(self._dsp, cycle)
        elif self._exact:
            self._finish_tile(self._lut, cycle)
        else:
            self._advance(cycle)
            if self._exact and self._lut.event == cycle:
                self._finish_tile(self._lut, cycle)

    def _finish_tile(self, core: _Core, last: int) -> None:
        """End a tile with its last step in cycle ``last``."""
        core.tiles_left -= 1
        if not core.hold:
            drain = next_drain_start(max(last + core.to_start, self._drain_end))
            self._drain_end = drain + core.drained
            core.release = drain + max(core.drained - core.to_start, -1)
        if core.tiles_left:
            self._start_tile(core, last)
            return
        later = window_cycles(self._config)
        end = last + core.to_sum if core.hold else self._drain_end + DRAIN_LATENCY
        steps = core.tiles * core.shape.steps + core.shape.ahead
        core.finish(last, steps, core.start, end + later)

    def _start_tile(self, core: _Core, before: int) -> None:
        """Begin a tile in the cycle after ``before``."""
        if core is self._lut:
            self._cursor = before + 1
            self._blocks_left, self._reads_left = core.shape.blocks, core.shape.reads
            if core.shape.ahead and core.tiles_left < core.tiles:
                self._reads_left -= 1  # that came with the last beat of the tile before
            self._exact = False
            core.event = self._bound()
            return
        shape = core.shape
        regular = before + shape.steps
        last = regular if core.hold else max(regular, core.release + shape.pair)
        core.event = last
        now = self._cursor if self._lut.event is not None else before
        while self._reads and self._reads[0][1] <= now:
            self._reads.popleft()
        first, period, reads = before + 1, shape.block_steps, shape.reads
        if last == regular:
            self._note(first, last + 1, period, reads)
            return
        # The last block's reads that wait, and those that do not.
        final = last - period + 1 if shape.pair else regular - period + 1
        self._note(first, regular - period + 1, period, reads)
        if period > reads or shape.pair:
            self._note(final, final + period, period, reads)
        else:
            self._note(final, final + period - 1, period, reads)
            self._note(last, last + 1, 1, 1)

    def _note(self, first: int, end: int, period: int, reads: int) -> None:
        """Note reads of the DSP core."""
        if end <= first:
            return
        if self._reads and self._reads[-1][1:] == [first, period, reads]:
            self._reads[-1][1] = end
        else:
            self._reads.append([first, end, period, reads])

    def _bound(self) -> int:
        """Return the cycle before which the LUT core's tile cannot end, seen from the cursor."""
        lut = self._lut
        left = self._blocks_left * lut.shape.block_steps - (lut.shape.reads - self._reads_left)
        last = self._cursor + left - 1 + lut.shape.ahead
        return last if lut.hold else max(last, lut.release)

    def _free(self, cycle: int) -> int:
        """Return the first cycle from ``cycle`` on in which the LUT core is not known to wait.

        It is one of its phases, or the DSP core is not known to read.
        """
        wait = self._to_phase[cycle % FRAME_CYCLES]
        if wait == 0:
            return cycle
        own = None if wait is None else cycle + wait
        for first, end, period, reads in self._reads:
            if cycle < first:
                break
            if cycle < end:
                phase = (cycle - first) % period
                if phase < reads:
                    cycle = end if reads == period else min(cycle + reads - phase, end)
                    if own is not None and own <= cycle:
                        return own
        return cycle

    def _advance(self, cycle: int) -> None:
        """Take the LUT core's steps as far as the DSP core's reads are known, ``cycle`` at least.

        The first block of those left may have had some of its reads.
        """
        lut = self._lut
        steps, reads, ahead = lut.shape.block_steps, lut.shape.reads, lut.shape.ahead
        reads_last = lut.tiles_left > 1 if ahead else reads == steps  # in the last step
        horizon = cycle if self._dsp.event is None else max(cycle, self._dsp.event)
        cursor, reads_left = self._cursor, self._reads_left
        while self._blocks_left > 1 or reads_left > (reads_last and not ahead):
            if cursor > horizon:
                break
            if reads_left == reads and self._blocks_left > 1:
                jump = self._undisturbed(cursor, horizon)
                if jump:
                    self._blocks_left -= jump
                    cursor += jump * steps
                    continue
            granted = self._free(cursor)
            if granted > horizon:
                cursor = granted
                break
            cursor = granted + 1
            reads_left -= 1
            if not reads_left and self._blocks_left > 1:
                cursor += steps - reads
                self._blocks_left -= 1
                reads_left = reads
        else:
            # Only the last step is left open: in the cycle of a read, or after the last one.
            last = cursor + max(steps - reads - 1 + ahead, 0)
            if not lut.hold:
                last = max(last, lut.release)
            if reads_last:
                last = self._free(last)
            if not reads_last or last <= horizon:
                self._exact, lut.event = True, last
                self._cursor, self._reads_left = cursor, reads_left
                return
        self._cursor, self._reads_left = cursor, reads_left
        lut.event = max(self._bound(), cycle + 1)

    def _undisturbed(self, cursor: int, horizon: int) -> int:
        """Return how many blocks from ``cursor`` on surely do not meet a read of the DSP core.

        At most all but the last; 0 if the next one has to be looked at by itself.
        """
        steps, reads = self._lut.shape.block_steps, self._lut.shape.reads
        until = horizon
        for first, end, period, others in self._reads:
            if end <= cursor:
                continue
            if first > cursor:
                until = min(until, first - 1)
                break
            common = gcd(steps, period)
            phase = (cursor - first) % common
            if phase < others or phase + reads > common:
                return 0
            until = min(until, end - 1)
            break
        return max(min((until - cursor - reads + 1) // steps + 1, self._blocks_left - 1), 0)


assert FRAME_CYCLES == 8  # of which window_cycles is a multiple, so phases are those of steps
