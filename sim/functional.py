"""Instructions on numpy memories, in program order: bit-exact, knows no time.

Each instruction is executed whole and vectorised. Since program order is a valid order of any legal
program, tokens are ignored here; an engine that knows time finds those that are missing.
"""

import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from twillcore import numerics
from twillcore.config import Config
from twillcore.image import Image
from twillcore.isa import (
    ENTRY_MEMORIES,
    ISA,
    LUT_WEIGHT_BITS,
    PARAMETER,
    TAP,
    WORD_BYTES,
    Cause,
    ElementwiseOp,
    Engine,
    Field,
    Function,
    Instruction,
    Memory,
    MoveMode,
    Opcode,
    WeightFormat,
)
from twillcore.result import Result
from twillcore.sim.machine_error import MachineError
from twillcore.sim.memories import Fault, Memories
from twillcore.sim.transfer import run_bytes
from twillcore.weights import decode_planes, decode_rows

Ints = NDArray[np.int64]
FLOAT32_EXACT = 1 << 24  # integers below are exact in float32
#: Memories of 64-bit entries.


class FunctionalEngine:
    """Executes a program on numpy memories.

    Parameters
    ----------
    strict
        Stop when a word is read that nobody has written (rows of the operand memory are exempt: a
        product reads keys and values up to whole tiles).
    garbage
        Seed of random bits with which all memories start; results of a correct program do not
        depend on them. None: zeros.
    """

    name = "functional"

    def __init__(self, *, strict: bool = False, garbage: int | None = None) -> None:
        self.strict, self.garbage = strict, garbage

    def run(self, image: Image, inputs: Mapping[str, NDArray]) -> Result:
        """Execute ``image`` and return its outputs.

        Raises
        ------
        ProgramError
            If the inputs do not fit the program.
        MachineError
            If an instruction is illegal or addresses what does not exist.
        """
        start = time.perf_counter()
        machine = _Machine(image, inputs, strict=self.strict, garbage=self.garbage)
        count = machine.run()
        return Result(
            outputs=image.read_outputs(machine.dram),
            engine=self.name,
            bytes_read=machine.bytes_loaded + count * WORD_BYTES,
            bytes_written=machine.bytes_stored,
            seconds=time.perf_counter() - start,
        )


def decode_program(image: Image) -> list[Instruction]:
    """Decode a program up to its first HALT, that included.

    Raises
    ------
    MachineError
        If a word is illegal, or there is no HALT.
    """
    program = []
    for index in range(image.instruction_count):
        first = image.program_address + index * WORD_BYTES
        word = int.from_bytes(image.memory[first : first + WORD_BYTES], "little")
        try:
            program.append(Instruction.decode(word))
        except ValueError as error:
            raise MachineError(
                Cause.ILLEGAL_INSTRUCTION, "dispatch", index, detail=str(error)
            ) from None
        if missing := _missing(program[-1], image.config):
            raise MachineError(
                Cause.ILLEGAL_INSTRUCTION,
                "dispatch",
                index,
                str(program[-1]),
                f"there is no {missing}",
            )
        if program[-1].opcode == Opcode.HALT:
            return program
    raise MachineError(
        Cause.ILLEGAL_INSTRUCTION, "dispatch", image.instruction_count, detail="no HALT"
    )


def _missing(i: Instruction, config: Config) -> str:
    """Return what an instruction needs and the configuration lacks, empty if nothing."""
    if i.engine not in (None, *config.engines):
        return "such engine"
    if i.opcode not in config.opcodes:
        return "norm memory" if i.opcode == Opcode.LAYER_NORM else "window"
    if (i.wait | i.signal) & ~sum(1 << engine for engine in config.engines):
        return "such engine"
    gemm = i.opcode in (Opcode.GEMM, Opcode.LUT_GEMM)
    if gemm and i["windowed"] and not config.tap_depth:
        return "window"
    if gemm and i["function"] == Function.TABLE and not config.function_table:
        return "function table"
    if i.opcode == Opcode.LOAD and i["memory"] == Memory.TABLE and not config.function_table:
        return "function table"
    return ""


class _Machine:
    """Memories, and how each opcode changes them."""

    def __init__(
        self, image: Image, inputs: Mapping[str, NDArray], *, strict: bool, garbage: int | None
    ) -> None:
        self.config, self.program = image.config, decode_program(image)
        self.dram = np.frombuffer(image.initial_memory(inputs), np.uint8)
        self.memories = Memories(image.config, strict=strict, garbage=garbage)
        self.columns = {
            Engine.GEMM: self.config.dsp_columns,
            Engine.LUT: self.config.lut_columns,
        }
        self.accumulators = {
            core: np.zeros((self.config.lanes, columns), np.int64)
            for core, columns in self.columns.items()
        }
        self.windows: dict[Engine, Instruction] = {}
        self.bytes_loaded = self.bytes_stored = 0
        self.execute: Mapping[Opcode, Callable[[Instruction], None]] = {
            Opcode.LOAD: self.load,
            Opcode.STORE: self.store,
            Opcode.GEMM: self.gemm,
            Opcode.LUT_GEMM: self.gemm,
            Opcode.WINDOW: self.window,
            Opcode.LUT_WINDOW: self.window,
            Opcode.MOVE: self.move,
            Opcode.SOFTMAX: self.softmax,
            Opcode.LAYER_NORM: self.layer_norm,
            Opcode.ELEMENTWISE: self.elementwise,
        }

    def run(self) -> int:
        """Execute the program; returns how many instructions, HALT included."""
        for index, instruction in enumerate(self.program[:-1]):
            try:
                check_enumerations(instruction)
                self.execute[instruction.opcode](instruction)
            except Fault as fault:
                raise MachineError(
                    fault.cause, instruction.engine.name.lower(), index, str(instruction),
                    fault.detail,
                ) from None  # fmt: skip
        return len(self.program)

    # DRAM

    def dram_runs(self, i: Instruction, cause: Cause) -> Ints:
        """Return the byte addresses of every run, (runs, bytes of a run)."""
        for name in ("dram", "dram_stride"):
            require(i[name] % self.config.axi_bytes == 0, f"{name} is not a multiple of a beat")
        require(i["runs"] > 0 and i["count"] > 0, "nothing to copy")
        first = i["dram"] + np.arange(i["runs"]) * i["dram_stride"]
        size = run_bytes(i.operands, self.config)
        end = int(first.max()) + size
        if end > len(self.dram):
            raise Fault(cause, f"DRAM up to byte {end}, there are {len(self.dram)}")
        return first[:, None] + np.arange(size)

    def load(self, i: Instruction) -> None:
        config, memories = self.config, self.memories
        units, beats = i["count"], i["beats"]
        local = (i["local"] + np.arange(i["runs"]) * i["local_stride"])[:, None] + np.arange(units)
        memory, format = Memory(i["memory"]), WeightFormat(i["format"])
        require(memory == Memory.WEIGHT or not format, "only weights have a format")
        require(memory != Memory.NORM or config.norm_depth > 0, "there is no norm memory")
        require(memory != Memory.WIDE or config.wide_depth > 0, "there is no wide memory")
        require(memory != Memory.TAP or config.tap_depth > 0, "there is no tap memory")
        require(memory != Memory.LUT_WEIGHT or config.lut_columns > 0, "there is no LUT core")
        if memory in ENTRY_MEMORIES:  # a beat is written at once
            entries = config.entries_per_beat
            for name in ("local", "local_stride", "count"):
                require(i[name] % entries == 0, f"{name} is not a multiple of {entries}")
        if format == WeightFormat.BITMAP:
            require(1 <= beats <= config.block, f"beats is not 1..{config.block}")
            require(units % beats == 0, "count is not a multiple of beats")
        data = self.dram[self.dram_runs(i, Cause.AXI_READ_ERROR)]
        self.bytes_loaded += data.size
        word = (*local.shape, config.lanes, config.block)
        match memory:
            case Memory.ACTIVATION:
                memories.activation.write(local, data.view(np.int8).reshape(word))
            case Memory.WIDE:
                memories.wide.write(local, data.view("<i2").reshape(word))
            case Memory.PARAMETER | Memory.NORM | Memory.TAP:
                getattr(memories, memory.name.lower()).write(local, data.view("<u8"))
            case Memory.TABLE:
                entries = (4 * local[..., None] + np.arange(4)).reshape(i["runs"], -1)
                memories.table.write(entries, data.view("<i2"))
            case Memory.WEIGHT:
                for addresses, run in zip(local, data, strict=True):
                    weights, index = decode_rows(run.tobytes(), units, beats, format, config)
                    memories.weight.write(addresses, weights)
                    memories.index.write(addresses, index)
            case Memory.LUT_WEIGHT:
                row_bytes = config.lut_columns * config.block // 8  # the rest is padding
                rows = data.reshape(*local.shape, -1)[..., :row_bytes]
                memories.lut_weight.write(local, rows)

    def store(self, i: Instruction) -> None:
        memory = Memory(i["memory"])
        require(memory in (Memory.ACTIVATION, Memory.WIDE), f"stores from {memory.name}")
        require(memory != Memory.WIDE or self.config.wide_depth > 0, "there is no wide memory")
        source = self.memories.wide if memory == Memory.WIDE else self.memories.activation
        local = (i["local"] + np.arange(i["runs"]) * i["local_stride"])[:, None]
        words = source.read(local + np.arange(i["count"]))
        data = words.reshape(i["runs"], -1).view(np.uint8)
        for addresses, run in zip(self.dram_runs(i, Cause.AXI_WRITE_ERROR), data, strict=True):
            self.dram[addresses] = run
        self.bytes_stored += data.size

    # GEMM

    def window(self, i: Instruction) -> None:
        require(i["stride"] in (1, 2), "stride is not 1 or 2")
        require(min(i["taps"], i["pitch"]) > 0, "no taps or no pitch")
        require(i["tap"] + i["taps"] <= self.config.tap_depth, "taps beyond the tap memory")
        self.windows[i.engine] = i

    def gemm(self, i: Instruction) -> None:
        """GEMM and LUT_GEMM: the same but for how the weights are stored."""
        config, memories, core = self.config, self.memories, i.engine
        columns, lut = self.columns[core], core == Engine.LUT
        require(min(i["row_tiles"], i["column_tiles"], i["blocks"]) > 0, "no tiles or no blocks")
        most = LUT_WEIGHT_BITS if lut else config.block
        require(1 <= i["beats"] <= most, f"beats is not 1..{most}")
        require(not i["keep_maximum"] or i["columns_inner"], "keep_maximum needs columns_inner")
        require(not i["residual"] or i["residual_shift"] >= -8, "residual_shift is not -8..15")
        require(i["words"] * config.block <= columns, "more words than a column tile has")
        if i["accumulate"] or i["hold"]:
            require(i["row_tiles"] == i["column_tiles"] == 1, "accumulates over several tiles")
        if i["pool"]:
            require(i["windowed"] and i["blocks"] == i["beats"] == 1, "pools what is no window")
        if lut:
            for name in ("operand", "counted", "pool", "keep_maximum"):
                require(not i[name], f"{name} is not for the LUT core")
            taps = self.windows[core]["taps"] if i["windowed"] and core in self.windows else 1
            beats = taps * i["blocks"] * i["beats"]
            require(not i["hold"] or beats > 1, "the LUT core holds no tile of a single beat")
        if i["windowed"]:
            require(core in self.windows, "no window has been set")
        acc, last = self.sums(i)
        if i["accumulate"]:
            acc += self.accumulators[core]
            last = acc[-1, -1]
        acc = wrap(acc, config.accumulator_bits)
        self.accumulators[core] = wrap(last, config.accumulator_bits)
        if i["hold"]:
            return
        drained = (i["words"] or columns // config.block) * config.block
        acc = acc[..., :drained]
        bias, multiplier, shift, narrow_shift = (
            values.reshape(1, -1, 1, drained)
            for values in decode_entries(
                memories.parameter.read(i["parameter"] + np.arange(i["column_tiles"] * drained)),
                PARAMETER,
            )
        )
        if i["lane_scaled"]:
            scale = memories.lane.read(i["lane"] + np.arange(i["row_tiles"]))
            multiplier, shift = np.moveaxis(scale[:, None, :, None], -1, 0)
        x = numerics.scale_accumulator(acc, bias, multiplier, shift)
        x = self.residual_and_function(i, x)
        if i["keep_maximum"]:
            row_tiles = np.arange(i["row_tiles"])
            memories.maximum.write(i["maximum"] + row_tiles, x.max(axis=(1, 3)))
        addresses = self.tile_addresses(i, "out", "out_row_stride", drained // config.block)
        if i["wide"]:
            memories.wide.write(addresses, self.as_words(x))
        else:
            memories.activation.write(addresses, self.as_words(numerics.narrow(x, narrow_shift)))

    def sums(self, i: Instruction) -> tuple[Ints, Ints]:
        """Return the sums of products, (row tiles, column tiles, lanes, columns).

        Of several column tiles that are drained in part, only those columns. Also returns all
        columns of the last tile, which stay in the accumulators.
        """
        config = self.config
        row_tiles, column_tiles = i["row_tiles"], i["column_tiles"]
        columns = self.columns[i.engine]
        a = self.windowed_inputs(i) if i["windowed"] else self.inputs(i)
        tiles, _, k = a.shape  # (tiles, rows, K)
        dense = self.dense_weights(i, k // config.block)
        last = a[-1, -config.lanes :].astype(np.float64) @ dense[-1].astype(np.float64)
        if column_tiles > 1 and i["words"]:
            columns = i["words"] * config.block
            dense = dense[..., :columns]
        largest = int(np.abs(dense).sum(axis=1, dtype=np.int64).max()) << 7
        dtype = np.float32 if largest <= FLOAT32_EXACT else np.float64
        if tiles == 1:  # one product for all column tiles
            dense = dense.transpose(1, 0, 2).reshape(1, k, -1)
        product = a.astype(dtype) @ dense.astype(dtype)  # (tiles, rows, columns, or all of them)
        product = product.reshape(tiles, row_tiles, config.lanes, -1, columns)
        product = product.transpose(1, 0, 3, 2, 4)
        sums = product.reshape(row_tiles, column_tiles, config.lanes, -1)
        return sums.astype(np.int64), last.astype(np.int64)

    def inputs(self, i: Instruction) -> NDArray[np.int8]:
        """Return what is multiplied, (column tiles, or 1 if all have the same, rows, K)."""
        tiles = np.arange(i["column_tiles"] if i["a_column_stride"] else 1)
        a = self.memories.activation.read(
            i["a"]
            + i["a_row_stride"] * np.arange(i["row_tiles"])[:, None, None]
            + i["a_column_stride"] * tiles[:, None]
            + np.arange(i["blocks"])
        )  # (row tiles, tiles, blocks, lanes, block)
        a = a.transpose(1, 0, 3, 2, 4)
        return a.reshape(len(tiles), i["row_tiles"] * self.config.lanes, -1)

    def windowed_inputs(self, i: Instruction) -> NDArray[np.int8]:
        """As :meth:`inputs`, through the window of the core: K is (taps, blocks, block)."""
        config, window = self.config, self.windows[i.engine]
        lanes, stride = config.lanes, window["stride"]
        taps = self.memories.tap.read(window["tap"] + np.arange(window["taps"]))
        words = np.arange(i["blocks"])
        if i["a_column_stride"]:
            words = i["a_column_stride"] * np.arange(i["column_tiles"])[:, None] + words
        words = words.reshape(-1, i["blocks"])
        tile, lane = np.arange(i["row_tiles"]), np.arange(lanes)
        base = i["a"] + i["a_row_stride"] * tile
        if window["line_tiles"]:
            base += window["line_stride"] * (tile // window["line_tiles"])
        # The counters of a lane: its input pixel for tap (0, 0).
        line = stride * window["pitch"]
        x = stride * (lane % window["pitch"]) + window["tile_x"] * tile[:, None]
        y = stride * (lane // window["pitch"]) + window["tile_y"] * tile[:, None]
        y, x = window["y"] + y + stride * (x // line), x % line
        half = lane // (lanes // stride)
        inputs = []
        for offset, rotate, dx, dy, second_offset, second_rotate in zip(
            *decode_entries(taps, TAP), strict=True
        ):
            pixel = stride * (lane % (lanes // stride)) + np.where(half, second_rotate, rotate)
            address = base[:, None] + np.where(half, second_offset, offset)
            address += window["tile_stride"] * (pixel // lanes)
            inside = (x + dx >= 0) & (x + dx < window["width"])
            inside &= (y + dy >= 0) & (y + dy < window["height"])
            found = self.memories.activation.read_lanes(
                address[None, :, :, None] + words[:, None, None],
                (pixel % lanes)[:, None],
                inside[None, :, :, None],
                fill=numerics.INT8_MIN if i["pool"] else 0,
            )  # (tiles, row tiles, lanes, blocks, block)
            if i["pool"] and inputs:
                np.maximum(inputs[0], found, out=inputs[0])
            else:
                inputs.append(found)
        a = np.stack(inputs, axis=3)
        return a.reshape(len(words), i["row_tiles"] * lanes, -1)

    def dense_weights(self, i: Instruction, blocks: int) -> NDArray:
        """Return the weights of every column tile, (column tiles, blocks * block, columns)."""
        config, memories = self.config, self.memories
        column_tiles, beats, block = i["column_tiles"], i["beats"], config.block
        rows = i["w"] + np.arange(column_tiles * blocks * beats).reshape(-1, blocks, beats)
        if i.engine == Engine.LUT:
            planes = memories.lut_weight.read(rows)
            dense = decode_planes(planes.reshape(rows.size, -1), beats, config)
            return dense.reshape(column_tiles, blocks * block, config.lut_columns)
        weights = (memories.operand if i["operand"] else memories.weight).read(rows)
        dense = np.zeros((column_tiles, blocks, block, config.dsp_columns), np.int32)
        counting = np.arange(beats)[:, None]
        position = None if i["counted"] or i["operand"] else memories.index.read(rows)
        if position is None or (position == counting).all():
            dense[:, :, :beats] = weights
        else:
            for beat in range(beats):  # positions may repeat, between beats only
                at = position[:, :, beat : beat + 1]
                value = np.take_along_axis(dense, at, 2) + weights[:, :, beat : beat + 1]
                np.put_along_axis(dense, at, value, 2)
        return dense.reshape(column_tiles, blocks * block, config.dsp_columns)

    def residual_and_function(self, i: Instruction, x: Ints) -> Ints:
        """Return int16 ``x`` (row tiles, column tiles, lanes, columns) further down the drain."""
        memories = self.memories
        if i["residual"]:
            memory = memories.activation if i["residual_narrow"] else memories.wide
            width = x.shape[-1] // self.config.block
            words = memory.read(
                self.tile_addresses(i, "residual_address", "residual_row_stride", width)
            )
            residual = words.swapaxes(2, 3).reshape(x.shape)
            x = numerics.add_residual(x, residual, i["residual_shift"])
        if i["function"] == Function.RELU:
            x = numerics.relu(x)
        elif i["function"] == Function.TABLE:
            x = numerics.look_up(x, memories.table.read(np.arange(numerics.TABLE_ENTRIES)))
        return x

    def tile_addresses(self, i: Instruction, first: str, row_stride: str, words: int) -> Ints:
        """Return addresses of ``words`` words per tile, (row tiles, column tiles, words)."""
        return (
            i[first]
            + i[row_stride] * np.arange(i["row_tiles"])[:, None, None]
            + np.arange(i["column_tiles"] * words).reshape(-1, words)
        )

    def as_words(self, x: Ints) -> Ints:
        """Reshape (.., lanes, columns) to words (.., words, lanes, block)."""
        return x.reshape(*x.shape[:-1], -1, self.config.block).swapaxes(-2, -3)

    # MOVE

    def move(self, i: Instruction) -> None:
        config = self.config
        lanes, columns = config.lanes, config.dsp_columns
        tiles, blocks = np.arange(i["row_tiles"]), i["blocks"]
        require(i["row_tiles"] > 0 and blocks > 0, "nothing to move")
        words = self.memories.activation.read(
            i["a"] + i["a_row_stride"] * tiles[:, None] + np.arange(blocks)
        )
        x = words.swapaxes(1, 2).reshape(len(tiles), lanes, -1)  # (tiles, lanes, channels)
        operand = self.memories.operand
        if i["mode"] == MoveMode.KEYS:
            channels = np.arange(x.shape[2])
            groups = columns // lanes
            for tile in tiles:
                rows = i["out"] + tile // groups * i["column_stride"] + channels
                group = tile % groups * lanes
                values = operand.read(rows)
                values[:, group : group + lanes] = x[tile].T
                operand.write(rows, values)
            return
        require(blocks % config.words_per_tile == 0, "blocks are no whole column tiles")
        column_tiles = np.arange(x.shape[2] // columns)
        rows = i["out"] + column_tiles[:, None] * i["column_stride"] + np.arange(tiles.size * lanes)
        operand.write(rows, x.reshape(-1, column_tiles.size, columns).swapaxes(0, 1))

    # VECTOR

    def vector_addresses(self, i: Instruction, first: str, row_stride: str) -> Ints:
        """Return addresses of all words of an operand of the vector unit, (row tiles, words)."""
        require(i["row_tiles"] > 0 and i["words"] > 0, "no tiles or no words")
        tiles = np.arange(i["row_tiles"])[:, None]
        return i[first] + i[row_stride] * tiles + np.arange(i["words"])

    def softmax(self, i: Instruction) -> None:
        memories, tiles = self.memories, np.arange(i["row_tiles"])
        x = memories.wide.read(self.vector_addresses(i, "a", "a_row_stride"))
        maximum = memories.maximum.read(i["maximum"] + tiles)[:, None, :, None]
        e = numerics.exponential(np.minimum(x, maximum), maximum)
        scale = numerics.lane_scale(e.sum(axis=(1, 3)), i["numerator"], i["shift"])
        memories.lane.write(i["lane"] + tiles, np.stack(scale, axis=-1))
        memories.activation.write(self.vector_addresses(i, "out", "out_row_stride"), e)

    def layer_norm(self, i: Instruction) -> None:
        config, memories = self.config, self.memories
        x = memories.wide.read(self.vector_addresses(i, "a", "a_row_stride"))
        q = x.swapaxes(1, 2).reshape(i["row_tiles"], config.lanes, -1)
        require(i["channels"] <= q.shape[-1], "more channels than words hold")
        entries = memories.norm.read(i["parameter"] + np.arange(q.shape[-1]))
        beta, gamma, shift, narrow_shift = decode_entries(entries, PARAMETER)
        y = numerics.layer_norm(q, i["channels"], i["epsilon"], gamma, beta, shift)
        if i["wide"]:
            addresses = self.vector_addresses(i, "wide_out", "wide_out_row_stride")
            memories.wide.write(addresses, self.as_words(y))
        if i["narrow"]:
            addresses = self.vector_addresses(i, "out", "out_row_stride")
            memories.activation.write(addresses, self.as_words(numerics.narrow(y, narrow_shift)))

    def elementwise(self, i: Instruction) -> None:
        memories = self.memories

        def operand(name: str) -> Ints:
            memory = memories.wide if i[f"{name}_wide"] else memories.activation
            return memory.read(self.vector_addresses(i, name, f"{name}_row_stride"))

        a, b = operand("a"), operand("b")
        if i["op"] == ElementwiseOp.ADD:
            x = numerics.elementwise_add(a, b, i["a_multiplier"], i["b_multiplier"], i["shift"])
        else:
            x = numerics.elementwise_multiply(a, b, i["a_multiplier"], i["shift"])
        addresses = self.vector_addresses(i, "out", "out_row_stride")
        if i["wide"]:
            memories.wide.write(addresses, x)
        else:
            memories.activation.write(addresses, numerics.narrow(x, i["narrow_shift"]))


def check_enumerations(i: Instruction) -> None:
    """Refuse values that the enumeration of their field lacks."""
    for field in ISA[i.opcode].operands:
        if field.enum is not None and i[field.name] not in tuple(field.enum):
            raise Fault(Cause.ILLEGAL_INSTRUCTION, f"{field.name} has no value {i[field.name]}")


def require(condition: bool, otherwise: str) -> None:
    """Refuse an operand that no instruction may have."""
    if not condition:
        raise Fault(Cause.ILLEGAL_INSTRUCTION, otherwise)


def wrap(x: Ints, bits: int) -> Ints:
    """Return ``x`` modulo 2**bits, as a two's complement accumulator keeps it."""
    half = 1 << (bits - 1)
    return ((x + half) & ((1 << bits) - 1)) - half


def decode_entries(entries: NDArray[np.uint64], row: tuple[Field, ...]) -> tuple[Ints, ...]:
    """Return the fields of 64-bit entries: of parameters, or of taps."""
    fields, offset = [], 0
    for field in row:
        value = (entries >> np.uint64(offset)).astype(np.int64) & (1 << field.bits) - 1
        fields.append(wrap(value, field.bits) if field.signed else value)
        offset += field.bits
    return tuple(fields)
