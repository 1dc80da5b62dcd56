"""From accumulators to activations: the output side of the GEMM core."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from twillcore.config import FRAME_CYCLES, Config
from twillcore.hw.clocks import awake_while
from twillcore.hw.delay import valid_chain
from twillcore.hw.drain_pipeline import DrainPipeline
from twillcore.hw.dsp_array import PACKING_FAMILIES
from twillcore.hw.gated_add import chain_add
from twillcore.hw.layouts import LANE_SCALE, PARAMETER_LAYOUT, activation_word, wide_word
from twillcore.hw.lut_array import beat_to_shadow
from twillcore.hw.multiplier import multiply_wide
from twillcore.hw.ports import PHASE_BITS, read_port, write_port
from twillcore.hw.sequencer import TILE
from twillcore.isa import Function
from twillcore.numerics import TABLE_ENTRIES, TABLE_FRACTION_BITS, TABLE_INPUT_BITS
from twillcore.timing import (
    SHARED_READ_CYCLES,
    ActivationSlot,
    WideReadSlot,
    WideWriteSlot,
    window_cycles,
)


def table_port(config: Config):
    """Return the port through which LOAD writes function tables: 4 entries per 64 bits of bus."""
    entries = 4 * config.entries_per_beat
    return write_port(ceil_log2(TABLE_ENTRIES // entries), data.ArrayLayout(signed(16), entries))


def drain_source(config: Config):
    """Return what a core and the drain say to each other, seen from the core."""
    return wiring.Signature({
        "tile": Out(wiring.Signature({"valid": Out(1), "payload": Out(TILE)})),
        "release": In(1),
        "column": Out(data.ArrayLayout(signed(config.accumulator_bits), config.lanes)),
        "shift": In(1),
        "done": In(1),
    })  # fmt: skip


class Drain(wiring.Component):
    """Scale, add the residual, apply the function, narrow, and write: a column of lanes per cycle.

    Bit-exact with :mod:`twillcore.numerics`: ``scale_accumulator``, ``add_residual``, ``relu`` or
    ``look_up``, ``narrow``.

    A tile's drain starts in a cycle S with phase :attr:`START_PHASE`, at the earliest
    :attr:`BEAT_TO_START` cycles after the last beat (``window_cycles`` before which was the step
    that ``tile`` follows) and as many cycles after the last start as that tile had columns. From
    then on all is fixed: column c enters the pipeline in cycle ``S + 2 + c`` (the array's
    ``shift``), residual word j is read in ``S + 4 + j * block`` (in the cycle before if it is
    narrow), output word j is written in ``S + LATENCY + (j + 1) * block``, row maxima in the cycle
    of the last word. ``done`` marks the last word of an instruction. START_PHASE is such that reads
    and writes meet their slots. There is no backpressure: ``release`` says from when on a tile may
    end.

    With a LUT core there are two sources, whose tiles drain one at a time: of two that wait, the
    one whose ``tile`` came first, of two that came in one cycle the DSP core's. A tile of the LUT
    core starts :func:`twillcore.hw.lut_array.beat_to_shadow` - 2 cycles after its last beat at the
    earliest. It keeps no row maxima, and does not disturb those of the other core.

    Members
    -------
    phase : In
    tile : In
        Strobe with the description of a tile, in the cycle after the step of its last beat.
    release : Out(1)
        The step of the next tile's last beat may be taken from the following cycle on.
    column, shift : In, Out
        The shadow of the array.
    parameter, lane_scale, wide_read, activation_read : Out(read_port)
    activation_write, wide_write, row_maximum : Out(write_port)
    table : In(write_port)
        Function table; address and data in rows, see :func:`table_port`.
    done : Out(1)
    lut : In(drain_source(config))
        With a LUT core: its ``tile``, ``release``, ``column``, ``shift`` and ``done``.
    """

    BEAT_TO_START = 9
    START_PHASE = 3
    LATENCY = 21  # from a column's cycle in the tile to its place in the output word

    def __init__(self, config: Config):
        self._config = config
        lanes = config.lanes
        source = drain_source(config)
        self._to_start = [self.BEAT_TO_START]
        if config.lut_columns:
            self._to_start.append(beat_to_shadow(config.block) - 2)
        super().__init__(dict(source.flip().members) | {
            "phase": In(PHASE_BITS),
            "parameter": Out(read_port(16, PARAMETER_LAYOUT)),
            "lane_scale": Out(read_port(10, data.ArrayLayout(LANE_SCALE, lanes))),
            "wide_read": Out(read_port(16, wide_word(config))),
            "activation_read": Out(read_port(16, activation_word(config))),
            "activation_write": Out(write_port(16, activation_word(config))),
            "wide_write": Out(write_port(16, wide_word(config))),
            "row_maximum": Out(write_port(10, data.ArrayLayout(signed(16), lanes))),
            "table": In(table_port(config)),
        } | ({"lut": In(source)} if config.lut_columns else {}))  # fmt: skip
        self.awake = Signal()  # of gated machines: twillcore.hw.clocks

    def elaborate(self, platform):
        m = Module()
        # What START_PHASE is for.
        assert (self.START_PHASE + 3) % FRAME_CYCLES == ActivationSlot.DRAIN_READ
        assert (self.START_PHASE + 4) % FRAME_CYCLES == WideReadSlot.DRAIN_READ
        for slot in (ActivationSlot.DRAIN_WRITE, WideWriteSlot.DRAIN_WRITE):
            assert slot == (self.START_PHASE + self.LATENCY) % FRAME_CYCLES

        pipe = DrainPipeline(m, self._config, self.LATENCY)
        tile, waiting = self._schedule(m, pipe.stage[0])
        scaled, narrow_shift = self._scale(m, platform, pipe)
        residual = self._residual(m, pipe, tile)
        total = [a + b for a, b in zip(scaled, residual, strict=True)]
        total = pipe.registers(10, signed(25), total, "total")
        saturated = [_saturate(t, 16) for t in total]
        saturated = pipe.registers(11, signed(16), saturated, "with_residual")
        value = self._function(m, pipe, total, saturated)
        narrow = self._narrow(m, pipe, value, narrow_shift)
        value = pipe.delay(18, signed(16), value, 3, "value")
        writing = self._write(m, pipe, tile, value, narrow)
        columns = Cat(stage.valid for stage in pipe.stage).any()
        loads = self.table.enable if self._config.function_table else 0
        awake_while(m, platform, self.awake, waiting | columns | writing | loads)
        return m

    def _sources(self):
        """Return what the cores are connected to: the DSP core's, and the LUT core's if any."""
        return [self, self.lut] if self._config.lut_columns else [self]

    def _columns(self, m, begin, new_tile, name):
        """Count the columns of a tile from the cycle after ``begin`` on.

        Returns active, column, last_column and the tile.
        """
        tile = Signal(TILE, name=name, reset_less=True)
        active = Signal(name=f"{name}_active")
        columns = max(self._config.dsp_columns, self._config.lut_columns)
        column = Signal(range(columns), name=f"{name}_column")
        last_column = Signal(name=f"{name}_last_column")
        m.d.comb += last_column.eq(column == tile.last_drained)
        with m.If(active):
            m.d.sync += [column.eq(column + 1), active.eq(~last_column)]
        with m.If(begin):
            m.d.sync += [active.eq(1), column.eq(0), tile.eq(new_tile)]
        return active, column, last_column, tile

    def _schedule(self, m, control):
        """Start tiles in their phase; drive the ``control`` of stage 0.

        Returns its tile, and whether another one comes or waits.
        """
        config = self._config

        # One tile of each source may wait while the one before drains.
        sources = self._sources()
        count = range(len(sources))
        lut_first = Signal()  # of two that wait
        soon = [Signal(name=f"soon_{n}") for n in count]  # two cycles before S
        starts = [Signal(name=f"start_{n}") for n in count]  # in the cycle before S
        waiting = [Signal(name=f"waiting_{n}") for n in count]
        waiting_tile = [Signal(TILE, name=f"waiting_tile_{n}", reset_less=True) for n in count]
        start = Cat(starts).any()
        start_tile = Signal(TILE)
        m.d.comb += start_tile.eq(Mux(starts[-1], waiting_tile[-1], waiting_tile[0]))
        active, column, last_column, tile = self._columns(m, start, start_tile, "tile")
        if len(sources) > 1:
            with m.If(sources[0].tile.valid):
                m.d.sync += lut_first.eq(waiting[1] & ~starts[1])
            with m.Elif(sources[1].tile.valid):
                m.d.sync += lut_first.eq(0)
            mine = [~(waiting[1] & lut_first), ~waiting[0] | lut_first]
        else:
            mine = [Const(1)]
        for n, (source, to_start) in enumerate(zip(sources, self._to_start, strict=True)):
            settled = Signal(range(to_start), name=f"settled_{n}")  # cycles until soon may say so
            # A last beat ``to_start`` cycles before the end of the drain has its sums on the way to
            # the column just after the last of the tile before. That may be before S: then, as
            # early as it is known that there will be a drain.
            assert to_start % config.block, "the cycle before S would have to release, too"
            early = waiting_tile[n].last_drained < to_start
            m.d.sync += starts[n].eq(soon[n])
            m.d.comb += [
                soon[n].eq(
                    waiting[n]
                    & mine[n]
                    & (settled == 0)
                    & (self.phase == self.START_PHASE - 2)
                    & (~active | (column == tile.last_drained - 1))
                ),
                source.release.eq(
                    (soon[n] & early)
                    | (active & (tile.lut == n) & (column == tile.last_drained - to_start))
                ),
            ]
            with m.If(settled != 0):
                m.d.sync += settled.eq(settled - 1)
            with m.If(starts[n]):
                m.d.sync += waiting[n].eq(0)
            with m.If(source.tile.valid):
                m.d.sync += [
                    waiting[n].eq(1),
                    waiting_tile[n].eq(source.tile.payload),
                    settled.eq(to_start - 4),
                ]
        working = Cat(*waiting, *(source.tile.valid for source in sources), active).any()
        begin, begin_tile = start, start_tile
        if window_cycles(config):
            # Until here all cycles are those of steps; the columns come a frame later.
            assert window_cycles(config) == FRAME_CYCLES
            begin = active & (column == FRAME_CYCLES - 1)
            begin_tile = tile
            active, column, last_column, tile = self._columns(m, begin, tile, "later_tile")
        parameter = Signal(16, reset_less=True)
        m.d.comb += [
            self.parameter.address.eq(parameter),
            self.parameter.enable.eq(active),
        ]
        with m.If(active):
            m.d.sync += parameter.eq(parameter + 1)
        with m.If(begin):
            m.d.sync += parameter.eq(begin_tile.parameter)

        first = column == 0
        m.d.comb += [
            control.valid.eq(active),
            control.first.eq(first),
            control.fresh.eq(first & tile.first_column),
            control.last.eq(last_column),
            control.first_word.eq(column < config.block),
            control.channel.eq(column),
            control.lane_scaled.eq(tile.lane_scaled),
            control.lane.eq(tile.lane),
            control.residual.eq(tile.residual),
            control.residual_narrow.eq(tile.residual_narrow),
            control.residual_shift.eq(tile.residual_shift),
            control.function.eq(tile.function),
            control.lut.eq(tile.lut),
        ]
        return tile, working

    def _scale(self, m, platform, pipe):
        """Stages 2 to 9, ``scale_accumulator``; also returns the narrow shift of stage 2."""
        stage = pipe.stage
        lanes = range(self._config.lanes)
        entry = Signal(PARAMETER_LAYOUT, reset_less=True)  # of stage 2; on the port in stage 1
        with m.If(stage[1].valid):
            m.d.sync += entry.eq(self.parameter.data)
        m.d.comb += [
            *(
                source.shift.eq(stage[2].valid & (stage[2].lut == n))
                for n, source in enumerate(self._sources())
            ),
            # So that data arrive with those of column 0 in stage 2. Later columns keep them.
            self.lane_scale.address.eq(stage[1].lane),
            self.lane_scale.enable.eq(stage[1].valid & stage[1].first & stage[1].lane_scaled),
        ]

        total_bits = max(self._config.accumulator_bits, 32) + 1
        column = [self.column[lane] for lane in lanes]
        if self._config.lut_columns:
            column = [Mux(stage[2].lut, self.lut.column[lane], column[lane]) for lane in lanes]
        total = [
            chain_add(m, platform, entry.bias, c, total_bits, f"bias_add_{lane}")
            for lane, c in zip(lanes, column, strict=True)
        ]
        total = pipe.registers(2, signed(total_bits), total, "biased")
        multiplier = [
            Signal(signed(18), name=f"multiplier_{lane}", reset_less=True) for lane in lanes
        ]
        shift = [Signal(6, name=f"shift_3_{lane}", reset_less=True) for lane in lanes]
        with m.If(stage[2].valid & ~stage[2].lane_scaled):
            m.d.sync += [s.eq(entry.multiplier) for s in multiplier]
            m.d.sync += [s.eq(entry.shift) for s in shift]
        if self._config.lane_depth:
            with m.If(stage[2].valid & stage[2].lane_scaled & stage[2].first):
                m.d.sync += [multiplier[i].eq(self.lane_scale.data[i].multiplier) for i in lanes]
                m.d.sync += [shift[i].eq(self.lane_scale.data[i].shift) for i in lanes]

        product_bits = total_bits + 17  # a lane's multiplier has 17 bits and no sign
        total_near = pipe.registers(3, signed(total_bits), total, "biased_near")
        multiplier_near = pipe.registers(3, signed(18), multiplier, "multiplier_near")
        product = [
            multiply_wide(
                m, platform, early, near, (stage[4].valid, stage[5].valid), f"product_{lane}"
            )[:product_bits].as_signed()
            for lane, early, near in zip(
                lanes,
                zip(total, multiplier, strict=True),
                zip(total_near, multiplier_near, strict=True),
                strict=True,
            )
        ]
        shift = pipe.delay(3, 6, shift, 3, "shift")
        rounded = [_add_half(p, s) for p, s in zip(product, shift, strict=True)]
        rounded = pipe.registers(6, signed(product_bits + 1), rounded, "rounded")
        shift = pipe.delay(6, 6, shift, 1, "shift")
        # First by multiples of 8. What then exceeds 24 bits exceeds 16 after a shift by 0..7: it
        # does if any bit of those that are left above, taken by eights, is not the sign.
        coarse = [(r >> Cat(Const(0, 3), s[3:]))[:24] for r, s in zip(rounded, shift, strict=True)]
        coarse = pipe.registers(7, 24, coarse, "coarse")
        sign = pipe.registers(7, 1, [r[-1] for r in rounded], "coarse_sign")
        above = [
            Cat(
                (r[low : low + 8] ^ r[-1].replicate(len(r[low : low + 8]))).any()
                for low in range(24, product_bits, 8)
            )
            for r in rounded
        ]
        above = pipe.registers(7, len(above[0]), above, "above")
        fine_shift = pipe.delay(7, 3, [s[:3] for s in shift], 2, "fine_shift")
        coarse_shift = pipe.delay(7, 3, [s[3:] for s in shift], 1, "coarse_shift")
        coarse = [
            Mux(
                (c[-1] == sign_) & ~(a >> s).any(), c, Cat((~sign_).replicate(23), sign_)
            ).as_signed()
            for c, sign_, a, s in zip(coarse, sign, above, coarse_shift, strict=True)
        ]
        coarse = pipe.registers(8, signed(24), coarse, "coarse_saturated")
        fine = [_saturate(c >> s, 16) for c, s in zip(coarse, fine_shift, strict=True)]
        return pipe.registers(9, signed(16), fine, "scaled"), entry.narrow_shift

    def _residual(self, m, pipe, tile):
        """Stages 7 to 9: the residual to add in stage 10, or 0."""
        stage = pipe.stage
        config = self._config
        address = Signal(16)
        with m.If(stage[0].valid & (stage[0].channel == 2)):
            with m.If(stage[0].first_word):
                m.d.sync += address.eq(tile.residual_address)
            with m.Else():
                m.d.sync += address.eq(address + 1)

        # Column 3 of a word is in stage 0 when column 0 of the word is in stage 3; data are in a
        # register three cycles later, in stage 6, and stay there until the next word's. Those of a
        # wide word come a cycle later.
        words = []
        for port, layout, channel, is_narrow in (
            (self.activation_read, activation_word(config), 3, True),
            (self.wide_read, wide_word(config), 4, False),
        ):
            word = Signal(layout, reset_less=True)
            m.d.comb += [
                port.address.eq(address),
                port.enable.eq(
                    stage[0].valid
                    & stage[0].residual
                    & (stage[0].residual_narrow == is_narrow)
                    & (stage[0].channel == channel)
                ),
            ]
            *_, arrived = valid_chain(m, port.enable, SHARED_READ_CYCLES, f"arrived_{channel}")
            with m.If(arrived):
                m.d.sync += word.eq(port.data)
            words.append(word)

        narrow_word, word = words
        narrow = [
            lane.as_value().word_select(stage[6].channel, 8).as_signed() for lane in narrow_word
        ]
        narrow = pipe.registers(6, signed(8), narrow, "residual_narrow")
        value = []
        for lane, n in zip(word, narrow, strict=True):
            if not config.wide_depth:
                value.append(Mux(stage[7].residual, n, 0))
                continue
            wide = lane.as_value().word_select(stage[7].channel, 16).as_signed()
            either = Mux(stage[7].residual_narrow, n, wide)
            value.append(Mux(stage[7].residual, either, 0))
        value = pipe.registers(7, signed(16), value, "residual")
        # The shift is -8..15: shift left by 8, then right by 0..23. The rounding of the latter
        # cannot be seen when it only takes back zeros.
        if config.family in PACKING_FAMILIES:  # a multiplier block costs less than a shift there
            factor = Signal(signed(25), reset_less=True)
            m.d.sync += factor.eq(Const(1 << 23) >> stage[7].residual_shift)
            value = pipe.registers(8, signed(41), [v * factor for v in value], "residual_product")
            value = [v + Mux(v[-1], (1 << 14) - 1, 1 << 14) for v in value]
            value = pipe.registers(9, signed(41), value, "residual_rounded")
            return [v[15:39].as_signed() for v in value]
        value = [_add_half(v.shift_left(8), stage[8].residual_shift) for v in value]
        value = pipe.registers(8, signed(25), value, "residual_half_added")
        value = [v >> stage[9].residual_shift for v in value]
        return pipe.registers(9, signed(24), value, "residual_shifted")

    def _function(self, m, pipe, total, x):
        """Stages 11 to 17: RELU, the function table, or nothing; ``x`` is ``total`` in 16 bits."""
        stage = pipe.stage
        table = self._table(m, pipe, total) if self._config.function_table else None
        x = pipe.delay(12, signed(16), x, 5, "unchanged")
        results = []
        for lane, v in enumerate(x):
            result = Signal(signed(16), name=f"result_{lane}", reset_less=True)
            with m.Switch(stage[17].function):
                if table is not None:
                    with m.Case(Function.TABLE):
                        m.d.comb += result.eq(table[lane])
                with m.Case(Function.RELU):
                    m.d.comb += result.eq(Mux(v < 0, 0, v))
                with m.Default():
                    m.d.comb += result.eq(v)
            results.append(result)
        return pipe.registers(17, signed(16), results, "function")

    def _table(self, m, pipe, total):
        """Stages 11 to 17: the entry of the function table, interpolated."""
        stage = pipe.stage
        # A row of each memory holds the entries of one write, so that LOAD needs one cycle; even
        # and odd entries lie apart, so that two neighbours are read in one cycle.
        entries = len(self.table.data) // 2
        shape = data.ArrayLayout(signed(16), entries)
        depth = TABLE_ENTRIES // 2 // entries
        ports = []
        for name, parity in (("even", 0), ("odd", 1)):
            m.submodules[name] = table = memory.Memory(shape=shape, depth=depth, init=[])
            write = table.write_port()
            m.d.comb += [write.addr.eq(self.table.address), write.en.eq(self.table.enable)]
            m.d.comb += [write.data[i].eq(self.table.data[2 * i + parity]) for i in range(entries)]
            ports.append([table.read_port() for _ in total])

        position = [_saturate(v, TABLE_INPUT_BITS) ^ (1 << (TABLE_INPUT_BITS - 1)) for v in total]
        position = pipe.registers(11, TABLE_INPUT_BITS, position, "table_position")
        entry = [p[TABLE_FRACTION_BITS:] for p in position]
        word_bits = ceil_log2(entries)
        even = [e[1:] + e[0] for e in entry]  # of an odd entry, the even neighbour is the next
        for lane, e in enumerate(entry):
            even_port, odd_port = ports[0][lane], ports[1][lane]
            m.d.comb += [
                even_port.addr.eq(even[lane][word_bits:]),
                even_port.en.eq(stage[12].valid),
                odd_port.addr.eq(e[1 + word_bits :]),
                odd_port.en.eq(stage[12].valid),
            ]
        position = pipe.registers(12, TABLE_INPUT_BITS, position, "table_position_13")
        even = pipe.registers(12, 7, even, "table_even_13")
        # A block RAM's output is late in its cycle: the entry is chosen in the next one.
        even_values = [
            port.data.as_value().word_select(e[:word_bits], 16)
            for port, e in zip(ports[0], even, strict=True)
        ]
        odd_values = [
            port.data.as_value().word_select(p[TABLE_FRACTION_BITS + 1 :][:word_bits], 16)
            for port, p in zip(ports[1], position, strict=True)
        ]
        even_values = pipe.registers(13, 16, even_values, "table_even_value")
        odd_values = pipe.registers(13, 16, odd_values, "table_odd_value")
        position = pipe.registers(13, TABLE_INPUT_BITS, position, "table_position_14")
        low, high = [], []
        for lane, p in enumerate(position):
            entry = p[TABLE_FRACTION_BITS:]
            even_value, odd_value = even_values[lane], odd_values[lane]
            is_last = entry == TABLE_ENTRIES - 1  # the function is constant from there on
            low.append(Mux(entry[0], odd_value, even_value).as_signed())
            high.append(Mux(entry[0] & ~is_last, even_value, odd_value).as_signed())
        low = pipe.registers(14, signed(16), low, "table_low_15")
        high = pipe.registers(14, signed(16), high, "table_high")
        fraction = [p[:TABLE_FRACTION_BITS] for p in position]
        fraction = pipe.delay(14, TABLE_FRACTION_BITS, fraction, 2, "table_fraction")
        step = [h - lo for h, lo in zip(high, low, strict=True)]
        step = pipe.registers(15, signed(17), step, "table_step")
        # Four additions, which are cheaper than a multiplier block each.
        step = [
            (Mux(f[0], s, 0) + Mux(f[1], s << 1, 0)) + (Mux(f[2], s << 2, 0) + Mux(f[3], s << 3, 0))
            for s, f in zip(step, fraction, strict=True)
        ]
        step = pipe.registers(16, signed(21), step, "table_product")
        low = pipe.delay(15, signed(16), low, 2, "table_low")
        return [
            lo + (_add_half(s, Const(TABLE_FRACTION_BITS)) >> TABLE_FRACTION_BITS)
            for lo, s in zip(low, step, strict=True)
        ]

    def _narrow(self, m, pipe, value, shift):
        """Stages 18 to 20, ``narrow``; ``shift`` is of the column in stage 2."""
        shifts = {2: shift}  # by stage
        for n in range(3, 20):
            shifts[n] = Signal(4, name=f"narrow_shift_{n}", reset_less=True)
            m.d.sync += shifts[n].eq(shifts[n - 1])
        value = [_add_half(v, shifts[18]) for v in value]
        value = pipe.registers(18, signed(17), value, "narrow_half_added")
        value = [v >> shifts[19] for v in value]
        value = pipe.registers(19, signed(17), value, "narrow_shifted")
        return pipe.registers(20, signed(8), [_saturate(v, 8) for v in value], "narrow")

    def _write(self, m, pipe, tile, value, narrow):
        """Stage 21: collect words and row maxima, and write them in the drain's slot.

        Returns whether words are on their way.
        """
        stage = pipe.stage
        config = self._config
        last = stage[self.LATENCY]
        for lane in range(config.lanes):
            wide_bits, narrow_bits = 16 * config.block, 8 * config.block
            wide_lane = Signal(wide_bits, name=f"wide_{lane}", reset_less=True)
            narrow_lane = Signal(narrow_bits, name=f"narrow_{lane}", reset_less=True)
            maximum = Signal(signed(16), name=f"maximum_{lane}", reset_less=True)
            v = value[lane]
            with m.If(last.valid):
                m.d.sync += [
                    wide_lane.eq(Cat(wide_lane[16:], v)),
                    narrow_lane.eq(Cat(narrow_lane[8:], narrow[lane])),
                ]
            with m.If(last.valid & ~last.lut):
                m.d.sync += maximum.eq(Mux(last.fresh | (v > maximum), v, maximum))
            m.d.comb += [
                self.wide_write.data[lane].eq(wide_lane),
                self.activation_write.data[lane].eq(narrow_lane),
                self.row_maximum.data[lane].eq(maximum),
            ]

        # A word leaves the pipeline in whole frames, so what is written where need not follow it
        # through every stage, but only from frame to frame: frames[n] is n frames after stage 0.
        word = data.StructLayout({
            "valid": 1,  # the word's last channel was in stage 0 in this frame
            "wide": 1,
            "address": 16,
            "keep_maximum": 1,
            "maximum": 10,
            "done": 1,
            "lut": 1,
        })  # fmt: skip
        frames = [Signal(word, name=f"word_{n}") for n in range(4)]
        address = Signal(16)
        last_column = stage[0].valid & stage[0].last
        m.d.comb += [
            frames[0].valid.eq(stage[0].valid & (stage[0].channel == config.block - 1)),
            frames[0].wide.eq(tile.wide),
            frames[0].address.eq(address),
            frames[0].keep_maximum.eq(last_column & tile.keep_maximum & tile.last_column),
            frames[0].maximum.eq(tile.maximum),
            frames[0].done.eq(last_column & tile.last),
            frames[0].lut.eq(tile.lut),
        ]
        with m.If(self.phase == self.START_PHASE - 1):
            m.d.sync += [frames[n].eq(frames[n - 1]) for n in range(1, 4)]
        with m.If(stage[0].valid & (stage[0].channel == 0)):
            with m.If(stage[0].first_word):
                m.d.sync += address.eq(tile.out)
            with m.Else():
                m.d.sync += address.eq(address + 1)
        written = frames[3]
        # A register, since ``done`` decides far away what the core retires.
        slot = Signal(name="write_slot", reset_less=True)
        m.d.sync += slot.eq(self.phase == (ActivationSlot.DRAIN_WRITE - 1) % FRAME_CYCLES)
        m.d.comb += [
            self.activation_write.address.eq(written.address),
            self.activation_write.enable.eq(slot & written.valid & ~written.wide),
            self.wide_write.address.eq(written.address),
            self.wide_write.enable.eq(slot & written.valid & written.wide),
            self.row_maximum.address.eq(written.maximum),
            self.row_maximum.enable.eq(slot & written.keep_maximum),
            *(
                source.done.eq(slot & written.done & (written.lut == n))
                for n, source in enumerate(self._sources())
            ),
        ]
        return Cat(frame.valid for frame in frames).any()


def _saturate(value, bits):
    """Clamp a signed value to ``bits`` bits: it fits if all bits from the sign's on are equal."""
    if len(value) <= bits:
        return value
    upper = value[bits - 1 :]
    fits = (upper == 0) | upper.all()
    extreme = Cat((~value[-1]).replicate(bits - 1), value[-1])
    return Mux(fits, value[:bits], extreme).as_signed()


def _add_half(value, shift):
    """Add what makes the following right shift round to nearest, ties away from zero.

    That is half a unit of the result, less one for negative values: ``half - 1`` as a mask of
    ones, and a carry unless negative. With a shift beyond the width of the value the result is
    right for all but the most negative value, which none of the callers can have there.
    """
    mask = (~(Const(-1, signed(1)) << shift))[1:]
    return value + mask[: len(value) - 1] + (~value[-1] & (shift != 0))
