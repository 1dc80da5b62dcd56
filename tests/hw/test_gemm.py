"""GemmEngine with behavioural memories, against numpy and the closed formula of its timing."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from twillcore import numerics
from twillcore.config import PRESETS
from twillcore.hw import lut_array
from twillcore.hw.gemm import GemmEngine
from twillcore.hw.layouts import TAP_LAYOUT
from twillcore.hw.ports import Activity
from twillcore.hw.window import Window
from twillcore.isa import ISA, TAP, Cause, Function, Instruction, Opcode
from twillcore.sim import timing_cores, timing_gemm
from twillcore.sim.bench import simulate
from twillcore.sim.timing_gemm import GemmTiming
from twillcore.timing import SHARED_READ_CYCLES, ActivationSlot, WideReadSlot, WideWriteSlot


def log_uniform(rng, low, high, shape):
    """Integers of every magnitude in [low, high]."""
    bits = max(int(high).bit_length(), int(-low).bit_length())
    x = rng.integers(low, high + 1, shape) >> rng.integers(0, bits + 1, shape)
    extremes = rng.choice([low, high, 0], shape)
    return np.where(rng.random(shape) < 0.03, extremes, x)


class Memories:
    """Contents of every memory of the engine, random; ``[address, lane, position]``."""

    def __init__(self, config, rng):
        lanes, block, columns = config.lanes, config.block, config.dsp_columns
        self.config = config
        self.activation = log_uniform(rng, -128, 127, (config.activation_depth, lanes, block))
        self.wide = log_uniform(rng, -(1 << 15), (1 << 15) - 1, (config.wide_depth, lanes, block))
        self.weight = log_uniform(rng, -128, 127, (config.weight_depth, columns))
        self.index = rng.integers(0, block, (config.weight_depth, columns))
        self.operand = log_uniform(rng, -128, 127, (config.operand_depth, columns))
        depth = config.parameter_depth
        # Scales mostly bring sums to 16 bits, but every value occurs.
        shift = np.where(rng.random(depth) < 0.8, rng.integers(8, 28, depth), 0)
        shift = np.where(rng.random(depth) < 0.1, rng.integers(0, 64, depth), shift)
        self.parameter = {
            "bias": log_uniform(rng, -(1 << 31), (1 << 31) - 1, depth),
            "multiplier": log_uniform(rng, -(1 << 15), (1 << 15) - 1, depth),
            "shift": shift,
            "narrow_shift": rng.integers(0, 16, depth),
        }
        shape = (config.lane_depth, lanes)
        self.lane_scale = {
            "multiplier": log_uniform(rng, 0, (1 << 17) - 1, shape),
            "shift": rng.integers(0, 40, shape),
        }
        self.table = log_uniform(rng, -(1 << 15), (1 << 15) - 1, 256)
        self.tap = [random_tap(rng, config) for _ in range(config.tap_depth)]


def random_tap(rng, config):
    """A tap that looks anywhere, mostly near."""
    rotate = rng.integers(0, config.lanes, 2)
    offset = log_uniform(rng, -1000, 1000, 2)
    dx, dy = log_uniform(rng, -128, 127, 2)
    values = (offset[0], rotate[0], dx, dy, offset[1], rotate[1])
    return {field.name: int(value) for field, value in zip(TAP, values, strict=True)}


@dataclass
class Outcome:
    """What was seen; writes are (memory, address, values as a flat tuple)."""

    accepted: list = field(default_factory=list)
    retired: list = field(default_factory=list)
    writes: list = field(default_factory=list)
    activity: list = field(default_factory=list)
    errors: list = field(default_factory=list)


class Reference:
    """Executes instructions in order; returns their writes."""

    def __init__(self, memories):
        self._m = memories
        self._sums = np.zeros((memories.config.lanes, memories.config.dsp_columns), np.int64)
        self._window = None

    def execute(self, g):
        if g.opcode == Opcode.WINDOW:
            self._window = g
            return []
        rows, columns = range(g["row_tiles"]), range(g["column_tiles"])
        if g["columns_inner"]:
            order = [(rt, ct) for rt in rows for ct in columns]
        else:
            order = [(rt, ct) for ct in columns for rt in rows]
        writes = []
        maximum = None
        for rt, ct in order:
            self._multiply(g, rt, ct)
            if g["hold"]:
                continue
            value, writes_of_tile = self._drain(g, rt, ct)
            if g["keep_maximum"]:
                of_tile = value.max(axis=1)
                maximum = of_tile if ct == 0 else np.maximum(maximum, of_tile)
                if ct == g["column_tiles"] - 1:
                    address = g["maximum"] + rt
                    writes_of_tile.append(("row_maximum", address, tuple(maximum.tolist())))
            writes += writes_of_tile
        return writes

    def _multiply(self, g, rt, ct):
        m, config = self._m, self._m.config
        if not g["accumulate"]:
            self._sums = np.zeros_like(self._sums)
        words = self._words(g, rt, ct)
        row = g["w"] + ct * len(words) * g["beats"]
        for word in words:
            for beat in range(g["beats"]):
                weight = (m.operand if g["operand"] else m.weight)[row]
                counted = g["counted"] or g["operand"]
                index = np.full(config.dsp_columns, beat) if counted else m.index[row]
                self._sums = self._sums + word[:, index] * weight
                row += 1

    def _words(self, g, rt, ct):
        """The words that are multiplied for one tile, (lane, position) each."""
        m, lanes = self._m, self._m.config.lanes
        a = g["a"] + rt * g["a_row_stride"] + ct * g["a_column_stride"]
        if not g["windowed"]:
            return [m.activation[a + block] for block in range(g["blocks"])]
        w = self._window
        if w["line_tiles"]:
            a += rt // w["line_tiles"] * w["line_stride"]
        words = []
        for tap in m.tap[w["tap"] : w["tap"] + w["taps"]]:
            for block in range(g["blocks"]):
                word = np.full((lanes, m.config.block), -128 if g["pool"] else 0)
                for lane in range(lanes):
                    y, x = divmod(rt * lanes + lane, w["pitch"])
                    x, y = w["stride"] * x + tap["dx"], w["stride"] * y + w["y"] + tap["dy"]
                    second, pixel = divmod(lane * w["stride"], lanes)
                    offset, rotate = (
                        ("second_offset", "second_rotate") if second else ("offset", "rotate")
                    )
                    carry, source = divmod(tap[rotate] + pixel, lanes)
                    address = a + tap[offset] + block + carry * w["tile_stride"]
                    inside = 0 <= x < w["width"] and 0 <= y < w["height"]
                    if inside and 0 <= address < m.config.activation_depth:
                        word[lane] = m.activation[address, source]
                words.append(word)
        return [np.max(words, axis=0)] if g["pool"] else words

    def _drain(self, g, rt, ct):
        m, config = self._m, self._m.config
        words = g["words"] or config.words_per_tile
        columns = words * config.block
        first = g["parameter"] + ct * columns
        p = {name: v[first : first + columns] for name, v in m.parameter.items()}
        multiplier, shift = p["multiplier"], p["shift"]
        if g["lane_scaled"]:
            multiplier = m.lane_scale["multiplier"][g["lane"] + rt][:, None]
            shift = m.lane_scale["shift"][g["lane"] + rt][:, None]
        sums = self._sums[:, :columns]
        value = numerics.scale_accumulator(sums, p["bias"], multiplier, shift)
        if g["residual"]:
            first = g["residual_address"] + rt * g["residual_row_stride"] + ct * words
            memory = m.activation if g["residual_narrow"] else m.wide
            residual = np.concatenate(list(memory[first : first + words]), axis=1)
            value = numerics.add_residual(value, residual, g["residual_shift"])
        if g["function"] == Function.RELU:
            value = numerics.relu(value)
        elif g["function"] == Function.TABLE:
            value = numerics.look_up(value, m.table)
        out = value if g["wide"] else numerics.narrow(value, p["narrow_shift"])
        memory = "wide_write" if g["wide"] else "activation_write"
        writes = []
        for j in range(words):
            address = g["out"] + rt * g["out_row_stride"] + ct * words + j
            data = out[:, j * config.block : (j + 1) * config.block]
            writes.append((memory, address, tuple(data.flatten().tolist())))
        return value, writes


def instruction(**operands):
    """A GEMM of one tile and one beat, changed by ``operands``."""
    values = {field.name: 0 for field in ISA[Opcode.GEMM].operands}
    values |= {"row_tiles": 1, "column_tiles": 1, "blocks": 1, "beats": 1}
    return Instruction(Opcode.GEMM, values | operands)


def window(**operands):
    """A WINDOW of one tap, changed by ``operands``."""
    values = {field.name: 0 for field in ISA[Opcode.WINDOW].operands}
    return Instruction(Opcode.WINDOW, values | {"taps": 1, "stride": 1, "pitch": 1} | operands)


def _pack(values, bits):
    word = 0
    for i, value in enumerate(values):
        word |= (int(value) & (1 << bits) - 1) << (i * bits)
    return word


def _unpack(view, bits, count):
    word = view.as_bits()
    raw = [word >> (i * bits) & (1 << bits) - 1 for i in range(count)]
    return tuple(v - (v >> (bits - 1) << bits) for v in raw)


def run_engine(config, memories, words, gaps=None, timeout=20_000):
    """Offer instruction ``words``, each after its gap (cycles), until all retire or one fails."""
    dut = GemmEngine(config)
    outcome = Outcome()
    lanes, block, columns = config.lanes, config.block, config.dsp_columns
    m = memories
    gaps = gaps or [0] * len(words)

    def weight_row(a):
        low = _pack(m.weight[a], 8)
        return low | _pack(m.index[a], config.index_bits) << (8 * columns)

    def parameter(a):
        p = {name: int(v[a]) for name, v in m.parameter.items()}
        return (
            p["bias"] & 0xFFFFFFFF | (p["multiplier"] & 0xFFFF) << 32
            | p["shift"] << 48 | p["narrow_shift"] << 54
        )  # fmt: skip

    def lane_scale(a):
        scale = m.lane_scale
        both = [
            int(x) | int(s) << 17
            for x, s in zip(scale["multiplier"][a], scale["shift"][a], strict=True)
        ]
        return _pack(both, 23)

    reads = {
        "activation": (config.activation_depth, lambda a: _pack(m.activation[a].flat, 8)),
        "weight": (config.weight_depth, weight_row),
        "operand": (config.operand_depth, lambda a: _pack(m.operand[a], 8)),
        "parameter": (config.parameter_depth, parameter),
        "lane_scale": (config.lane_depth, lane_scale),
        "wide_read": (config.wide_depth, lambda a: _pack(m.wide[a].flat, 16)),
        "activation_read": (config.activation_depth, lambda a: _pack(m.activation[a].flat, 8)),
    }
    writes = {
        "row_maximum": (16, lanes, None),
        "activation_write": (8, lanes * block, ActivationSlot.DRAIN_WRITE),
        "wide_write": (16, lanes * block, WideWriteSlot.DRAIN_WRITE),
    }

    def gathered(address, second, uses_second):
        addresses = [second if uses_second >> r & 1 else address for r in range(lanes)]
        depth = config.activation_depth
        word = [m.activation[a % depth, r] for r, a in enumerate(addresses)]
        return _pack(np.stack(word).flat, 8)

    async def bench(ctx):
        # Data ports hold rubbish whenever no read was enabled in the cycle before, or as long ago
        # as a shared memory takes.
        rubbish = {name: (1 << len(getattr(dut, name).data.as_value())) // 3 for name in reads}
        port_list = [(name, getattr(dut, name)) for name in (*reads, *writes)]
        row = len(dut.table.data)
        cycle = 0

        async def tick():
            nonlocal cycle
            for name, port in port_list:
                if not ctx.get(port.enable):
                    continue
                address = ctx.get(port.address)
                if name in writes:
                    bits, count, slot = writes[name]
                    assert slot is None or cycle % 8 == slot
                    data = _unpack(ctx.get(port.data), bits, count)
                    outcome.writes.append((name, address, data))
                else:
                    # The sequencer reads in every cycle, also where it takes nothing.
                    always = name in ("activation", "weight", "operand")
                    windows = name == "activation" and config.tap_depth
                    if not windows and address >= reads[name][0]:
                        assert always, f"{name} read at {address}"
                        continue
                    assert name != "wide_read" or cycle % 8 == WideReadSlot.DRAIN_READ
                    assert name != "activation_read" or cycle % 8 == ActivationSlot.DRAIN_READ
                    if windows:
                        lanes_of_second = ctx.get(port.uses_second)
                        word = gathered(address, ctx.get(port.second), lanes_of_second)
                    else:
                        word = reads[name][1](address)
                    shared = name in ("wide_read", "activation_read")
                    pending[cycle + (SHARED_READ_CYCLES if shared else 1), name] = word
            ready, retire = ctx.get(dut.instruction.ready), ctx.get(dut.retire)
            outcome.activity.append(ctx.get(dut.activity))
            if retire:
                outcome.retired.append(cycle)
            if ctx.get(dut.error.valid):
                outcome.errors.append((ctx.get(dut.error.cause), ctx.get(dut.error.index)))
            await ctx.tick()
            cycle += 1
            ctx.set(dut.phase, cycle % 8)
            for name in reads:
                ctx.set(
                    getattr(dut, name).data.as_value(), pending.pop((cycle, name), rubbish[name])
                )
            return ready

        pending = {}
        for first in range(0, 256, row):
            ctx.set(dut.table.address, first // row)
            ctx.set(dut.table.enable, 1)
            for i in range(row):
                ctx.set(dut.table.data[i], int(m.table[first + i]))
            await tick()
        ctx.set(dut.table.enable, 0)
        if config.tap_depth:
            ctx.set(dut.tap_write.enable, 1)
            entries = len(dut.tap_write.data)
            for first in range(0, config.tap_depth, entries):
                ctx.set(dut.tap_write.address, first // entries)
                for i in range(entries):
                    tap = m.tap[first + i]
                    ctx.set(dut.tap_write.data[i], TAP_LAYOUT.const(tap).as_bits())
                await tick()
            ctx.set(dut.tap_write.enable, 0)
        for number, (word, gap) in enumerate(zip(words, gaps, strict=True)):
            for _ in range(gap):
                await tick()
            ctx.set(dut.instruction.payload.word, word)
            ctx.set(dut.instruction.payload.index, number + 100)
            ctx.set(dut.instruction.valid, 1)
            while not await tick() and not outcome.errors:
                pass
            if outcome.errors:
                break
            outcome.accepted.append(cycle - 1)
            ctx.set(dut.instruction.valid, 0)
        while len(outcome.retired) < len(words) and not outcome.errors:
            await tick()
        for _ in range(50):  # time for what should not happen, and for what must after an error
            await tick()

    simulate(dut, bench, timeout=timeout)
    return outcome


def count(outcome, activity: Activity):
    """Cycles in which the engine did ``activity``."""
    return sum(a == activity for a in outcome.activity)


def random_window(rng, config):
    """A legal WINDOW, mostly of a small map; lines wrap as the instruction set asks for."""
    taps = int(rng.integers(1, 6))
    stride, pitch = int(rng.integers(1, 3)), int(rng.integers(1, 3 * config.lanes))
    return window(
        tap=int(rng.integers(0, config.tap_depth - taps + 1)), taps=taps, stride=stride,
        width=int(log_uniform(rng, 0, 1023, ())), height=int(log_uniform(rng, 0, 1023, ())),
        pitch=pitch, y=int(log_uniform(rng, -30, 30, ())),
        tile_x=stride * (config.lanes % pitch), tile_y=stride * (config.lanes // pitch),
        tile_stride=int(rng.integers(0, 10)), line_tiles=int(rng.integers(0, 3)),
        line_stride=int(rng.integers(0, 20)),
    )  # fmt: skip


def random_instruction(rng, config, current_window=None):
    """A legal instruction with every address in range; windowed at times if there is a window."""
    g = {}
    g["words"] = int(rng.integers(0, 2) * rng.integers(0, config.words_per_tile + 1))
    words = g["words"] or config.words_per_tile
    columns_per_tile = words * config.block
    g["blocks"] = int(rng.integers(1, 5))
    g["beats"] = int(rng.integers(1, config.block + 1))
    if rng.random() < 0.3:
        g["blocks"] = g["beats"] = 1
    rows, columns = (int(n) for n in rng.integers(1, 4, 2))
    g["accumulate"], g["hold"] = (int(x) for x in rng.random(2) < 0.2)
    if g["accumulate"] or g["hold"]:
        rows = columns = 1
    g["row_tiles"], g["column_tiles"] = rows, columns
    g["operand"], g["counted"], g["columns_inner"], g["lane_scaled"], g["residual"], g["wide"] = (
        int(x) for x in rng.integers(0, 2, 6)
    )
    g["residual_narrow"] = int(rng.integers(0, 2))
    taps = 1
    if current_window and rng.random() < 0.7:
        g["windowed"], g["operand"], taps = 1, 0, current_window["taps"]
        if rng.random() < 0.3:
            g["pool"] = g["blocks"] = g["beats"] = taps = 1
    g["keep_maximum"] = int(rng.integers(0, 2)) & g["columns_inner"]
    g["function"] = int(rng.integers(0, 3))
    g["residual_shift"] = int(rng.integers(-8, 16))

    def place(name, depth, row_stride, column_stride, size, row_tiles=rows):
        """Choose the address so that the last place used may be the memory's last."""
        used = (row_tiles - 1) * row_stride + (columns - 1) * column_stride + size
        end = rng.random() < 0.2
        g[name] = depth - used if end else int(rng.integers(0, depth - used + 1))

    def stride(limit):
        return int(rng.integers(0, limit))

    g["a_row_stride"], g["a_column_stride"] = stride(30), stride(2) * stride(20)
    g["out_row_stride"], g["residual_row_stride"] = stride(30), stride(30)
    place("a", config.activation_depth, g["a_row_stride"], g["a_column_stride"], g["blocks"])
    size = taps * g["blocks"] * g["beats"]
    depth = config.operand_depth if g["operand"] else config.weight_depth
    place("w", depth, 0, size, size)
    place("parameter", config.parameter_depth, 0, columns_per_tile, columns_per_tile)
    depth = config.activation_depth if g["residual_narrow"] else config.wide_depth
    place("residual_address", depth, g["residual_row_stride"], words, words)
    depth = config.wide_depth if g["wide"] else config.activation_depth
    place("out", depth, g["out_row_stride"], words, words)
    g["lane"] = int(rng.integers(0, config.lane_depth - rows + 1))
    g["maximum"] = int(rng.integers(0, config.lane_depth - rows + 1))
    return instruction(**g)


def check_results(memories, instructions, outcome):
    reference = Reference(memories)
    expected = [write for g in instructions for write in reference.execute(g)]

    def by_memory(writes):
        return {name: [w[1:] for w in writes if w[0] == name] for name, *_ in writes}

    assert outcome.errors == []
    assert by_memory(outcome.writes) == by_memory(expected)


def check_times(config, instructions, outcome, gapless):
    timing = GemmTiming(config)
    times = []
    for number, (g, start) in enumerate(zip(instructions, outcome.accepted, strict=True)):
        if gapless and number:
            assert start == timing.earliest
        times.append(timing.accept(g, start))
    assert outcome.retired == [t.retire for t in times]
    assert count(outcome, Activity.BUSY) == sum(t.busy for t in times)
    assert count(outcome, Activity.BLOCKED) == sum(t.blocked for t in times)


TINY = PRESETS["tiny"]
VARIANTS = {
    "tiny": TINY,
    "packed": TINY.replace(family="xcup", axi_data_bits=32),  # two lanes share a multiplier
    "odd": TINY.replace(  # a lane without a partner, several words per tile, 16 positions
        family="xc7", lanes=3, block=16, dsp_columns=48, operand_depth=256, axi_data_bits=128
    ),
    "wide": TINY.replace(dsp_columns=16, accumulator_bits=40, axi_data_bits=128),
    "windows": TINY.replace(tap_depth=64, weight_depth=1024),
    "wide-windows": TINY.replace(
        lanes=6, block=16, dsp_columns=48, tap_depth=64, weight_depth=1024, family="xc7",
        axi_data_bits=128,
    ),
}  # fmt: skip


def test_constants_of_the_timing_model():
    assert timing_gemm.BEAT_TO_SUM == GemmEngine.BEAT_TO_SUM
    assert timing_gemm.BEAT_TO_START == GemmEngine.BEAT_TO_START
    assert timing_gemm.START_PHASE == GemmEngine.START_PHASE
    assert timing_gemm.DRAIN_LATENCY == GemmEngine.DRAIN_LATENCY
    assert timing_gemm.IN_FLIGHT == GemmEngine.IN_FLIGHT
    assert timing_gemm.DEFINE_CYCLES == Window.DEFINE_CYCLES


@pytest.mark.parametrize("block", [8, 16])
def test_the_cycle_model_of_both_cores_has_the_constants_of_the_array(block):
    pairs = block // 2
    assert timing_cores.LUT_TO_SUM + pairs == lut_array.beat_to_sum(block)
    assert timing_cores.LUT_TO_START + pairs == lut_array.beat_to_shadow(block) - 2


@pytest.mark.parametrize("gaps", [False, True], ids=["gapless", "gaps"])
@pytest.mark.parametrize(
    ("variant", "number"),
    [
        ("tiny", 80),
        ("packed", 25),
        ("odd", 6),
        ("wide", 12),
        ("windows", 100),
        ("wide-windows", 12),
    ],
)
def test_random_instructions(variant, number, gaps):
    config = VARIANTS[variant]
    rng = np.random.default_rng([list(VARIANTS).index(variant), gaps])
    memories = Memories(config, rng)
    instructions = []
    current_window = None
    for _ in range(number):
        if config.tap_depth and rng.random() < 0.3:
            current_window = random_window(rng, config)
            instructions.append(current_window)
        else:
            instructions.append(random_instruction(rng, config, current_window))
    waits = [int(rng.integers(0, 2) * rng.integers(0, 40)) if gaps else 0 for _ in instructions]
    outcome = run_engine(config, memories, [g.encode() for g in instructions], waits)
    check_results(memories, instructions, outcome)
    check_times(config, instructions, outcome, gapless=not gaps)


@pytest.mark.parametrize(("blocks", "beats"), [(1, 8), (2, 8), (3, 5), (8, 2)])
def test_no_bubble(blocks, beats):
    """Tiles as long as the drain, or longer by a frame, keep the multipliers busy."""
    memories = Memories(TINY, np.random.default_rng(1))
    instructions = [
        instruction(blocks=blocks, beats=beats, row_tiles=2, column_tiles=2),
        instruction(blocks=blocks, beats=beats, row_tiles=3),
        instruction(blocks=blocks, beats=beats),
    ]
    outcome = run_engine(TINY, memories, [g.encode() for g in instructions])
    check_results(memories, instructions, outcome)
    busy = [a == Activity.BUSY for a in outcome.activity]
    first, last = busy.index(True), len(busy) - busy[::-1].index(True)
    bubbles = busy[first:last].count(False)
    # Only the first tile's wait for its frame can delay the second, once.
    assert bubbles < (8 if blocks * beats < TINY.dsp_columns + 7 else 1)


def test_shortest_tiles_are_bound_by_the_drain():
    memories = Memories(TINY, np.random.default_rng(2))
    instructions = [instruction(row_tiles=4, column_tiles=3), *[instruction()] * 8]
    outcome = run_engine(TINY, memories, [g.encode() for g in instructions])
    check_results(memories, instructions, outcome)
    check_times(TINY, instructions, outcome, gapless=True)
    assert np.diff(outcome.retired[-8:]).tolist() == [TINY.dsp_columns] * 7


def test_many_held_instructions_behind_a_drain():
    memories = Memories(TINY, np.random.default_rng(3))
    instructions = [
        instruction(),
        *[instruction(hold=1, accumulate=1)] * 30,
        instruction(accumulate=1, wide=1),
        instruction(hold=1),
    ]
    outcome = run_engine(TINY, memories, [g.encode() for g in instructions])
    check_results(memories, instructions, outcome)
    check_times(TINY, instructions, outcome, gapless=True)


def test_activity():
    memories = Memories(TINY, np.random.default_rng(4))
    outcome = run_engine(TINY, memories, [instruction(blocks=3).encode()])
    names = [Activity(a).name for a in outcome.activity[outcome.accepted[0] :]]
    ending = outcome.retired[0] - outcome.accepted[0] - 3
    assert names[: 5 + ending] == ["IDLE", *["BUSY"] * 3, *["ENDING"] * ending, "IDLE"]


def test_an_error_leaves_the_instruction_before_unharmed():
    memories = Memories(TINY, np.random.default_rng(5))
    good = instruction(wide=1)
    bad = instruction(blocks=2, a=TINY.activation_depth - 1)
    outcome = run_engine(TINY, memories, [g.encode() for g in (good, bad, good)])
    assert outcome.errors == [(Cause.ADDRESS_OUT_OF_RANGE, 101)]
    assert outcome.writes == Reference(memories).execute(good)
    assert len(outcome.retired) == 1
