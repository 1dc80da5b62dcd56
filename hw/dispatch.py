"""From the instruction stream to the queues of the engines."""

from amaranth.hdl import Module
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from twillcore.config import Config
from twillcore.hw.layouts import ISSUED, instruction_layout
from twillcore.hw.ports import ERROR
from twillcore.isa import ENGINE_BITS, ISA, Cause, Engine, Opcode


class Dispatch(wiring.Component):
    """Route instructions to the queues of their engines, in program order.

    Combinational: an instruction enters its queue in the cycle in which it arrives, one per cycle.
    A full queue stalls ``i``. HALT waits at ``i`` until ``idle``, then raises ``halt`` for one
    cycle; its token masks are ignored. An instruction of an opcode that the configuration lacks,
    with a reserved bit set, or with an absent engine in a token mask, raises ``error`` and goes
    nowhere. Operands are the engines' to check.

    Members
    -------
    enable : In(1)
        Nothing is taken unless high: the machine runs.
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
        offered = self.enable & self.i.valid
        absent = (1 << ENGINE_BITS) - 1 - sum(1 << engine for engine in self._engines)

        m.d.comb += [
            self.error.cause.eq(Cause.ILLEGAL_INSTRUCTION),
            self.error.index.eq(self.i.p.index),
        ]
        for engine in self._engines:
            m.d.comb += self.output(engine).payload.eq(self.i.payload)

        header = data.View(instruction_layout(Opcode.HALT), self.i.p.word)
        with m.Switch(header.opcode):
            for opcode in self._opcodes:
                word = data.View(instruction_layout(opcode), self.i.p.word)
                illegal = word.reserved.any()
                with m.Case(opcode):
                    if ISA[opcode].engine is None:
                        m.d.comb += [
                            self.error.valid.eq(offered & illegal),
                            self.halt.eq(offered & ~illegal & self.idle),
                            self.i.ready.eq(self.halt),
                        ]
                    else:
                        illegal |= ((word.wait | word.signal) & absent).any()
                        o = self.output(ISA[opcode].engine)
                        m.d.comb += [
                            self.error.valid.eq(offered & illegal),
                            o.valid.eq(offered & ~illegal),
                            # Whatever the rest of the word is: after an error nothing is
                            # taken, and the check of all its bits stays out of this path.
                            self.i.ready.eq(offered & o.ready),
                        ]
            with m.Default():
                m.d.comb += self.error.valid.eq(offered)
        return m
