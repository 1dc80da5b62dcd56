"""Instruction words from DRAM."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from twillcore.config import Config
from twillcore.hw.axi import Burst, ReadId, Response, axi4_read, size_code
from twillcore.hw.layouts import INDEX_BITS, ISSUED
from twillcore.hw.ports import ERROR
from twillcore.hw.streams import Queue
from twillcore.isa import HEADER, WORD_BITS, WORD_BYTES, Cause, Opcode


class Fetch(wiring.Component):
    """Read the program from DRAM ahead of its use, until HALT leaves on ``o``.

    The program is read in groups of :data:`GROUP_WORDS` instruction words (128 bytes), one burst
    each, or as many of ``axi_burst_beats`` as that takes. A group is requested as soon as the
    buffer of :data:`BUFFER_WORDS` words has room for all of it, counting what is on its way.
    ``start`` in cycle t gives the first address in t + 2; later ones follow in every cycle while
    there is room; a word that leaves on ``o`` in cycle t makes room for an address in t + 2. A word
    stands on ``o`` in the cycle after its last beat was taken. Data are always taken.

    ``base + program`` must be a multiple of 128 bytes, so that no burst crosses 4 KiB. Words behind
    HALT are read and dropped, hence up to 512 bytes behind the program are read.

    After HALT, or after ``stop``, there are no new requests, and data on their way are dropped.
    ``start`` may come at any time after that; it is kept until the last of them has arrived.

    Members
    -------
    start : In(1), for one cycle
    stop : In(1), for one cycle
    base, program : In(32), byte address and offset of the first word, stable from ``start`` on
    o : Out(stream.Signature(ISSUED)), words with their position in the program
    read : Out(axi4_read(axi_data_bits))
    error : Out(ERROR), AXI_READ_ERROR in place of the word that could not be read; none follow
    """

    GROUP_WORDS = 4
    BUFFER_WORDS = 16

    def __init__(self, config: Config):
        self._config = config
        super().__init__({
            "start": In(1),
            "stop": In(1),
            "base": In(32),
            "program": In(32),
            "o": Out(stream.Signature(ISSUED)),
            "read": Out(axi4_read(config.axi_data_bits)),
            "error": Out(ERROR),
        })  # fmt: skip

    @staticmethod
    def burst_beats(config: Config) -> int:
        """Return the beats of every burst, a power of two."""
        longest = 1 << config.axi_burst_beats.bit_length() - 1
        return min(Fetch.GROUP_WORDS * WORD_BYTES // config.axi_bytes, longest)

    def elaborate(self, platform):
        m = Module()
        config, read, o = self._config, self.read, self.o
        burst_beats = self.burst_beats(config)
        burst_bytes = burst_beats * config.axi_bytes
        group_bursts = self.GROUP_WORDS * WORD_BYTES // burst_bytes

        # One entry of the buffer is a word, or the words of one beat if that holds several.
        entry_bits = max(WORD_BITS, config.axi_data_bits)
        entry_words = entry_bits // WORD_BITS
        entry_beats = entry_bits // config.axi_data_bits
        entry = data.StructLayout({
            "words": data.ArrayLayout(WORD_BITS, entry_words), "failed": 1,
        })  # fmt: skip
        m.submodules.buffer = buffer = Queue(entry, self.BUFFER_WORDS // entry_words)

        taken, halt = Signal(), Signal()
        opcode = o.payload.word[: HEADER[0].bits]
        m.d.comb += [
            taken.eq(o.valid & o.ready),
            halt.eq(taken & (opcode == Opcode.HALT)),
        ]

        # Requests.
        address = Signal(32, reset_less=True)
        room = Signal(range(self.BUFFER_WORDS + 1))
        in_group = Signal(range(max(2, group_bursts)))  # bursts of this group already requested
        outstanding = Signal(range(self.BUFFER_WORDS * WORD_BYTES // burst_bytes + 1))
        request, begin_group, running, draining = (Signal() for _ in range(4))
        accepted, ended = Signal(), Signal()
        m.d.comb += [
            read.arid.eq(ReadId.FETCH),
            read.arlen.eq(burst_beats - 1),
            read.arsize.eq(size_code(config.axi_data_bits)),
            read.arburst.eq(Burst.INCR),
            read.rready.eq(1),
            accepted.eq(read.arvalid & read.arready),
            ended.eq(read.rvalid & read.rlast),
            request.eq(
                running
                & (~read.arvalid | read.arready)
                & ((in_group != 0) | (room >= self.GROUP_WORDS))
            ),
            begin_group.eq(request & (in_group == 0)),
        ]
        with m.If(accepted):
            m.d.sync += read.arvalid.eq(0)
        with m.If(request):
            m.d.sync += [
                read.arvalid.eq(1),
                read.araddr.eq(address),
                address.eq(address + burst_bytes),
            ]
            if group_bursts > 1:
                m.d.sync += in_group.eq(in_group + 1)  # group_bursts is a power of two: wraps
        m.d.sync += [
            room.eq(room + taken - (begin_group << (self.GROUP_WORDS.bit_length() - 1))),
            outstanding.eq(outstanding + accepted - ended),
        ]

        # Beats to entries: the first beat is the lowest.
        entry_ends, failed = Signal(), Signal()
        beat_failed = read.rresp != Response.OKAY
        if entry_beats > 1:
            beats = Signal(entry_bits - config.axi_data_bits, reset_less=True)
            in_entry = Signal(range(entry_beats))
            failed_before = Signal()
            with m.If(read.rvalid):
                m.d.sync += [
                    beats.eq(Cat(beats, read.rdata) >> config.axi_data_bits),
                    in_entry.eq(in_entry + 1),
                    failed_before.eq(failed & ~entry_ends),
                ]
            m.d.comb += [
                entry_ends.eq(in_entry == entry_beats - 1),
                failed.eq(failed_before | beat_failed),
                buffer.i.payload.words.eq(Cat(beats, read.rdata)),
            ]
        else:
            m.d.comb += [
                entry_ends.eq(1),
                failed.eq(beat_failed),
                buffer.i.payload.words.eq(read.rdata),
            ]
        m.d.comb += [
            buffer.i.payload.failed.eq(failed),
            buffer.i.valid.eq(running & read.rvalid & entry_ends),
        ]

        # Entries to words.
        index = Signal(INDEX_BITS)
        reported = Signal()
        head = buffer.o.payload
        m.d.comb += [
            o.payload.index.eq(index),
            o.valid.eq(running & buffer.o.valid & ~head.failed),
            self.error.valid.eq(running & buffer.o.valid & head.failed & ~reported),
            self.error.cause.eq(Cause.AXI_READ_ERROR),
            self.error.index.eq(index),
        ]
        if entry_words > 1:
            select = index[: entry_words.bit_length() - 1]
            m.d.comb += [
                o.payload.word.eq(head.words[select]),
                buffer.o.ready.eq(draining | (taken & (select == entry_words - 1))),
            ]
        else:
            m.d.comb += [o.payload.word.eq(head.words[0]), buffer.o.ready.eq(draining | taken)]
        with m.If(taken):
            m.d.sync += index.eq(index + 1)
        with m.If(self.error.valid):
            m.d.sync += reported.eq(1)

        restart = Signal()
        with m.FSM() as fsm:
            with m.State("Idle"), m.If(self.start | restart):
                m.d.sync += [
                    restart.eq(0),
                    reported.eq(0),
                    index.eq(0),
                    in_group.eq(0),
                    room.eq(self.BUFFER_WORDS),
                    address.eq(self.base + self.program),
                ]
                if entry_beats > 1:
                    m.d.sync += [in_entry.eq(0), failed_before.eq(0)]
                m.next = "Run"
            with m.State("Run"), m.If(halt | self.stop):
                m.next = "Drain"
            with m.State("Drain"):
                with m.If(self.start):
                    m.d.sync += restart.eq(1)
                with m.If(~read.arvalid & (outstanding == 0) & ~buffer.o.valid):
                    m.next = "Idle"
        m.d.comb += [running.eq(fsm.ongoing("Run")), draining.eq(fsm.ongoing("Drain"))]
        return m
