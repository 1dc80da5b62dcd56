"""Whether the machine runs, and why it stopped."""

from collections.abc import Iterable

from amaranth.hdl import Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from twillcore.config import FRAME_CYCLES
from twillcore.hw.delay import valid_chain
from twillcore.hw.layouts import INDEX_BITS
from twillcore.hw.ports import CAUSE_BITS, ERROR, PHASE_BITS
from twillcore.isa import Cause, Engine
from twillcore.registers import NO_ENGINE

#: Who can report an error, with its number; of two in one cycle the first wins: it is the older.
SOURCES = {engine.name.lower(): engine.value for engine in Engine} | {
    "dispatch": NO_ENGINE,
    "fetch": NO_ENGINE,
}
ENGINE_NUMBER_BITS = 3
_ERROR = data.StructLayout({"cause": CAUSE_BITS, "index": INDEX_BITS})


class RunControl(wiring.Component):
    """Start, stop, error latch and watchdog; the frame counter and the cycle counter.

    ``start`` is ignored while the machine runs. Else ``running`` is high from the next cycle on:
    that is cycle 0, and its ``phase`` is 0. The machine stops in the cycle after ``halt``, or three
    cycles after an error: errors come from everywhere, so they pass a register there, before the
    port, and one here. One in the cycle of ``halt``, and on the port after it, still counts.
    ``cycles`` then is the number of cycles that it ran.

    Parameters
    ----------
    engines : those that can report an error

    Members
    -------
    start : In(1)
    halt : In(1)
    error_<source> : In(ERROR)
        In the cycle after the error; in the order of :data:`SOURCES`.
    progress : In(1)
        An instruction retired, an engine works, or the bus moved a beat.
    watchdog : In(32)
        Cycles without progress after which the machine stops, in the second one; 0: never.
    oldest_index : In(INDEX_BITS)
        What the watchdog blames, with ``oldest_engine``.
    oldest_engine : In(3)
    running, done, error : Out(1)
        At most one is high; all are low before the first start.
    begin : Out(1)
        Cycle -1: the accepted start.
    phase : Out(PHASE_BITS)
    slots : Out(FRAME_CYCLES)
        Only bit ``phase`` is 1.
    cycles : Out(32)
    cause, index, engine : Out
        Of the last error.
    """

    def __init__(self, engines: Iterable[Engine] = tuple(Engine)):
        present = [engine.name.lower() for engine in engines]
        self._sources = [s for s in SOURCES if s in present or SOURCES[s] == NO_ENGINE]
        super().__init__(
            {
                "start": In(1),
                "halt": In(1),
                "progress": In(1),
                "watchdog": In(32),
                "oldest_index": In(INDEX_BITS),
                "oldest_engine": In(ENGINE_NUMBER_BITS),
                "running": Out(1),
                "done": Out(1),
                "error": Out(1),
                "begin": Out(1),
                "phase": Out(PHASE_BITS),
                "slots": Out(FRAME_CYCLES, init=1),
                "cycles": Out(32),
                "cause": Out(CAUSE_BITS),
                "index": Out(INDEX_BITS),
                "engine": Out(ENGINE_NUMBER_BITS),
            }
            | {f"error_{source}": In(ERROR) for source in self._sources}
        )

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.begin.eq(self.start & ~self.running)
        m.d.sync += [self.phase.eq(self.phase + 1), self.slots.eq(self.slots.rotate_left(1))]

        quiet = Signal(32)  # cycles since the last progress
        with m.If(self.progress):
            m.d.sync += quiet.eq(0)
        with m.Else():
            m.d.sync += quiet.eq(quiet + 1)
        expired = Signal()  # no progress for so long, in the cycle before
        m.d.sync += expired.eq(self.running & (quiet >= self.watchdog) & (self.watchdog != 0))

        with m.If(self.running):
            m.d.sync += self.cycles.eq(self.cycles + 1)
            with m.If(self.halt):
                m.d.sync += [self.running.eq(0), self.done.eq(1)]
            with m.If(expired):
                m.d.sync += self._stop(Cause.WATCHDOG, self.oldest_index, self.oldest_engine)
        with m.Elif(self.begin):
            m.d.sync += [
                self.running.eq(1),
                self.done.eq(0),
                self.error.eq(0),
                self.cause.eq(Cause.NONE),
                self.index.eq(0),
                self.engine.eq(0),
                self.phase.eq(0),
                self.slots.eq(1),
                self.cycles.eq(0),
                quiet.eq(0),
            ]

        # running, in the cycle of the errors that stand in the registers now
        *_, ran = valid_chain(m, self.running, 2, "ran")
        reported = {}
        for source in self._sources:
            port = getattr(self, f"error_{source}")
            valid = Signal(name=f"late_{source}_valid")
            error = Signal(_ERROR, name=f"late_{source}", reset_less=True)
            m.d.sync += valid.eq(port.valid)
            m.d.sync += [error[name].eq(getattr(port, name)) for name in _ERROR.members]
            reported[source] = valid, error
        with m.If(ran & ~self.error):
            for place, (source, (valid, error)) in enumerate(reported.items()):
                with m.If(valid) if place == 0 else m.Elif(valid):
                    m.d.sync += self._stop(error.cause, error.index, SOURCES[source])
        return m

    def _stop(self, cause, index, engine):
        return [
            self.running.eq(0),
            self.done.eq(0),
            self.error.eq(1),
            self.cause.eq(cause),
            self.index.eq(index),
            self.engine.eq(engine),
        ]
