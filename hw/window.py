"""What a GEMM core multiplies: which words of the activation memory are a convolution's."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from twillcore.config import ADDRESS_BITS, Config
from twillcore.hw.layouts import TAP_LAYOUT, activation_word, instruction_layout
from twillcore.hw.parameter_memory import ParameterMemory
from twillcore.hw.ports import window_port, write_port
from twillcore.isa import Opcode
from twillcore.timing import window_cycles

#: One read of the activation memory.
GATHER = data.StructLayout({
    "valid": 1,
    "address": 17,  # without the tap's offset
    "windowed": 1,  # else the word is taken as it is, and the rest counts nothing
    "tap": 10,  # entry of the tap memory
    "strided": 1,  # the read is for half of the lanes
    "upper": 1,  # for the second half
    "late": 1,  # the array takes the block with its second read, not with its first
    "pool": 1,  # padding is the smallest number
    "fold": 1,  # keep the maximum of this and the reads before it
})  # fmt: skip

#: How the lanes' pixels move before the next read.
ROW_STEP = data.StructLayout({"restart": 1, "advance": 1})

_X_BITS, _Y_BITS = 11, 13  # of input pixels; y is signed


def tap_port(config: Config):
    """Return the port through which LOAD writes taps: as many entries as a beat has."""
    entries = config.entries_per_beat
    return write_port(ADDRESS_BITS, data.ArrayLayout(64, entries))


class Window(wiring.Component):
    """The window of one core: which lanes of which words are the word of a tap.

    :class:`twillcore.hw.gather.Gather` reads, rotates and pads it.

    One read per cycle. The word of a read that is asked for in cycle t (``gather``) stands on
    ``word`` in cycle t + ``window_cycles`` + 1, and until that of the next read. With ``strided``,
    each half of the lanes has a read of its own. If they are ``late``, t is the cycle of the second
    one, which may follow whenever it likes. If not, t is that of the first, the second follows in
    the next cycle, and the word stands for one cycle. With ``fold``, ``word`` is the maximum of all
    reads since the last one without it.

    In cycles from t on: 1 tap in the memory's output, 2 in a register, 3 first address and limits
    of x and y, 4 both addresses (``activation``), 8 its data, 9 in the word.

    Every lane has a pixel (x, y): what WINDOW says, from which tap (0, 0) of an output pixel would
    read. ``row_step`` moves them on before the next read, by a row tile or to the first one.

    ``define`` takes a WINDOW instruction: ``defined`` is high ``lanes`` + :attr:`DEFINE_CYCLES`
    cycles later. Reads before ``define`` do not see it yet, and there are none until ``defined``.

    Rotations of ``lanes`` and more give no sensible word.

    Members
    -------
    gather : In(GATHER)
    row_step : In(ROW_STEP)
    define : In(1)
    definition : In(instruction_layout(Opcode.WINDOW))
        Taken with ``define``.
    defined : Out(1)
    tap_write : In(tap_port(config))
    activation : Out(window_port(config))
    word : Out(activation_word(config))
    """

    DEFINE_CYCLES = 1  # and one per lane

    def __init__(self, config: Config):
        self._config = config
        super().__init__({
            "gather": In(GATHER),
            "row_step": In(ROW_STEP),
            "define": In(1),
            "definition": In(instruction_layout(Opcode.WINDOW)),
            "defined": Out(1),
            "tap_write": In(tap_port(config)),
            "activation": Out(window_port(config)),
            "word": Out(activation_word(config)),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        config = self._config
        stage = [self.gather]  # stage[n]: n cycles after it was asked for
        for n in range(1, window_cycles(config) + 2):
            stage.append(Signal(GATHER, name=f"gather_{n}"))
            m.d.sync += stage[n].eq(stage[n - 1])

        window = self._define(m)
        tap = self._tap(m, stage)
        x, y = self._pixels(m, window)
        self._inside(m, stage[2], tap, window, x, y)
        self._address(m, stage, tap, window)
        self._stage(m, stage)
        return m

    def _define(self, m):
        """Take WINDOW apart; returns what the lanes need of it."""
        config = self._config
        new = Signal(instruction_layout(Opcode.WINDOW))
        left = Signal(range(config.lanes + self.DEFINE_CYCLES + 1))
        names = ("width", "height", "tile_stride", "tile_y", "stride")
        window = {
            name: Signal(instruction_layout(Opcode.WINDOW)[name].shape, name=f"window_{name}")
            for name in names
        }
        # x of lane l, row tile t + 1, is x of t plus tile_x, or less a line from x = limit on.
        for name, bits in (("step", 11), ("wrapped_step", signed(12)), ("limit", 11)):
            window[name] = Signal(bits, name=f"window_{name}")
        line = Signal(11)
        m.d.comb += [
            line.eq(Mux(new.stride == 2, new.pitch << 1, new.pitch)),
            self.defined.eq(left == 1),
        ]
        with m.If(left != 0):
            m.d.sync += left.eq(left - 1)
        with m.If(self.defined):
            m.d.sync += [window[name].eq(new[name]) for name in names]
            m.d.sync += [
                window["step"].eq(new.tile_x),
                window["wrapped_step"].eq(new.tile_x - line),
                window["limit"].eq(line - new.tile_x),
            ]

        # The first row tile's pixels come lane by lane, through the lanes above, from two
        # cycles after ``define`` on: in the cycle before, a read may still go back to the old ones.
        x, y = Signal(_X_BITS), Signal(signed(_Y_BITS))
        window["x"] = [Signal(_X_BITS, name=f"first_x_{r}") for r in range(config.lanes)]
        window["y"] = [Signal(signed(_Y_BITS), name=f"first_y_{r}") for r in range(config.lanes)]
        with m.If((left != 0) & (left <= config.lanes)):
            for first, new_value in ((window["x"], x), (window["y"], y)):
                m.d.sync += [
                    lane.eq(above)
                    for lane, above in zip(first, [*first[1:], new_value], strict=True)
                ]
            following = x + new.stride
            with m.If(following == line):
                m.d.sync += [x.eq(0), y.eq(y + new.stride)]
            with m.Else():
                m.d.sync += x.eq(following)
        with m.If(self.define):
            m.d.sync += [
                new.eq(self.definition),
                left.eq(config.lanes + self.DEFINE_CYCLES),
                x.eq(0),
                y.eq(self.definition.y),
            ]
        return window

    def _tap(self, m, stage):
        """Stages 0 and 1; returns offset, rotation and place of stage 2."""
        config = self._config
        m.submodules.taps = taps = ParameterMemory(
            config.tap_depth, len(self.tap_write.data), TAP_LAYOUT
        )
        wiring.connect(m, wiring.flipped(self.tap_write), taps.write)
        tap = Signal(TAP_LAYOUT)
        m.d.comb += [
            taps.read.address.eq(stage[0].tap),
            taps.read.enable.eq(stage[0].valid & stage[0].windowed),
        ]
        m.d.sync += tap.eq(taps.read.data)
        plain = Signal(TAP_LAYOUT)  # of a word that is taken as it is: its own
        m.d.comb += plain.eq(tap)
        with m.If(stage[2].upper):
            m.d.comb += [plain.offset.eq(tap.second_offset), plain.rotate.eq(tap.second_rotate)]
        with m.If(~stage[2].windowed):
            m.d.comb += [plain.offset.eq(0), plain.rotate.eq(0)]
        return plain

    def _pixels(self, m, window):
        """Return x and y of every lane for the read in stage 3."""
        step = [self.row_step]
        for n in range(1, 4):
            step.append(Signal(ROW_STEP, name=f"row_step_{n}"))
            m.d.sync += step[n].eq(step[n - 1])
        xs = [Signal(_X_BITS, name=f"x_{r}") for r in range(self._config.lanes)]
        ys = [Signal(signed(_Y_BITS), name=f"y_{r}") for r in range(self._config.lanes)]
        with m.If(step[3].restart):
            m.d.sync += [x.eq(first) for x, first in zip(xs, window["x"], strict=True)]
            m.d.sync += [y.eq(first) for y, first in zip(ys, window["y"], strict=True)]
        with m.Elif(step[3].advance):
            for x, y in zip(xs, ys, strict=True):
                wraps = x >= window["limit"]
                m.d.sync += [
                    x.eq(x + Mux(wraps, window["wrapped_step"], window["step"])),
                    y.eq(y + window["tile_y"] + Mux(wraps, window["stride"], 0)),
                ]
        return xs, ys

    def _inside(self, m, gather, tap, window, xs, ys):
        """Stages 2 and 3: whether the tap of each lane is in the map."""
        low_x, high_x = Signal(signed(9)), Signal(signed(12))
        low_y, high_y = Signal(signed(9)), Signal(signed(12))
        m.d.sync += [
            low_x.eq(-tap.dx),
            high_x.eq(window["width"] - tap.dx),
            low_y.eq(-tap.dy),
            high_y.eq(window["height"] - tap.dy),
        ]
        windowed = Signal()
        m.d.sync += windowed.eq(gather.windowed)
        inside = Signal(self._config.lanes)
        for lane, x, y in zip(inside, xs, ys, strict=True):
            in_line = (x >= low_x) & (x < high_x)
            m.d.sync += lane.eq(~windowed | (in_line & (y >= low_y) & (y < high_y)))
        m.d.comb += self.activation.inside.eq(inside)

    def _address(self, m, stage, tap, window):
        """Stages 2 to 4: what is read, and how it is rotated."""
        lanes = self._config.lanes
        sums = [Signal(signed(20), name=f"address_{n}") for n in (3, 4)]
        second = Signal(signed(20))
        uses_second = Signal(lanes)
        rotate, rotate_4 = (Signal(tap.rotate.shape(), name=f"rotate_{n}") for n in (3, 4))
        m.d.sync += [
            sums[0].eq(stage[2].address + tap.offset),
            rotate.eq(tap.rotate),
            rotate_4.eq(rotate),
            sums[1].eq(sums[0]),
            second.eq(sums[0] + window["tile_stride"]),
            uses_second.eq(Cat(rotate > b for b in range(lanes))),
        ]
        m.d.comb += [
            self.activation.address.eq(sums[1]),
            self.activation.second.eq(second),
            self.activation.uses_second.eq(uses_second),
            self.activation.rotate.eq(rotate_4),
            self.activation.strided.eq(stage[4].strided),
            self.activation.low.eq(stage[4].pool),
            self.activation.enable.eq(stage[4].valid),
        ]

    def _stage(self, m, stage):
        """Stage 8: join the halves of strided words, keep the maximum."""
        config = self._config
        lanes, half = config.lanes, config.lanes // 2
        # The second half of the lanes comes a cycle after the first, just in time for the array.
        direct = stage[9].strided & ~stage[9].late
        for lane in range(lanes):
            padded = self.activation.data[lane].as_value()
            staged = Signal(8 * config.block, name=f"staged_{lane}", reset_less=True)
            is_upper = lane >= half
            with m.If(stage[8].valid & (~stage[8].strided | (stage[8].upper == is_upper))):
                for p in range(config.block):
                    old = staged.word_select(p, 8)
                    new = padded.word_select(p, 8)
                    keeps = stage[8].fold & (old.as_signed() > new.as_signed())
                    m.d.sync += old.eq(Mux(keeps, old, new))
            m.d.comb += self.word[lane].eq(Mux(direct, padded, staged) if is_upper else staged)
