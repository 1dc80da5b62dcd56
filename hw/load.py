"""The LOAD engine: DRAM to on-chip memories."""

from amaranth.hdl import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from twillcore.config import FRAME_CYCLES, Config
from twillcore.hw.axi import Burst, ReadId, Response, axi4_read, size_code
from twillcore.hw.bursts import Bursts
from twillcore.hw.clocks import awake_while
from twillcore.hw.layouts import (
    INDEX_BITS,
    activation_word,
    instruction_layout,
    plane_row,
    weight_row,
    wide_word,
)
from twillcore.hw.ports import Activity, engine_members, write_port
from twillcore.hw.streams import Queue
from twillcore.isa import (
    ENTRY_MEMORIES,
    PARAMETER_BYTES,
    TABLE_BYTES,
    Cause,
    Memory,
    Opcode,
    WeightFormat,
)
from twillcore.timing import ActivationSlot, WideWriteSlot
from twillcore.weights import plane_row_bytes, weight_row_bytes

IN_FLIGHT = 8
DIVISION_CYCLES = 16

#: What the data of an instruction become. ``rows`` and addresses count rows of the destination.
DESTINATION = data.StructLayout({
    "index": INDEX_BITS,
    "memory": 3,
    "format": 2,
    "beats": 5,
    "local": 16,
    "stride": 16,
    "rows": 16,
    "runs": 12,
})  # fmt: skip

_ADDRESS_BITS = 17  # one more than addresses have, to see them pass the end


def row_beats(memory: Memory, config: Config) -> int:
    """Return the beats that make one row (or word) of ``memory``, its padding included."""
    row_bytes = {
        Memory.ACTIVATION: config.word_bytes,
        Memory.WIDE: 2 * config.word_bytes,
        Memory.WEIGHT: weight_row_bytes(config),
        Memory.LUT_WEIGHT: plane_row_bytes(config),
    }
    return max(1, row_bytes.get(memory, PARAMETER_BYTES) // config.axi_bytes)


def depth_rows(memory: Memory, config: Config) -> int:
    """Return the rows (or words) of ``memory``, as LOAD counts them; 0 if it is absent."""
    entries = config.entries_per_beat
    return {
        Memory.ACTIVATION: config.activation_depth,
        Memory.WIDE: config.wide_depth,
        Memory.WEIGHT: config.weight_depth,
        Memory.PARAMETER: config.parameter_depth // entries,
        Memory.NORM: config.norm_depth // entries,
        Memory.TABLE: TABLE_BYTES // PARAMETER_BYTES // entries if config.function_table else 0,
        Memory.LUT_WEIGHT: config.lut_weight_depth,
        Memory.TAP: config.tap_depth // entries,
    }.get(memory, 0)


def _lowest_set(bits):
    """Return the position of the lowest set bit of ``bits`` (of the last one if there is none)."""
    position = C(len(bits) - 1, range(len(bits)))
    for i in reversed(range(len(bits) - 1)):
        position = Mux(bits[i], i, position)
    return position


def _times(value, factor):
    """Return ``value * factor`` by additions: a multiplier block would be slower and far away."""
    terms = [value << bit for bit in range(factor.bit_length()) if factor >> bit & 1]
    return sum(terms[1:], terms[0])


class LoadEngine(wiring.Component):
    """Execute LOAD: stream runs from DRAM into a memory, expanding sparse weights.

    Two stages. The *address stage* accepts an instruction (transfer in cycle t), checks it (t + 1),
    computes the rows of a run (t + 2, or t + 18 for BITMAP, which takes a division) and its beats
    (t + 3, t + 19), and hands it to :class:`twillcore.hw.bursts.Bursts` (t + 4, if it has finished
    the one before): the first burst stands on ``read`` in t + 6. The next instruction is accepted
    from t + 5 on, while fewer than :data:`IN_FLIGHT` have not retired. So reading runs ahead of the
    data by whole instructions, as far as the memory accepts bursts.

    The *data stage* takes beats in order. A row (of any memory but the two below) that is complete
    in cycle c is written in c + 2, so these are taken at one beat per cycle without a pause.
    Activation and wide words move to a second register in c + 1, and are written in the first
    LOAD_WRITE slot from c + 2 on. While that register holds a word which is not being written, the
    next complete word waits in the first, and no beat is taken; with 8 beats per word or more
    that never happens.

    An instruction retires in the cycle after its last row or word was written, or in the cycle
    after its predecessor if that is later.

    Restrictions on operands (else ILLEGAL_INSTRUCTION): DRAM addresses and strides are multiples of
    the beat; for PARAMETER, NORM, TABLE and TAP ``local``, ``local_stride`` and ``count`` are
    multiples of the entries in a beat; for BITMAP ``count`` is a multiple of ``beats``. An address
    beyond the end of its memory is found when it is to be written. After an illegal instruction the
    engine accepts no more; data on their way are still taken. ``base`` is a multiple of the beat.

    Members
    -------
    phase, instruction, retire, activity, error
        See :func:`twillcore.hw.ports.engine_members`. BUSY: a beat is taken.
    base : In(32)
    read : Out(axi4_read(axi_data_bits))
    activation_write, wide_write
        Write ports, used in ``LOAD_WRITE`` slots only.
    weight_write : Out(write_port(16, weight_row(config)))
    lut_weight_write : Out(write_port(16, plane_row(config)))
        With a LUT core only.
    parameter_write, norm_write, tap_write
        Write ports; addresses count rows of ``config.entries_per_beat`` entries.
    table_write
        Write port; addresses count rows of 4 * ``config.entries_per_beat`` int16.
    """

    def __init__(self, config: Config):
        self._config = config
        entries = config.entries_per_beat
        entry_row = data.ArrayLayout(64, entries)
        table_row = data.ArrayLayout(signed(16), 4 * entries)
        table_bits = (TABLE_BYTES // PARAMETER_BYTES // entries - 1).bit_length()
        super().__init__(
            engine_members()
            | {
                "base": In(32),
                "read": Out(axi4_read(config.axi_data_bits)),
                "activation_write": Out(write_port(16, activation_word(config))),
                "wide_write": Out(write_port(16, wide_word(config))),
                "weight_write": Out(write_port(16, weight_row(config))),
                "parameter_write": Out(write_port(16, entry_row)),
                "norm_write": Out(write_port(16, entry_row)),
                "tap_write": Out(write_port(16, entry_row)),
                "table_write": Out(write_port(table_bits, table_row)),
            }
            | (
                {"lut_weight_write": Out(write_port(16, plane_row(config)))}
                if config.lut_columns
                else {}
            )
        )
        self.awake = Signal()  # of gated machines: twillcore.hw.clocks

    def elaborate(self, platform):
        m = Module()
        m.submodules.destinations = destinations = Queue(DESTINATION, IN_FLIGHT)
        in_flight = Signal(range(IN_FLIGHT + 1))
        accepted, beat_taken = Signal(), Signal()
        m.d.comb += accepted.eq(self.instruction.valid & self.instruction.ready)
        m.d.sync += in_flight.eq(in_flight + accepted - self.retire)

        self._address_stage(m, in_flight, destinations.i)
        self._data_stage(m, destinations.o, beat_taken)

        with m.If(beat_taken):
            m.d.comb += self.activity.eq(Activity.BUSY)
        with m.Elif(in_flight != 0):
            m.d.comb += self.activity.eq(Activity.BLOCKED)
        awake_while(m, platform, self.awake, self.instruction.valid | (in_flight != 0))
        return m

    def _raise(self, cause, index):
        return [self.error.valid.eq(1), self.error.cause.eq(cause), self.error.index.eq(index)]

    def _address_stage(self, m, in_flight, destination):
        """Check instructions, and ask the memory for their data."""
        config, read = self._config, self.read
        m.submodules.bursts = bursts = Bursts(config)
        m.d.comb += [
            read.arid.eq(ReadId.LOAD),
            read.araddr.eq(bursts.o.payload.address),
            read.arlen.eq(bursts.o.payload.length),
            read.arsize.eq(size_code(config.axi_data_bits)),
            read.arburst.eq(Burst.INCR),
            read.arvalid.eq(bursts.o.valid),
            bursts.o.ready.eq(read.arready),
        ]

        index = Signal(INDEX_BITS, reset_less=True)
        word = Signal(instruction_layout(Opcode.LOAD), reset_less=True)
        illegal = Signal()
        is_weight = word.memory == Memory.WEIGHT
        is_bitmap = word.format == WeightFormat.BITMAP
        entries = config.entries_per_beat
        in_entries = Signal()  # count and addresses are in entries, not in rows
        rows, local, stride = Signal(16), Signal(16), Signal(16)
        m.d.comb += [rows.eq(word.count), local.eq(word.local), stride.eq(word.local_stride)]
        with m.If(in_entries):
            m.d.comb += [
                rows.eq(word.count // entries),
                local.eq(word.local // entries),
                stride.eq(word.local_stride // entries),
            ]

        offset_bits = (config.axi_bytes - 1).bit_length()
        entry_bits = (entries - 1).bit_length()
        bad_memory, bad_format = Signal(), Signal()
        with m.Switch(word.memory):
            for memory in Memory:
                if depth_rows(memory, config):
                    with m.Case(memory):
                        m.d.comb += in_entries.eq(memory in ENTRY_MEMORIES)
            absent = [C(m_, 3) for m_ in range(8) if not self._present(m_)]
            for memory in absent:
                with m.Case(memory.value):
                    m.d.comb += bad_memory.eq(1)
        with m.Switch(word.format):
            with m.Case(WeightFormat.DENSE):
                pass
            with m.Case(WeightFormat.BITMAP):
                m.d.comb += bad_format.eq(
                    ~is_weight | (word.beats == 0) | (word.beats > config.block)
                )
            with m.Case(WeightFormat.INDEX):
                m.d.comb += bad_format.eq(~is_weight)
            with m.Default():
                m.d.comb += bad_format.eq(1)
        misaligned = (word.dram | word.dram_stride)[:offset_bits].any()
        partial = (word.count | word.local | word.local_stride)[:entry_bits].any() & in_entries
        m.d.comb += illegal.eq(
            bad_memory | bad_format | misaligned | partial | (word.count == 0) | (word.runs == 0)
        )
        m.d.comb += [
            destination.payload.index.eq(index),
            destination.payload.memory.eq(word.memory),
            destination.payload.format.eq(word.format),
            destination.payload.beats.eq(word.beats),
            destination.payload.local.eq(local),
            destination.payload.stride.eq(stride),
            destination.payload.rows.eq(rows),
            destination.payload.runs.eq(word.runs),
        ]

        # Blocks of a BITMAP run: count / beats, one bit per cycle.
        quotient = Signal(DIVISION_CYCLES, reset_less=True)
        remainder = Signal(5)
        step = Signal(range(DIVISION_CYCLES))
        candidate = Cat(quotient[-1], remainder)
        fits = candidate >= word.beats

        stored = Signal(18, reset_less=True)  # rows of one run, headers included

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
                m.d.sync += [quotient.eq(word.count), remainder.eq(0), step.eq(0)]
                with m.If(illegal):
                    m.d.comb += self._raise(Cause.ILLEGAL_INSTRUCTION, index)
                    m.next = "Refuse"
                with m.Else():
                    m.d.comb += destination.valid.eq(1)  # there is room: see IN_FLIGHT
                    m.next = "Rows"
                    with m.If(is_bitmap):
                        m.next = "Divide"
            with m.State("Divide"):
                m.d.sync += [
                    quotient.eq(Cat(fits, quotient)),
                    remainder.eq(Mux(fits, candidate - word.beats, candidate)),
                    step.eq(step + 1),
                ]
                with m.If(step == DIVISION_CYCLES - 1):
                    m.next = "Rows"
            with m.State("Rows"):
                m.d.sync += stored.eq(rows)
                with m.If(is_bitmap):
                    m.d.sync += stored.eq(rows + quotient * (config.block // 8))
                with m.Elif(word.format == WeightFormat.INDEX):
                    m.d.sync += stored.eq(rows + ((rows + 1) >> 1))
                m.next = "Length"
                with m.If(is_bitmap & (remainder != 0)):
                    m.d.comb += self._raise(Cause.ILLEGAL_INSTRUCTION, index)
                    m.next = "Refuse"
            with m.State("Length"):
                m.d.sync += [
                    bursts.i.payload.address.eq(self.base + word.dram),
                    bursts.i.payload.stride.eq(word.dram_stride),
                    bursts.i.payload.runs.eq(word.runs),
                ]
                with m.Switch(word.memory):
                    for memory in Memory:
                        with m.Case(memory):
                            beats = _times(stored, row_beats(memory, config))
                            m.d.sync += bursts.i.payload.beats.eq(beats)
                m.next = "Request"
            with m.State("Request"):
                m.d.comb += bursts.i.valid.eq(1)
                with m.If(bursts.i.ready):
                    m.next = "Accept"
            with m.State("Refuse"):
                pass

    def _present(self, number):
        return number in list(Memory) and depth_rows(Memory(number), self._config) > 0

    def _data_stage(self, m, destinations, beat_taken):
        """Assemble beats to rows and write them."""
        config, read = self._config, self.read
        block, headers = config.block, config.block // 8

        # Where the next beat belongs.
        active = Signal()
        current = Signal(DESTINATION, reset_less=True)
        number = Signal(range(IN_FLIGHT))  # of the instruction, modulo IN_FLIGHT
        last_beat = Signal(range(max(row_beats(memory, config) for memory in Memory)))
        beat = Signal.like(last_beat)
        group_row = Signal(5)  # counts through what repeats: headers and their rows, or a block
        rows_left, runs_left = (Signal(n, reset_less=True) for n in (16, 12))
        last_row, last_run = Signal(), Signal()  # rows_left == 1, runs_left == 1
        address, run_address = (Signal(_ADDRESS_BITS, reset_less=True) for _ in range(2))
        depth = Signal(_ADDRESS_BITS, reset_less=True)

        row_ends, is_header, group_ends, run_ends, ends = (Signal() for _ in range(5))
        last_group_row = Signal(5)
        with m.Switch(current.format):
            with m.Case(WeightFormat.BITMAP):
                m.d.comb += [
                    is_header.eq(group_row < headers),
                    last_group_row.eq(current.beats + (headers - 1)),
                ]
            with m.Case(WeightFormat.INDEX):
                m.d.comb += [is_header.eq(group_row == 0), last_group_row.eq(2)]
            with m.Default():
                m.d.comb += last_group_row.eq(block - 1)
        m.d.comb += [
            beat_taken.eq(read.rvalid & read.rready),
            row_ends.eq(beat_taken & (beat == last_beat)),
            group_ends.eq(group_row == last_group_row),
            run_ends.eq(row_ends & ~is_header & last_row),
            ends.eq(run_ends & last_run),
        ]
        with m.If(beat_taken):
            m.d.sync += beat.eq(Mux(row_ends, 0, beat + 1))
        with m.If(row_ends):
            m.d.sync += group_row.eq(Mux(group_ends | run_ends, 0, group_row + 1))
            with m.If(run_ends):
                next_run = run_address + current.stride
                m.d.sync += [
                    rows_left.eq(current.rows),
                    last_row.eq(current.rows == 1),
                    runs_left.eq(runs_left - 1),
                    last_run.eq(runs_left == 2),
                    address.eq(next_run),
                    run_address.eq(next_run),
                ]
            with m.Elif(~is_header):
                m.d.sync += [
                    rows_left.eq(rows_left - 1),
                    last_row.eq(rows_left == 2),
                    address.eq(address + 1),
                ]

        with m.If(~active | ends):
            following = destinations.payload
            m.d.comb += destinations.ready.eq(1)
            m.d.sync += [
                active.eq(destinations.valid),
                current.eq(following),
                rows_left.eq(following.rows),
                last_row.eq(following.rows == 1),
                runs_left.eq(following.runs),
                last_run.eq(following.runs == 1),
                address.eq(following.local),
                run_address.eq(following.local),
            ]
            with m.If(destinations.valid):
                m.d.sync += number.eq(number + 1)
            with m.Switch(following.memory):
                for memory in Memory:
                    with m.Case(memory):
                        m.d.sync += [
                            last_beat.eq(row_beats(memory, config) - 1),
                            depth.eq(depth_rows(memory, config)),
                        ]

        # A complete row, its last beat uppermost, and what it is.
        present = [memory for memory in Memory if self._present(memory)]
        row_bits = max(row_beats(memory, config) for memory in present) * config.axi_data_bits
        row = Signal(row_bits, reset_less=True)
        complete = Signal()
        kind = Signal(data.StructLayout({
            "destination": DESTINATION,
            "number": number.shape(),
            "address": _ADDRESS_BITS,
            "is_header": 1,
            "group_row": 5,
            "in_range": 1,
            "ends": 1,
        }))  # fmt: skip
        with m.If(beat_taken):
            m.d.sync += row.eq(Cat(row, read.rdata) >> config.axi_data_bits)
        with m.If(row_ends):
            m.d.sync += [
                kind.destination.eq(current),
                kind.number.eq(number),
                kind.address.eq(address),
                kind.is_header.eq(is_header),
                kind.group_row.eq(group_row),
                kind.in_range.eq(address < depth),
                kind.ends.eq(ends),
            ]

        # Activation and wide words wait in a second register for their slot.
        has_wide = Memory.WIDE in present
        word = Signal((1 + has_wide) * config.word_bytes * 8, reset_less=True)
        word_valid, word_is_wide, word_ends = Signal(), Signal(), Signal()
        word_address = Signal(16, reset_less=True)
        word_number = Signal.like(number)
        is_word, written, word_written, stalled = (Signal() for _ in range(4))
        assert ActivationSlot.LOAD_WRITE == WideWriteSlot.LOAD_WRITE
        in_slot = Signal()  # a register, since it decides much in a memory far away
        m.d.sync += in_slot.eq(self.phase == (ActivationSlot.LOAD_WRITE - 1) % FRAME_CYCLES)
        m.d.comb += [
            word_written.eq(word_valid & in_slot),
            is_word.eq(kind.destination.memory <= Memory.WIDE),
            stalled.eq(complete & is_word & word_valid & ~word_written),
            written.eq(complete & ~stalled & ~kind.is_header & kind.in_range),
            read.rready.eq(active & ~stalled),
        ]
        with m.If(~stalled):
            m.d.sync += complete.eq(row_ends)
        with m.If(written & is_word):
            is_wide = (kind.destination.memory == Memory.WIDE) & has_wide
            m.d.sync += [
                word.eq(Mux(is_wide, self._top(row, (1 + has_wide) * config.word_bytes),
                            self._top(row, config.word_bytes))),
                word_is_wide.eq(is_wide),
                word_address.eq(kind.address),
                word_number.eq(kind.number),
                word_ends.eq(kind.ends),
                word_valid.eq(1),
            ]  # fmt: skip
        with m.Elif(word_written):
            m.d.sync += word_valid.eq(0)
        m.d.comb += [
            self.activation_write.address.eq(word_address),
            self.activation_write.enable.eq(word_written & ~word_is_wide),
            Cat(self.activation_write.data).eq(word),
            self.wide_write.address.eq(word_address),
            self.wide_write.enable.eq(word_written & word_is_wide),
            Cat(self.wide_write.data).eq(word),
        ]

        # All others are written in the next cycle, through a register: block RAM is far away.
        row_written = Signal()
        written_kind = Signal.like(kind)
        written_row = Signal.like(row)
        m.d.sync += [
            row_written.eq(written & ~is_word),
            written_kind.eq(kind),
            written_row.eq(row),
        ]
        for memory, port in (
            (Memory.WEIGHT, self.weight_write),
            *([(Memory.LUT_WEIGHT, self.lut_weight_write)] if config.lut_columns else []),
            (Memory.PARAMETER, self.parameter_write),
            (Memory.NORM, self.norm_write),
            (Memory.TAP, self.tap_write),
            (Memory.TABLE, self.table_write),
        ):
            row_bytes = row_beats(memory, config) * config.axi_bytes
            target = port.data.weight if memory == Memory.WEIGHT else port.data
            enable = Signal(name=f"write_{memory.name.lower()}")
            m.d.sync += enable.eq(written & (kind.destination.memory == memory))
            m.d.comb += [
                port.address.eq(written_kind.address),
                port.enable.eq(enable),
                Cat(target).eq(self._top(written_row, row_bytes)[: len(Cat(target))]),  # no padding
            ]
        weight_bytes = row_beats(Memory.WEIGHT, config) * config.axi_bytes
        self._positions(m, self._top(row, weight_bytes), complete, kind)

        # Instructions retire in order, though words may still wait when later rows are written.
        done = Signal(IN_FLIGHT)
        oldest = Signal.like(number, init=1)  # the first instruction is number 1
        retired = Signal(IN_FLIGHT)
        row_done = Mux(row_written & written_kind.ends, 1 << written_kind.number, 0)
        word_done = Mux(word_written & word_ends, 1 << word_number, 0)
        m.d.comb += [self.retire.eq((done >> oldest)[0]), retired.eq(self.retire << oldest)]
        m.d.sync += done.eq((done & ~retired) | row_done | word_done)
        with m.If(self.retire):
            m.d.sync += oldest.eq(oldest + 1)

        with m.If(beat_taken & (read.rresp != Response.OKAY)):
            m.d.comb += self._raise(Cause.AXI_READ_ERROR, current.index)
        with m.Elif(complete & ~kind.is_header & ~kind.in_range):
            m.d.comb += self._raise(Cause.ADDRESS_OUT_OF_RANGE, kind.destination.index)

    def _positions(self, m, row, complete, kind):
        """Drive the positions that are written with a weight row, from registers."""
        config = self._config
        format = kind.destination.format
        for column in range(config.dsp_columns):
            # The bitmap of what is left of the block, or the byte of an INDEX header.
            header = Signal(config.block, reset_less=True, name=f"header_{column}")
            position = Signal(config.index_bits, name=f"position_{column}", reset_less=True)
            m.d.sync += self.weight_write.data.index[column].eq(position)
            with m.If(complete & kind.is_header), m.Switch(kind.group_row):
                for byte in range(config.block // 8):
                    with m.Case(byte):
                        m.d.sync += header.word_select(byte, 8).eq(row.word_select(column, 8))
            with m.Elif(complete & (format == WeightFormat.BITMAP)):
                m.d.sync += header.eq(header & (header - 1))
            with m.Switch(format):
                with m.Case(WeightFormat.BITMAP):
                    m.d.comb += position.eq(_lowest_set(header))
                with m.Case(WeightFormat.INDEX):
                    m.d.comb += position.eq(Mux(kind.group_row == 1, header[:4], header[4:8]))
                with m.Default():
                    m.d.comb += position.eq(kind.group_row)

    @staticmethod
    def _top(row, size):
        """Return the last ``size`` bytes that came into ``row``."""
        return row[len(row) - 8 * size :]
