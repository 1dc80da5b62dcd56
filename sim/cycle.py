"""The cycle model: results of the functional engine, and when everything happens in the RTL.

No cycle is stepped that changes nothing. DISPATCH, the token gates and the engines are formulas
(``sim/timing_*.py``), resolved as soon as what they depend on is known; only the read channels that
FETCH and LOAD share (:mod:`twillcore.sim.read_path`), and two GEMM cores where there are two
(:mod:`twillcore.sim.timing_cores`), need their cycles in order. It equals the RTL in every start
and end and in every counter; ``tests/agree/test_engines.py`` holds it to that.
"""

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from numpy.typing import NDArray

from twillcore.config import Config
from twillcore.dram import Dram
from twillcore.image import Image
from twillcore.isa import TOKEN_COUNTER_BITS, Cause, Engine, Instruction
from twillcore.registers import Counter
from twillcore.result import Result, Span
from twillcore.sim.functional import FunctionalEngine, decode_program
from twillcore.sim.machine_error import MachineError
from twillcore.sim.read_path import ReadPath
from twillcore.sim.timing_cores import CoresTiming
from twillcore.sim.timing_gemm import GemmTiming
from twillcore.sim.timing_load import LoadTiming
from twillcore.sim.timing_store import StoreTiming
from twillcore.sim.timing_vector import move_end, next_start, vector_end

Interval = tuple[int, int]  # first and last cycle
OFFER_CYCLES = 1  # from when an instruction is the head of its queue to when it can be accepted
TOKEN_CYCLES = 2  # from a retirement to the first cycle in which its tokens can be taken


class CycleEngine:
    """Runs a program on the functional engine and tells its time."""

    name = "cycle"

    def run(
        self,
        image: Image,
        inputs: Mapping[str, NDArray],
        *,
        dram: Dram = Dram(),  # noqa: B008  it is frozen
        progress: Callable[[int], None] | None = None,
    ) -> Result:
        """Execute ``image``; ``progress`` is called once, with all cycles.

        Raises
        ------
        ProgramError
            If the inputs do not fit the program.
        MachineError
            If an instruction is illegal, or waits for a token that never comes.
        """
        start = time.perf_counter()
        outputs = FunctionalEngine().run(image, inputs).outputs
        timeline = Timeline(image.config, decode_program(image), dram)
        timeline.run()
        if progress:
            progress(timeline.cycles)
        return Result(
            outputs=outputs,
            engine=self.name,
            cycles=timeline.cycles,
            spans=timeline.spans(),
            counters=timeline.counters(),
            bytes_read=timeline.bytes_read(),
            bytes_written=timeline.bytes_written(),
            seconds=time.perf_counter() - start,
        )


def _by_giver() -> dict[Engine, list]:
    return {engine: [] for engine in Engine}


@dataclass
class _Queue:
    """The instructions of one engine, in order, and when what happened to them as far as known.

    Attributes
    ----------
    instructions : positions in the program
    dispatched, starts, ends : cycles in which they entered the queue, were accepted, and retired
    given : by giver, the tokens for this engine: (first cycle in which it can be taken, position of
        the instruction that gave it)
    taken : by giver, the cycles in which tokens were taken
    missing : by giver, the cycles in which the head of the queue lacked a token
    """

    instructions: list[int]
    dispatched: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    given: dict[Engine, list[tuple[int, int]]] = field(default_factory=_by_giver)
    taken: dict[Engine, list[int]] = field(default_factory=_by_giver)
    missing: dict[Engine, list[Interval]] = field(default_factory=_by_giver)


class Timeline:
    """When every instruction of a program starts and ends.

    Parameters
    ----------
    program : instructions up to HALT, that included

    Attributes
    ----------
    cycles : from the start to the done flag
    """

    def __init__(self, config: Config, program: list[Instruction], dram: Dram) -> None:
        self.config, self.program = config, program
        self.cycles = 0
        self._queues = {
            engine: _Queue([n for n, i in enumerate(program) if i.engine is engine])
            for engine in Engine
        }
        self._decoded: list[int] = []  # cycles in which words left FETCH for DISPATCH's register
        self._dispatched: list[int] = []  # cycles in which they left that for their queues
        self._load = LoadTiming(config)
        self._store = StoreTiming(config, dram)
        self._gemm = GemmTiming(config)
        self._gemm_steps: list[tuple[int, int, int]] = []  # busy, blocked, last step
        # Two cores depend on each other, so there is no formula for either.
        self._cores = CoresTiming(config) if config.lut_columns else None
        self._read_path = ReadPath(config, dram, self._load)

    def run(self) -> None:
        """Fill in all times.

        Raises
        ------
        MachineError
            If an instruction waits for ever, or a token counter overflows.
        """
        path, cores = self._read_path, self._cores
        known: tuple = ()  # what had been found out when the rest was last resolved
        while True:
            cycle = cores.next_cycle if cores else None
            waking = path.next_cycle
            if waking is not None and (cycle is None or waking <= cycle):
                path.step(waking)
            elif cycle is not None:
                cores.step(cycle)
            else:
                break
            if known != (known := (path.known(), cores.known() if cores else 0)):
                self._resolve()
        ends = [queue.ends for queue in self._queues.values()]
        if sum(map(len, ends)) < len(self.program) - 1:
            self._raise_deadlock()
        idle = max((end[-1] + 1 for end in ends if end), default=0)
        self.cycles = max(self._decoded[-1] + 1, idle) + 1
        self._check_tokens()

    def _resolve(self) -> None:
        """Dispatch and start whatever is determined by what is known."""
        self._collect(Engine.LOAD, self._load.retired)
        if self._cores:
            for engine, core in self._cores.cores.items():
                self._collect(engine, core.retired)
        progress = True
        while progress:
            progress = self._dispatch()
            for engine, queue in self._queues.items():
                while self._start(engine, queue):
                    progress = True

    def _collect(self, engine: Engine, retired: list[int]) -> None:
        queue = self._queues[engine]
        for end in retired[len(queue.ends) :]:
            self._end(queue, end)

    def _dispatch(self) -> bool:
        """Move instructions from FETCH to the queues; returns whether any did."""
        moved = False
        while self._decode():
            index = len(self._dispatched)
            queue = self._queues[self.program[index].engine]
            cycle = self._decoded[index] + 1
            before = len(queue.dispatched) - self.config.queue_depth  # must have left the queue
            if before >= len(queue.starts):
                break
            if before >= 0:
                cycle = max(cycle, queue.starts[before] + 1)
            queue.dispatched.append(cycle)
            self._dispatched.append(cycle)
            moved = True
        return moved

    def _decode(self) -> bool:
        """Take a word when its predecessor has left; returns whether one waits for its queue."""
        index = len(self._dispatched)
        if len(self._decoded) == index < len(self._read_path.words):
            cycle = max([self._read_path.words[index], *self._dispatched[-1:]])
            self._decoded.append(cycle)
            self._read_path.take_word(cycle, is_last=index == len(self.program) - 1)
        return index < min(len(self._decoded), len(self.program) - 1)

    def _start(self, engine: Engine, queue: _Queue) -> bool:
        """Start the next instruction of an engine; returns whether it is determined when."""
        number = len(queue.starts)
        if number >= len(queue.dispatched):
            return False
        earliest = self._earliest(engine, queue)
        if earliest is None:
            return False
        instruction = self.program[queue.instructions[number]]
        givers = [giver for giver in Engine if instruction.wait >> giver & 1]
        if any(len(queue.taken[giver]) >= len(queue.given[giver]) for giver in givers):
            return False
        head = queue.dispatched[number] + 1
        if number:
            head = max(head, queue.starts[-1] + 1)
        start = max(head + OFFER_CYCLES, earliest)
        for giver in givers:
            there, _ = queue.given[giver][len(queue.taken[giver])]
            if there > head:
                queue.missing[giver].append((head, there - 1))
            start = max(start, there)
        for giver in givers:
            queue.taken[giver].append(start)
        queue.starts.append(start)
        self._execute(engine, queue, instruction, start)
        return True

    def _earliest(self, engine: Engine, queue: _Queue) -> int | None:
        """Return the first cycle in which an engine can accept its next instruction."""
        if engine is Engine.LOAD:
            return self._load.earliest
        if engine is Engine.STORE:
            return self._store.earliest
        if self._cores and engine in self._cores.cores:
            return self._cores.cores[engine].earliest
        if engine is Engine.GEMM:
            return self._gemm.earliest
        return next_start(queue.ends[-1]) if queue.ends else 0

    def _execute(self, engine: Engine, queue: _Queue, i: Instruction, start: int) -> None:
        if engine is Engine.LOAD:
            self._read_path.wake(self._load.accept(i.operands, start))
        elif engine is Engine.STORE:
            self._end(queue, self._store.accept(i.operands, start))
        elif self._cores and engine in self._cores.cores:
            self._cores.accept(engine, i, start)
            self._collect(engine, self._cores.cores[engine].retired)  # WINDOW's end is known
        elif engine is Engine.GEMM:
            times = self._gemm.accept(i, start)
            self._gemm_steps.append((times.busy, times.blocked, times.last_step))
            self._end(queue, times.retire)
        else:
            end = vector_end if engine is Engine.VECTOR else move_end
            self._end(queue, end(i, start, self.config))

    def _end(self, queue: _Queue, cycle: int) -> None:
        """Retire the oldest instruction of ``queue`` in ``cycle``, and give its tokens."""
        index = queue.instructions[len(queue.ends)]
        instruction = self.program[index]
        queue.ends.append(cycle)
        for taker in Engine:
            if instruction.signal >> taker & 1:
                token = cycle + TOKEN_CYCLES, index
                self._queues[taker].given[instruction.engine].append(token)

    def _raise_deadlock(self) -> None:
        """Blame the first instruction that has not ended."""
        index, engine = min(
            (queue.instructions[len(queue.ends)], engine)
            for engine, queue in self._queues.items()
            if len(queue.ends) < len(queue.instructions)
        )
        text = str(self.program[index])
        raise MachineError(Cause.WATCHDOG, engine.name.lower(), index, text)

    def _check_tokens(self) -> None:
        """Refuse a program that signals more tokens than a counter holds."""
        limit = (1 << TOKEN_COUNTER_BITS) - 1
        for queue in self._queues.values():
            for giver, given in queue.given.items():
                for number, (there, index) in enumerate(given):
                    if number - bisect_right(queue.taken[giver], there - 1) >= limit:
                        text = str(self.program[index])
                        raise MachineError(Cause.TOKEN_OVERFLOW, giver.name.lower(), index, text)

    # what it took

    def spans(self) -> tuple[Span, ...]:
        """Return the span of every instruction, in program order."""
        spans = [
            Span(*span)
            for queue in self._queues.values()
            for span in zip(queue.instructions, queue.starts, queue.ends, strict=True)
        ]
        return tuple(sorted(spans, key=lambda span: span.index))

    def bytes_read(self) -> int:
        """Return the bytes of all read beats before the done flag."""
        beats = sum(burst.taken_until(self.cycles - 1) for burst in self._read_path.fetched)
        return (beats + sum(self._load.beats)) * self.config.axi_bytes

    def bytes_written(self) -> int:
        """Return the bytes of all write beats."""
        return sum(self._store.beats) * self.config.axi_bytes

    def counters(self) -> dict[str, dict[str, int]]:
        """Return, for every engine, how many cycles each counter of ``hw`` counted."""
        return {engine.name.lower(): self._counters(engine) for engine in self.config.engines}

    def _counters(self, engine: Engine) -> dict[str, int]:
        queue = self._queues[engine]
        counts = dict.fromkeys(Counter, 0)
        flight = [(start + 1, end) for start, end in zip(queue.starts, queue.ends, strict=True)]
        if engine in (Engine.GEMM, Engine.LUT):
            steps = self._cores.cores[engine].times if self._cores else self._gemm_steps
            counts[Counter.BUSY] = sum(busy for busy, _, _ in steps)
            counts[Counter.BLOCKED] = sum(blocked for _, blocked, _ in steps)
            lasts = [last for _, _, last in steps]
            active = union(
                (start + 1, last) for start, last in zip(queue.starts, lasts, strict=True)
            )
            ending = union(flight)
        else:
            active, ending = union(flight), []
            if engine in (Engine.LOAD, Engine.STORE):
                timing = self._load if engine is Engine.LOAD else self._store
                counts[Counter.BUSY] = sum(timing.beats)
                counts[Counter.BLOCKED] = length(active) - sum(timing.beats)
            else:
                counts[Counter.BUSY] = length(active)
        covered = active
        for giver in Engine:
            cause = Counter[f"WAIT_{giver.name}"]
            covered = self._count(counts, cause, covered, queue.missing[giver])
        self._count(counts, Counter.ENDING, covered, ending)
        counts[Counter.EMPTY] = self.cycles - sum(counts.values())
        return {counter.name.lower(): count for counter, count in counts.items()}

    @staticmethod
    def _count(
        counts: dict[Counter, int], cause: Counter, covered: list[Interval], more: list[Interval]
    ) -> list[Interval]:
        """Count the cycles of ``more`` that are not ``covered``, and return the union of both."""
        both = union([*covered, *more])
        counts[cause] = length(both) - length(covered)
        return both


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Return the cycles of ``intervals`` as ascending intervals that do not touch."""
    merged: list[Interval] = []
    for first, last in sorted(intervals):
        if last < first:
            continue
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(merged[-1][1], last)
        else:
            merged.append((first, last))
    return merged


def length(intervals: Iterable[Interval]) -> int:
    """Return the cycles of intervals that do not overlap."""
    return sum(last - first + 1 for first, last in intervals)
