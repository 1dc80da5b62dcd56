"""Programs without a compiler: assembled by hand, or random from a seed.

Random programs are legal and free of deadlock, but their data are meaningless: they are what timing
is compared on.
"""

from collections.abc import Callable

import numpy as np

from twillcore.config import PRESETS, Config
from twillcore.image import Image, Layer, Slot
from twillcore.isa import (
    ISA,
    TAP,
    WORD_BYTES,
    Engine,
    Instruction,
    Memory,
    MoveMode,
    Opcode,
    WeightFormat,
    encode_parameter,
)
from twillcore.weights import encoded_rows, plane_row_bytes, weight_row_bytes

TINY = PRESETS["tiny"]
DATA = 1 << 16  # instructions lie below, data above


class Program:
    """Instructions and DRAM content, put together step by step."""

    def __init__(self, config: Config = TINY) -> None:
        self.config = config
        self.instructions: list[Instruction] = []
        self.data = bytearray()
        self.inputs: list[Slot] = []
        self.outputs: list[Slot] = []

    def place(self, content: bytes | int) -> int:
        """Put bytes (or as many zeros) in DRAM and return their address."""
        address = DATA + len(self.data)
        self.data += bytes(content)
        self.data += bytes(-len(self.data) % 64)
        return address

    def slot(self, name: str, kind: str, shape: tuple[int, int, int], output=False) -> Slot:
        """Reserve DRAM for an input, or an output."""
        slot = Slot(name, kind, 0, *shape)
        address = self.place(slot.size_bytes(self.config))
        slot = Slot(name, kind, address, *shape)
        (self.outputs if output else self.inputs).append(slot)
        return slot

    def parameters(self, bias, multiplier, shift, narrow_shift) -> int:
        """Put parameter entries in DRAM; scalars count for all columns."""
        arrays = np.broadcast_arrays(bias, multiplier, shift, narrow_shift)
        entries = [encode_parameter(*map(int, row)) for row in zip(*arrays, strict=True)]
        return self.place(np.array(entries, "<u8").tobytes())

    def add(self, opcode: Opcode, wait: int = 0, signal: int = 0, **operands: int) -> int:
        """Append an instruction, operands that are not given being 0; returns its index."""
        defaults = {field.name: 0 for field in ISA[opcode].operands}
        if unknown := operands.keys() - defaults.keys():
            raise ValueError(f"{opcode.name} has no operands {sorted(unknown)}")
        self.instructions.append(Instruction(opcode, defaults | operands, wait, signal))
        return len(self.instructions) - 1

    def depend(self, first: int, then: int) -> None:
        """Let instruction ``then`` wait for the end of ``first``, on another engine."""
        before, after = self.instructions[first], self.instructions[then]
        before = _with(before, signal=before.signal | 1 << after.engine)
        after = _with(after, wait=after.wait | 1 << before.engine)
        self.instructions[first], self.instructions[then] = before, after

    def sequential(self) -> None:
        """Let every instruction wait for its predecessor where that is on another engine."""
        for then in range(1, len(self.instructions)):
            if self.instructions[then - 1].engine != self.instructions[then].engine:
                self.depend(then - 1, then)

    def image(self) -> Image:
        """Return the program, with a HALT behind its instructions."""
        words = [*self.instructions, Instruction(Opcode.HALT, {})]
        code = b"".join(i.encode().to_bytes(WORD_BYTES, "little") for i in words)
        assert len(code) <= DATA
        memory = code.ljust(DATA, b"\0") + bytes(self.data)
        layer = Layer("all")
        return Image(
            self.config, 0, len(words), memory, len(memory), tuple(self.inputs),
            tuple(self.outputs), (layer,), (0,) * len(words),
        )  # fmt: skip


def _with(i: Instruction, **masks: int) -> Instruction:
    return Instruction(i.opcode, i.operands, **{"wait": i.wait, "signal": i.signal} | masks)


def random_program(seed: int, config: Config = TINY, length: int | None = None) -> Image:
    """Return a program of random instructions of all engines with random dependences."""
    rng = np.random.default_rng(seed)
    program = Program(config)
    program.place(rng.integers(0, 256, 1 << 18, np.uint8).tobytes())
    length = length or int(rng.integers(1, 40))
    makers: list[Callable] = [_load, _store, _gemm]
    if config.operand_depth:
        makers.append(_move)
    if config.wide_depth:
        makers += [_softmax, _layer_norm, _elementwise]
    if config.lut_columns:
        makers += [_on_lut(_gemm), _both_cores_busy(rng)]
        if config.tap_depth:
            makers += [_on_lut(_window), _on_lut(_windowed_gemm)]
            program.add(Opcode.LUT_WINDOW, **_window(rng, config)[1])
    if config.tap_depth:
        makers += [_window, _windowed_gemm]
        program.add(Opcode.WINDOW, **_window(rng, config)[1])  # a windowed GEMM needs one
    weights = rng.dirichlet(np.ones(len(makers)))
    tokens = rng.choice([0.0, 0.3, 0.9])
    for _ in range(length):
        opcode, operands = makers[rng.choice(len(makers), p=weights)](rng, config)
        then = program.add(opcode, **operands)
        engine = program.instructions[then].engine
        for other in set(Engine) - {engine}:
            # A fresh signal for every wait: the tokens never run out.
            fresh = [
                index
                for index, i in enumerate(program.instructions[:-1])
                if i.engine == other and not i.signal >> engine & 1
            ]
            if fresh and rng.random() < tokens:
                program.depend(fresh[-1] if rng.random() < 0.7 else int(rng.choice(fresh)), then)
    return program.image()


def random_chain(seed: int, config: Config = TINY, length: int = 12) -> Image:
    """Return a program of GEMMs (through windows, if there are any) on random memories.

    The cores work side by side; all activations and wide words are outputs.
    """
    rng = np.random.default_rng(seed)
    program = Program(config)

    def load(memory: Memory, depth: int, dram: int) -> None:
        if depth:
            program.add(Opcode.LOAD, memory=memory, dram=dram, count=depth, runs=1)

    for memory, depth, unit_bytes in (
        (Memory.ACTIVATION, config.activation_depth, config.word_bytes),
        (Memory.WIDE, config.wide_depth, 2 * config.word_bytes),
        (Memory.WEIGHT, config.weight_depth, weight_row_bytes(config)),
        (Memory.LUT_WEIGHT, config.lut_weight_depth, plane_row_bytes(config)),
        (Memory.TABLE, 64 * config.function_table, 8),
    ):
        load(memory, depth, program.place(rng.bytes(depth * unit_bytes)))
    depth = config.parameter_depth
    parameters = program.parameters(
        rng.integers(-1000, 1000, depth), rng.integers(-(1 << 15), 1 << 15, depth),
        rng.integers(12, 24, depth), rng.integers(0, 9, depth),
    )  # fmt: skip
    load(Memory.PARAMETER, depth, parameters)
    makers = [_gemm]
    if config.tap_depth:
        entries = [_tap(rng, config) for _ in range(config.tap_depth)]
        load(Memory.TAP, config.tap_depth, program.place(np.array(entries, "<u8").tobytes()))
        program.add(Opcode.WINDOW, **_window(rng, config)[1])
        makers += [_window, _windowed_gemm]
    if config.lut_columns:
        if config.tap_depth:
            program.add(Opcode.LUT_WINDOW, **_window(rng, config)[1])
        makers += [_on_lut(maker) for maker in makers]
    for _ in range(length):
        opcode, operands = makers[int(rng.integers(len(makers)))](rng, config)
        if opcode in (Opcode.GEMM, Opcode.LUT_GEMM):
            depth = config.wide_depth if operands["wide"] else config.activation_depth
            # No GEMM reads what another one is about to write, or writes where the other core does.
            first = depth // 4 * (3 if opcode == Opcode.LUT_GEMM else 2)
            operands |= {"operand": 0, "lane_scaled": 0, "out": first + operands["out"] % 30}
            if opcode == Opcode.GEMM:
                # Tiles do not overlap, as above, and stay where they belong.
                words = operands["words"] or config.words_per_tile
                operands["out_row_stride"] = operands["column_tiles"] * words
                if operands["row_tiles"] * operands["out_row_stride"] > depth // 4 - 30:
                    operands["row_tiles"] = 1
        program.add(opcode, **operands)
    for memory, kind, depth in (
        (Memory.ACTIVATION, "int8", config.activation_depth),
        (Memory.WIDE, "int16", config.wide_depth),
    ):
        if depth:
            slot = program.slot(kind, kind, (1, depth * config.lanes, config.block), output=True)
            program.add(Opcode.STORE, memory=memory, dram=slot.address, count=depth, runs=1)
    # All loads, then the GEMMs of each core one after the other, then the stores.
    of_engine = {
        engine: [n for n, i in enumerate(program.instructions) if i.engine == engine]
        for engine in (Engine.LOAD, Engine.GEMM, Engine.LUT, Engine.STORE)
    }
    for engine in (Engine.GEMM, Engine.LUT):
        if of_engine[engine]:
            program.depend(of_engine[Engine.LOAD][-1], of_engine[engine][0])
            program.depend(of_engine[engine][-1], of_engine[Engine.STORE][0])
    return program.image()


def _tap(rng, config) -> int:
    """Return a tap that looks near, or beyond the memory."""
    near = rng.integers(-20, 20, 2) + rng.choice([0, 0, -config.activation_depth, 1 << 15])
    word, at = 0, 0
    for field in TAP:
        value = int(rng.integers(config.lanes) if "rotate" in field.name else rng.choice(near))
        word |= (max(field.low, min(value, field.high)) & (1 << field.bits) - 1) << at
        at += field.bits
    return word


def _size(rng, high: int) -> int:
    """Return 1..high, small values as often as large ones."""
    return int(min(np.exp(rng.uniform(0, np.log(high + 1))), high))


def _runs(rng, config, unit_bytes, depth, multiple=1, rows=None) -> dict:
    """Return operands of a copy between DRAM and a memory of ``depth`` units."""
    runs = _size(rng, 6)
    count = max(_size(rng, min(40, depth // runs)) // multiple, 1) * multiple
    runs = min(runs, depth // count)
    run_bytes = unit_bytes * (rows(count) if rows else count)
    step = config.axi_bytes
    run_bytes += -run_bytes % step
    stride = int(rng.integers(0, 2 * run_bytes // step + 1)) * step if rng.random() < 0.5 else (
        run_bytes
    )  # fmt: skip
    dram = DATA + int(rng.integers(0, (1 << 14) // step)) * step
    local_stride = int(rng.integers(count, depth // runs + 1))
    limit = max(depth - (runs - 1) * local_stride - count, 0)
    return {
        "dram": dram, "dram_stride": stride, "local_stride": local_stride,
        "local": int(rng.integers(0, limit // multiple + 1)) * multiple, "count": count,
        "runs": runs,
    }  # fmt: skip


def _load(rng, config):
    absent = {
        Memory.WIDE: not config.wide_depth,
        Memory.NORM: not config.norm_depth,
        Memory.TABLE: not config.function_table,
    }
    memories = [m for m in Memory if m <= Memory.TABLE and not absent.get(m)]
    if config.tap_depth:
        memories.append(Memory.TAP)
    memory = memories[int(rng.integers(len(memories)))]
    entries = max(1, config.axi_bytes // 8)
    if memory == Memory.WEIGHT:
        format = WeightFormat(int(rng.integers(3)))
        beats = int(rng.integers(1, config.block + 1))
        multiple = {WeightFormat.BITMAP: beats, WeightFormat.DENSE: 1, WeightFormat.INDEX: 1}
        operands = _runs(
            rng, config, weight_row_bytes(config), config.weight_depth // 4, multiple[format],
            lambda count: encoded_rows(count, beats, format, config),
        )  # fmt: skip
        return Opcode.LOAD, operands | {"memory": memory, "format": format, "beats": beats}
    if memory == Memory.TABLE:
        operands = _runs(rng, config, 8, 64) | {
            "runs": 1, "count": 64, "local": 0, "local_stride": 0,
        }  # fmt: skip
    elif memory in (Memory.PARAMETER, Memory.NORM, Memory.TAP):
        depth = config.tap_depth if memory == Memory.TAP else 128
        operands = _runs(rng, config, 8, depth, entries)
        operands["local_stride"] += -operands["local_stride"] % entries
    else:
        operands = _runs(rng, config, config.word_bytes * (1 + (memory == Memory.WIDE)), 128)
    return Opcode.LOAD, operands | {"memory": memory}


def _store(rng, config):
    memory = Memory(int(rng.integers(2 if config.wide_depth else 1)))
    unit = config.word_bytes * (2 if memory == Memory.WIDE else 1)
    operands = _runs(rng, config, unit, 128)
    operands["dram_stride"] = max(operands["dram_stride"], unit * operands["count"])
    return Opcode.STORE, operands | {"memory": memory}


def _gemm(rng, config):
    blocks, beats = _size(rng, 8), int(rng.integers(1, config.block + 1))
    wide = int(rng.random() < 0.4 and config.wide_depth > 0)
    split = rng.random() < 0.25
    columns = 1 if split else _size(rng, 4)
    operands = {
        "a": int(rng.integers(64)), "a_row_stride": blocks,
        "a_column_stride": int(rng.choice([0, 0, blocks])),
        "row_tiles": 1 if split else _size(rng, 4), "column_tiles": columns,
        "blocks": blocks, "beats": beats, "w": int(rng.integers(64)),
        "operand": 0, "counted": int(rng.random() < 0.3),
        "columns_inner": int(rng.integers(2)),
        "accumulate": int(split and rng.random() < 0.5), "hold": int(split and rng.random() < 0.5),
        "parameter": int(rng.integers(64)),
        "lane_scaled": int(rng.random() < 0.2 and config.lane_depth > 0),
        "residual": int(rng.random() < 0.3),
        "residual_narrow": int(rng.integers(2) or not config.wide_depth),
        "residual_address": int(rng.integers(64)), "residual_row_stride": columns,
        "residual_shift": int(rng.integers(-8, 16)),
        "function": int(rng.integers(2 + config.function_table)),
        "wide": wide, "out": int(rng.integers(100)), "out_row_stride": columns,
        "words": int(rng.integers(2) * rng.integers(config.words_per_tile + 1)),
    }  # fmt: skip
    if config.operand_depth and blocks * beats * columns > config.operand_depth // 2:
        operands["column_tiles"] = 1
    if config.operand_depth and rng.random() < 0.3:
        operands |= {"operand": 1, "counted": 1}
    if wide and operands["columns_inner"] and rng.random() < 0.5:
        operands["keep_maximum"] = 1
    return Opcode.GEMM, operands


def _on_lut(maker):
    """Return a maker of what ``maker`` makes, for the LUT core."""

    def lut_maker(rng, config):
        opcode, operands = maker(rng, config)
        if opcode == Opcode.WINDOW:
            return Opcode.LUT_WINDOW, operands
        for name in ("operand", "counted", "keep_maximum", "pool"):
            operands[name] = 0
        operands |= {
            "beats": int(rng.integers(1, 9)),
            "w": operands["w"] % 40,
            "words": operands["words"] % (config.lut_columns // config.block + 1),
        }
        if operands["blocks"] * operands["beats"] * operands["column_tiles"] > 192:
            operands["column_tiles"] = 1
        # Tiles do not overlap: which of two that do is written last depends on the order of loops.
        operands["out_row_stride"] = operands["column_tiles"] * config.lut_columns // config.block
        if operands["hold"] and operands["blocks"] == 1:
            operands["beats"] = max(operands["beats"], 2)
        return Opcode.LUT_GEMM, operands

    return lut_maker


def _both_cores_busy(rng):
    """Return a maker of GEMMs of either core that are long, of one shape and often in conflict."""
    beats = [int(rng.integers(1, 9)) for _ in range(2)]

    def maker(rng, config):
        opcode, operands = rng.choice([_gemm, _on_lut(_gemm)])(rng, config)
        if rng.random() < 0.7:
            operands["beats"] = beats[opcode == Opcode.LUT_GEMM]
        operands["blocks"] = 1 + _size(rng, 24)
        if not (operands["hold"] or operands["accumulate"]):
            operands |= {"row_tiles": _size(rng, 8), "column_tiles": 1}
        return opcode, operands

    return maker


def _window(rng, config):
    taps = _size(rng, 9)
    stride, pitch = int(rng.integers(1, 3)), _size(rng, 3 * config.lanes)
    return Opcode.WINDOW, {
        "tap": int(rng.integers(config.tap_depth - taps + 1)), "taps": taps, "stride": stride,
        "width": _size(rng, 40), "height": _size(rng, 40), "pitch": pitch,
        "y": int(rng.integers(-3, 10)), "tile_x": stride * (config.lanes % pitch),
        "tile_y": stride * (config.lanes // pitch), "tile_stride": _size(rng, 8),
        "line_tiles": int(rng.integers(3)), "line_stride": int(rng.integers(5)),
    }  # fmt: skip


def _windowed_gemm(rng, config):
    opcode, operands = _gemm(rng, config)
    blocks = min(operands["blocks"], 3)
    operands |= {"windowed": 1, "operand": 0, "column_tiles": 1, "blocks": blocks}
    if rng.random() < 0.3:
        operands |= {"pool": 1, "blocks": 1, "beats": 1}
    return opcode, operands


def _move(rng, config):
    mode = MoveMode(int(rng.integers(2)))
    tiles, blocks = _size(rng, 5), _size(rng, 4) * config.words_per_tile
    stride = blocks * config.block if mode == MoveMode.KEYS else tiles * config.lanes
    most = -(-tiles * config.lanes // config.dsp_columns) if mode == MoveMode.KEYS else (
        blocks // config.words_per_tile
    )  # fmt: skip
    if most * stride > config.operand_depth - 32:
        tiles, blocks = 1, config.words_per_tile
    return Opcode.MOVE, {
        "mode": mode, "a": int(rng.integers(100)), "a_row_stride": blocks, "row_tiles": tiles,
        "blocks": blocks, "out": int(rng.integers(32)), "column_stride": stride,
    }  # fmt: skip


def _rows(rng, most: int) -> dict:
    words = _size(rng, most)
    return {
        "a": int(rng.integers(64)), "a_row_stride": words, "row_tiles": _size(rng, 4),
        "words": words, "out": int(rng.integers(64)), "out_row_stride": words,
    }  # fmt: skip


def _softmax(rng, config):
    return Opcode.SOFTMAX, _rows(rng, 12) | {
        "maximum": int(rng.integers(8)), "lane": int(rng.integers(8)),
        "numerator": int(rng.integers(1 << 15, 1 << 16)), "shift": int(rng.integers(30, 40)),
    }  # fmt: skip


def _layer_norm(rng, config):
    rows = _rows(rng, 12)
    wide = int(rng.integers(2))
    return Opcode.LAYER_NORM, rows | {
        "channels": rows["words"] * config.block,  # fewer need zeros beyond
        "epsilon": int(rng.integers(1 << 32)), "parameter": int(rng.integers(64)),
        "narrow": int(not wide or rng.integers(2)), "wide": wide, "wide_out": 128,
        "wide_out_row_stride": rows["words"],
    }  # fmt: skip


def _elementwise(rng, config):
    rows = _rows(rng, 12)
    return Opcode.ELEMENTWISE, rows | {
        "op": int(rng.integers(2)), "a_wide": int(rng.integers(2)), "b_wide": int(rng.integers(2)),
        "b": int(rng.integers(64)), "b_row_stride": rows["words"],
        "a_multiplier": int(rng.integers(-(1 << 15), 1 << 15)),
        "b_multiplier": int(rng.integers(-(1 << 15), 1 << 15)), "shift": int(rng.integers(0, 30)),
        "narrow_shift": int(rng.integers(16)), "wide": int(rng.integers(2)),
    }  # fmt: skip
