"""Where the cycles of every engine went."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from twillcore.hw.ports import Activity
from twillcore.isa import ENGINE_BITS, Engine
from twillcore.registers import Counter

COUNTER_BITS = 32


class PerformanceCounters(wiring.Component):
    """One engine's counters: in every cycle with ``enable`` exactly one of them counts.

    An engine that works or is blocked counts as such, whatever waits in its queue. Otherwise the
    first engine whose token the head of the queue misses is named. What a cycle counts as passes a
    register, so a counter shows a cycle two cycles later, and is 0 two cycles after ``clear``.

    Members
    -------
    clear : In(1)
    enable : In(1)
    activity : In(Activity)
    missing : In(ENGINE_BITS)
        Engines whose token the head of the queue waits for.
    <counter> : Out(32)
        In the order of :class:`twillcore.registers.Counter`; modulo 2**32.
    """

    def __init__(self):
        super().__init__({
            "clear": In(1),
            "enable": In(1),
            "activity": In(Activity),
            "missing": In(ENGINE_BITS),
        } | {counter.name.lower(): Out(COUNTER_BITS) for counter in Counter})  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        cause, last_cause = Signal(Counter), Signal(Counter)
        counts = Signal()
        clears = Signal(init=1)  # a reset clears, too
        m.d.sync += [
            last_cause.eq(cause),
            counts.eq(self.enable & ~self.clear),
            clears.eq(self.clear),
        ]
        with m.If(self.activity == Activity.BUSY):
            m.d.comb += cause.eq(Counter.BUSY)
        with m.Elif(self.activity == Activity.BLOCKED):
            m.d.comb += cause.eq(Counter.BLOCKED)
        for engine in Engine:
            with m.Elif(self.missing[engine]):
                m.d.comb += cause.eq(Counter[f"WAIT_{engine.name}"])
        with m.Elif(self.activity == Activity.ENDING):
            m.d.comb += cause.eq(Counter.ENDING)
        with m.Else():
            m.d.comb += cause.eq(Counter.EMPTY)

        for counter in Counter:
            value = Signal(COUNTER_BITS, name=f"{counter.name.lower()}_value", reset_less=True)
            m.d.comb += getattr(self, counter.name.lower()).eq(value)
            with m.If(clears):
                m.d.sync += value.eq(0)
            with m.Elif(counts & (last_cause == counter)):
                m.d.sync += value.eq(value + 1)
        return m
