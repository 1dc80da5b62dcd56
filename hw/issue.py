"""Instruction queue and token gate in front of one engine."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from twillcore.config import Config
from twillcore.hw.clocks import awake_while
from twillcore.hw.layouts import INDEX_BITS, ISSUED, instruction_layout
from twillcore.hw.streams import Queue
from twillcore.isa import ENGINE_BITS, TOKEN_COUNTER_BITS, Engine, Opcode

#: Instructions that an engine may have accepted and not retired; every engine has room for fewer.
IN_FLIGHT = 32

_HEADER = instruction_layout(Opcode.HALT)  # the header is the same in every instruction
_IN_FLIGHT = data.StructLayout({"signal": ENGINE_BITS, "index": INDEX_BITS})


class Issue(wiring.Component):
    """Queue the instructions of one engine, and start each when its tokens have come.

    An instruction taken at ``i`` in cycle t is the head of the queue in cycle t + 1 at the
    earliest, or in the cycle after the one before it left. It is offered at ``o`` a cycle later at
    the earliest, in the cycle after, for every engine in its ``wait`` mask, the counter of tokens
    from that engine was positive; one of each is taken then. ``i`` is ready while fewer than
    ``queue_depth`` instructions wait.

    ``retire`` ends the oldest instruction in flight, two cycles after its transfer at ``o`` at the
    earliest: in the same cycle ``give`` has its ``signal`` mask. A token that arrives (``given``)
    in cycle t is counted in t + 1, since it comes from the other end of the chip, and can be taken
    in t + 2.

    Members
    -------
    enable : In(1)
        Instructions are issued only while high: the machine runs.
    i : In(stream.Signature(ISSUED))
    o : Out(stream.Signature(ISSUED))
    retire : In(1)
    give : Out(ENGINE_BITS)
        Bit e: a token for engine e, in this cycle.
    given : In(ENGINE_BITS)
        Bit e: engine e gives a token to this engine, in this cycle.
    missing : Out(ENGINE_BITS)
        Bit e: the head of the queue waits for a token from engine e.
    overflow : Out(ENGINE_BITS)
        Bit e: the token given by engine e two cycles before is lost, since its counter was full.
    idle : Out(1)
        No instruction is queued or in flight.
    oldest_index : Out(INDEX_BITS)
        Position of the oldest instruction that was unfinished in the cycle before, all ones if
        none was. In the cycle after ``retire`` it is the retired instruction's.
    """

    def __init__(self, config: Config):
        self._depth = config.queue_depth
        super().__init__({
            "enable": In(1),
            "i": In(stream.Signature(ISSUED)),
            "o": Out(stream.Signature(ISSUED)),
            "retire": In(1),
            "give": Out(ENGINE_BITS),
            "given": In(ENGINE_BITS),
            "missing": Out(ENGINE_BITS),
            "overflow": Out(ENGINE_BITS),
            "idle": Out(1),
            "oldest_index": Out(INDEX_BITS, init=(1 << INDEX_BITS) - 1),
        })  # fmt: skip
        self.awake = Signal()  # of gated machines: twillcore.hw.clocks

    def elaborate(self, platform):
        m = Module()

        m.submodules.queue = queue = Queue(ISSUED, self._depth)
        wiring.connect(m, wiring.flipped(self.i), queue.i)
        head = queue.o.payload
        arriving = data.View(_HEADER, self.i.payload.word)

        # The head's ``wait`` stands in a register: it decides about counters of tokens, and reading
        # it out of the queue would take too long. The next one comes in the cycle after the head
        # may go. Only a register and a count hear whether ``i`` is accepted: what is there is
        # written into the next place, of which there is one more than instructions.
        pointer_bits = ceil_log2(self._depth + 1)
        m.submodules.waits = waits = memory.Memory(
            shape=ENGINE_BITS, depth=1 << pointer_bits, init=[]
        )
        write, read = waits.write_port(), waits.read_port(domain="comb")
        accepted, cleared = Signal(), Signal()
        accepts = Signal(pointer_bits)  # instructions that were accepted
        clearances = Signal(pointer_bits)  # heads that might go
        later = Signal(pointer_bits)  # that, in the next cycle
        there = Signal()  # the next cycle's head is in memory
        wait = Signal(ENGINE_BITS, reset_less=True)
        waiting = Signal()  # a head stands in ``wait``
        m.d.comb += [
            accepted.eq(self.i.valid & self.i.ready),
            later.eq(clearances + cleared),
            there.eq(accepts != later),
            write.addr.eq(accepts),
            write.data.eq(arriving.wait),
            write.en.eq(1),
            read.addr.eq(later),
        ]
        m.d.sync += [
            accepts.eq(accepts + accepted),
            clearances.eq(later),
            wait.eq(Mux(there, read.data, arriving.wait)),
            waiting.eq(there | accepted),
        ]

        m.submodules.in_flight = in_flight = Queue(_IN_FLIGHT, IN_FLIGHT)
        ending = in_flight.o.payload

        # The head has its tokens and may go: a register, since it decides much far away. And
        # whether it goes is decided there, so nothing here but the queue hears of it in that cycle.
        clear, clears = Signal(), Signal()
        starts, started = Signal(), Signal()
        of_started = Signal(_IN_FLIGHT, reset_less=True)
        m.d.comb += [
            self.o.payload.eq(head),
            self.o.valid.eq(self.enable & clear),
            starts.eq(self.o.valid & self.o.ready),
            queue.o.ready.eq(starts),
            in_flight.i.payload.eq(of_started),
            in_flight.i.valid.eq(started),
            in_flight.o.ready.eq(self.retire),
            self.give.eq(Mux(self.retire, ending.signal, 0)),
            self.idle.eq(~queue.o.valid & ~started & ~in_flight.o.valid),
        ]
        m.d.sync += [
            started.eq(starts),
            of_started.signal.eq(data.View(_HEADER, head.word).signal),
            of_started.index.eq(head.index),
        ]
        moves = Signal()
        moved = Signal()  # in the cycle before: what follows are oldest_index, tokens and clear
        m.d.comb += moves.eq(self.i.valid | starts | self.retire | self.given.any())
        m.d.sync += moved.eq(moves)
        awake_while(m, platform, self.awake, moves | moved | self.overflow.any())
        with m.If(in_flight.o.valid):
            m.d.sync += self.oldest_index.eq(ending.index)
        with m.Elif(started):
            m.d.sync += self.oldest_index.eq(of_started.index)
        with m.Elif(queue.o.valid):
            m.d.sync += self.oldest_index.eq(head.index)
        with m.Else():
            m.d.sync += self.oldest_index.eq(~0)

        arrived, lacks = Signal(ENGINE_BITS), Signal(ENGINE_BITS)
        m.d.sync += [
            arrived.eq(self.given),
            clear.eq(clears | (clear & ~starts)),
            cleared.eq(clears),
        ]
        m.d.comb += clears.eq(waiting & in_flight.i.ready & (lacks == 0) & ~clear)
        for engine in Engine:
            tokens = Signal(TOKEN_COUNTER_BITS, name=f"tokens_{engine.name.lower()}")
            some = Signal(name=f"some_{engine.name.lower()}")  # tokens != 0
            wanted = wait[engine]
            given = arrived[engine]
            taken = clears & wanted
            full = tokens.all()
            m.d.comb += [
                lacks[engine].eq(wanted & ~some & ~given),
                self.missing[engine].eq(waiting & ~clear & wanted & ~some),
            ]
            m.d.sync += self.overflow[engine].eq(given & ~taken & full)
            with m.If(given & ~taken & ~full):
                m.d.sync += [tokens.eq(tokens + 1), some.eq(1)]
            with m.Elif(taken & ~given):
                m.d.sync += [tokens.eq(tokens - 1), some.eq(tokens != 1)]
        return m
