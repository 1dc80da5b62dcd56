"""The STORE engine: on-chip memories to DRAM."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from twillcore.config import Config
from twillcore.hw.axi import Burst, Response, axi4_write, size_code
from twillcore.hw.bursts import Bursts
from twillcore.hw.clocks import awake_while
from twillcore.hw.delay import valid_chain
from twillcore.hw.layouts import INDEX_BITS, activation_word, instruction_layout, wide_word
from twillcore.hw.ports import Activity, engine_members, read_port
from twillcore.hw.streams import Queue, RegisterSlice
from twillcore.isa import Cause, Memory, Opcode
from twillcore.timing import SHARED_READ_CYCLES, ActivationSlot, WideReadSlot

IN_FLIGHT = 8
OUTSTANDING_BURSTS = 16
WAITING_WORDS = 2

#: What an instruction reads.
SOURCE = data.StructLayout({
    "index": INDEX_BITS, "is_wide": 1, "local": 16, "stride": 16, "count": 16, "runs": 12,
})  # fmt: skip

_ADDRESS_BITS = 17  # one more than addresses have, to see them pass the end


class StoreEngine(wiring.Component):
    """Execute STORE: stream runs of activation or wide words to DRAM.

    Three parts work side by side. The *address part* accepts an instruction (transfer in cycle t),
    checks it (t + 1), computes the length of a run (t + 2), and hands it to
    :class:`twillcore.hw.bursts.Bursts` (t + 3, if it has finished the one before): the first
    address stands on ``write`` in t + 6. The next instruction is accepted from t + 4 on, while
    fewer than :data:`IN_FLIGHT` have not retired; addresses pause at :data:`OUTSTANDING_BURSTS`
    bursts without a response.

    The *reader* may read from t + 3 on: one word in every STORE_READ slot in which fewer than
    :data:`WAITING_WORDS` words wait. A word that is read in cycle s waits from s + 3 on.

    The *data part* takes a waiting word when it is idle or hands on the last beat of the word
    before it, and hands its beats on from the next cycle on, through a register slice: each stands
    on ``write`` a cycle later. A burst's data go no earlier than its address, but do not wait for
    it to be taken. So the port moves a beat per cycle if a word has 8 beats or more, else a word
    per frame.

    An instruction retires in the cycle of its last response.

    Restrictions on operands (else ILLEGAL_INSTRUCTION): the memory is ACTIVATION or WIDE, DRAM
    addresses and strides are multiples of the beat, as is ``base``. An address beyond the end of
    its memory is found when it is to be read. After either, the engine goes no further.

    Members
    -------
    phase, instruction, retire, activity, error
        See :func:`twillcore.hw.ports.engine_members`. BUSY: a beat is sent.
    base : In(32)
    write : Out(axi4_write(axi_data_bits))
    activation_read, wide_read
        Read ports, used in ``STORE_READ`` slots only.
    """

    def __init__(self, config: Config):
        self._config = config
        self._word_bits = (2 if config.wide_depth else 1) * config.word_bytes * 8  # the longest
        super().__init__(
            engine_members()
            | {
                "base": In(32),
                "write": Out(axi4_write(config.axi_data_bits)),
                "activation_read": Out(read_port(16, activation_word(config))),
                "wide_read": Out(read_port(16, wide_word(config))),
            }
        )
        self.awake = Signal()  # of gated machines: twillcore.hw.clocks

    def elaborate(self, platform):
        m = Module()
        word = data.StructLayout({"is_wide": 1, "bits": self._word_bits})
        m.submodules.sources = sources = Queue(SOURCE, IN_FLIGHT)
        m.submodules.words = words = Queue(word, WAITING_WORDS)
        m.submodules.lengths = lengths = Queue(8, OUTSTANDING_BURSTS)

        in_flight = Signal(range(IN_FLIGHT + 1))
        accepted, sent = Signal(), Signal()
        m.d.comb += accepted.eq(self.instruction.valid & self.instruction.ready)
        m.d.sync += in_flight.eq(in_flight + accepted - self.retire)

        self._address_part(m, in_flight, sources.i, lengths.i)
        self._reader(m, sources.o, words)
        self._data_part(m, words.o, lengths.o, sent)

        with m.If(sent):
            m.d.comb += self.activity.eq(Activity.BUSY)
        with m.Elif(in_flight != 0):
            m.d.comb += self.activity.eq(Activity.BLOCKED)
        awake_while(m, platform, self.awake, self.instruction.valid | (in_flight != 0))
        return m

    def _raise(self, cause, index):
        return [self.error.valid.eq(1), self.error.cause.eq(cause), self.error.index.eq(index)]

    def _address_part(self, m, in_flight, source, lengths):
        """Check instructions, announce bursts, and wait for their responses."""
        config, write = self._config, self.write
        m.submodules.bursts = bursts = Bursts(config)
        response = data.StructLayout({"index": INDEX_BITS, "last": 1})
        m.submodules.responses = responses = Queue(response, OUTSTANDING_BURSTS)
        m.submodules.indexes = indexes = Queue(INDEX_BITS, IN_FLIGHT)

        index = Signal(INDEX_BITS, reset_less=True)
        word = Signal(instruction_layout(Opcode.STORE), reset_less=True)
        last_memory = Memory.WIDE if config.wide_depth else Memory.ACTIVATION
        is_wide = (word.memory == Memory.WIDE) & (last_memory == Memory.WIDE)
        offset_bits = (config.axi_bytes - 1).bit_length()
        illegal = Signal()
        m.d.comb += [
            illegal.eq(
                (word.memory > last_memory)
                | (word.dram | word.dram_stride)[:offset_bits].any()
                | (word.count == 0)
                | (word.runs == 0)
            ),
            source.payload.index.eq(index),
            source.payload.is_wide.eq(is_wide),
            source.payload.local.eq(word.local),
            source.payload.stride.eq(word.local_stride),
            source.payload.count.eq(word.count),
            source.payload.runs.eq(word.runs),
            indexes.i.payload.eq(index),
            indexes.i.valid.eq(source.valid),
        ]
        with m.FSM():
            with m.State("Accept"):
                m.d.comb += self.instruction.ready.eq(in_flight < IN_FLIGHT)
                m.d.sync += [
                    index.eq(self.instruction.payload.index),
                    word.eq(self.instruction.payload.word),
                ]
                with m.If(self.instruction.valid & self.instruction.ready):
                    m.next = "Check"
            with m.State("Check"):
                with m.If(illegal):
                    m.d.comb += self._raise(Cause.ILLEGAL_INSTRUCTION, index)
                    m.next = "Refuse"
                with m.Else():
                    m.d.comb += source.valid.eq(1)  # there is room: see IN_FLIGHT
                    m.next = "Length"
            with m.State("Length"):
                word_beats = config.word_bytes // config.axi_bytes
                beats = word.count * word_beats
                m.d.sync += [
                    bursts.i.payload.address.eq(self.base + word.dram),
                    bursts.i.payload.stride.eq(word.dram_stride),
                    bursts.i.payload.beats.eq(Mux(is_wide, beats << 1, beats)),
                    bursts.i.payload.runs.eq(word.runs),
                ]
                m.next = "Request"
            with m.State("Request"):
                m.d.comb += bursts.i.valid.eq(1)
                with m.If(bursts.i.ready):
                    m.next = "Accept"
            with m.State("Refuse"):
                pass

        # The address has a register of its own: a slave may wait for data before it takes it.
        burst = bursts.o.payload
        announced = Signal()
        m.d.comb += [
            write.awsize.eq(size_code(config.axi_data_bits)),
            write.awburst.eq(Burst.INCR),
            bursts.o.ready.eq((~write.awvalid | write.awready) & lengths.ready & responses.i.ready),
            announced.eq(bursts.o.valid & bursts.o.ready),
            lengths.payload.eq(burst.length),
            lengths.valid.eq(announced),
            responses.i.payload.index.eq(indexes.o.payload),
            responses.i.payload.last.eq(burst.last),
            responses.i.valid.eq(announced),
            indexes.o.ready.eq(announced & burst.last),
        ]
        with m.If(write.awready):
            m.d.sync += write.awvalid.eq(0)
        with m.If(announced):
            m.d.sync += [
                write.awvalid.eq(1),
                write.awaddr.eq(burst.address),
                write.awlen.eq(burst.length),
            ]

        m.d.comb += [
            write.bready.eq(1),
            responses.o.ready.eq(write.bvalid),
            self.retire.eq(write.bvalid & responses.o.payload.last),
        ]
        with m.If(write.bvalid & (write.bresp != Response.OKAY)):
            m.d.comb += self._raise(Cause.AXI_WRITE_ERROR, responses.o.payload.index)

    def _reader(self, m, sources, words):
        """Read words in STORE_READ slots."""
        config = self._config
        active = Signal()
        current = Signal(SOURCE, reset_less=True)
        words_left, runs_left = (Signal(n, reset_less=True) for n in (16, 12))
        last_word, last_run = Signal(), Signal()  # words_left == 1, runs_left == 1
        address, run_address = (Signal(_ADDRESS_BITS, reset_less=True) for _ in range(2))

        wanted, in_range, read, run_ends, ends = (Signal() for _ in range(5))
        assert ActivationSlot.STORE_READ == WideReadSlot.STORE_READ

        def is_inside(of, is_wide):
            of_wide = of < config.wide_depth if config.wide_depth else Const(0)
            return Mux(is_wide, of_wide, of < config.activation_depth)

        # An address changes a frame before it is used, but for an instruction's first one.
        m.d.sync += in_range.eq(is_inside(address, current.is_wide))
        m.d.comb += [
            wanted.eq(
                active & (self.phase == ActivationSlot.STORE_READ) & (words.level < WAITING_WORDS)
            ),
            read.eq(wanted & in_range),
            run_ends.eq(read & last_word),
            ends.eq(run_ends & last_run),
            self.activation_read.address.eq(address),
            self.activation_read.enable.eq(read & ~current.is_wide),
            self.wide_read.address.eq(address),
            self.wide_read.enable.eq(read & current.is_wide),
        ]
        with m.If(wanted & ~in_range):
            m.d.comb += self._raise(Cause.ADDRESS_OUT_OF_RANGE, current.index)
        with m.If(run_ends):
            next_run = run_address + current.stride
            m.d.sync += [
                words_left.eq(current.count),
                last_word.eq(current.count == 1),
                runs_left.eq(runs_left - 1),
                last_run.eq(runs_left == 2),
                address.eq(next_run),
                run_address.eq(next_run),
            ]
        with m.Elif(read):
            m.d.sync += [
                words_left.eq(words_left - 1),
                last_word.eq(words_left == 2),
                address.eq(address + 1),
            ]
        with m.If(~active | ends):
            following = sources.payload
            m.d.comb += sources.ready.eq(1)
            m.d.sync += [
                active.eq(sources.valid),
                current.eq(following),
                words_left.eq(following.count),
                last_word.eq(following.count == 1),
                runs_left.eq(following.runs),
                last_run.eq(following.runs == 1),
                address.eq(following.local),
                run_address.eq(following.local),
                in_range.eq(is_inside(following.local, following.is_wide)),
            ]

        *_, arrives = valid_chain(m, read, SHARED_READ_CYCLES, "arrives")
        *_, arrives_wide = valid_chain(m, current.is_wide, SHARED_READ_CYCLES, "arrives_wide")
        m.d.comb += [
            words.i.valid.eq(arrives),
            words.i.payload.is_wide.eq(arrives_wide),
            words.i.payload.bits.eq(
                Mux(arrives_wide, Cat(self.wide_read.data), Cat(self.activation_read.data))
            ),
        ]

    def _data_part(self, m, words, lengths, sent):
        """Send the beats of words, the lowest first."""
        config, write = self._config, self.write
        word_beats = config.word_bytes // config.axi_bytes
        valid = Signal()
        bits = Signal(self._word_bits, reset_less=True)
        left = Signal(range(2 * word_beats))  # beats of the word after this one
        burst_beat = Signal(8)
        handed_on = Signal()
        word_ends = Signal()
        # ``wready``, which comes from outside, does not reach the word's register.
        beat = data.StructLayout({"data": config.axi_data_bits, "last": 1})
        m.submodules.beats = beats = RegisterSlice(beat)
        last = beats.i.payload.last
        m.d.comb += [
            beats.i.payload.data.eq(bits),
            last.eq(burst_beat == lengths.payload),
            beats.i.valid.eq(valid & lengths.valid),
            handed_on.eq(beats.i.valid & beats.i.ready),
            word_ends.eq(handed_on & (left == 0)),
            lengths.ready.eq(handed_on & last),
            write.wdata.eq(beats.o.payload.data),
            write.wstrb.eq(~0),
            write.wlast.eq(beats.o.payload.last),
            write.wvalid.eq(beats.o.valid),
            beats.o.ready.eq(write.wready),
            sent.eq(write.wvalid & write.wready),
        ]
        with m.If(handed_on):
            m.d.sync += [
                bits.eq(bits >> config.axi_data_bits),
                left.eq(left - 1),
                burst_beat.eq(Mux(last, 0, burst_beat + 1)),
            ]
        with m.If(~valid | word_ends):
            m.d.comb += words.ready.eq(1)
            m.d.sync += [
                valid.eq(words.valid),
                bits.eq(words.payload.bits),
                left.eq(Mux(words.payload.is_wide, 2 * word_beats - 1, word_beats - 1)),
            ]
