"""From the instruction stream to the queues of the engines."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from twillcore.config import Config
from twillcore.hw.layouts import ISSUED, instruction_layout
from twillcore.hw.ports import ERROR
from twillcore.isa import ENGINE_BITS, ISA, Cause, Engine, Opcode

_CHECKS = 2  # parts of a word that are looked at by themselves: whether one is offered is a LUT4


class Dispatch(wiring.Component):
    """Route instructions to the queues of their engines, in program order.

    One register: an instruction taken at ``i`` is decoded on its way into it, and enters its queue
    in the next cycle, one per cycle. A full queue stalls the register, and that stalls ``i``. HALT
    waits in the register and raises ``halt`` when the machine is ``idle``; its token masks are
    ignored. An instruction of an opcode that the configuration lacks, with a reserved bit set, or
    with an absent engine in a token mask, raises ``error`` in the cycle after it was taken and goes
    nowhere. After either nothing is taken until reset. Operands are the engines' to check.

    Members
    -------
    enable : In(1)
        Nothing leaves the register unless high: the machine runs.
    i : In(stream.Signature(ISSUED))
    o_<engine> : Out(stream.Signature(ISSUED))
    idle : In(1)
        No queue and no engine holds an instruction.
    halt : Out(1)
    error : Out(ERROR)
    """

    def __init__(self, config: Config):
        self._engines = config.engines
        self._opcodes = config.opcodes
        super().__init__(
            {
                "enable": In(1),
                "i": In(stream.Signature(ISSUED)),
                "idle": In(1),
                "halt": Out(1),
                "error": Out(ERROR),
            }
            | {f"o_{e.name.lower()}": Out(stream.Signature(ISSUED)) for e in self._engines}
        )

    def output(self, engine: Engine):
        """Return the stream to the queue of ``engine``."""
        return getattr(self, f"o_{engine.name.lower()}")

    def elaborate(self, platform):
        m = Module()
        absent = (1 << ENGINE_BITS) - 1 - sum(1 << engine for engine in self._engines)

        # What the word at `i` is. That it is illegal is put together in the cycle after.
        target = Signal(len(Engine))  # one bit at most
        is_halt = Signal()
        wrong = Signal(_CHECKS, init=1)
        header = data.View(instruction_layout(Opcode.HALT), self.i.p.word)
        with m.Switch(header.opcode):
            for opcode in self._opcodes:
                word = data.View(instruction_layout(opcode), self.i.p.word)
                bits = word.reserved
                parts = [bits[n::_CHECKS].any() for n in range(_CHECKS)]
                with m.Case(opcode):
                    if ISA[opcode].engine is None:
                        m.d.comb += is_halt.eq(1)
                    else:
                        parts[0] |= ((word.wait | word.signal) & absent).any()
                        m.d.comb += target.eq(1 << ISA[opcode].engine)
                    m.d.comb += wrong.eq(Cat(parts))

        held = Signal(ISSUED, reset_less=True)
        held_target = Signal.like(target)
        held_halt, held_illegal = Signal(), Signal()
        held_wrong = Signal.like(wrong, init=0)
        outputs = {engine: self.output(engine) for engine in self._engines}
        leaves, free = Signal(), Signal()
        m.d.comb += [
            held_illegal.eq(held_wrong.any()),
            leaves.eq(Cat(held_target[engine] & o.ready for engine, o in outputs.items()).any()),
            free.eq(~held_halt & ~held_illegal & (~held_target.any() | (self.enable & leaves))),
            self.i.ready.eq(free),
        ]
        with m.If(free):
            m.d.sync += [
                held.eq(self.i.payload),
                held_target.eq(Mux(self.i.valid, target, 0)),
                held_halt.eq(self.i.valid & is_halt),
                held_wrong.eq(Mux(self.i.valid, wrong, 0)),
            ]
        for engine, o in outputs.items():
            m.d.comb += [
                o.payload.eq(held),
                o.valid.eq(self.enable & held_target[engine] & ~held_illegal),
            ]
        m.d.comb += [
            self.halt.eq(self.enable & held_halt & ~held_illegal & self.idle),
            self.error.valid.eq(self.enable & held_illegal),
            self.error.cause.eq(Cause.ILLEGAL_INSTRUCTION),
            self.error.index.eq(held.index),
        ]
        return m
