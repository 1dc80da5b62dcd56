"""The functional engine on programs assembled by hand, against numpy and the numeric contract."""

import numpy as np
import pytest

from tests.agree.programs import Program, random_program
from twillcore import numerics
from twillcore.config import PRESETS
from twillcore.image import ProgramError
from twillcore.isa import Cause, Function, Memory, MoveMode, Opcode, WeightFormat
from twillcore.sim.functional import FunctionalEngine
from twillcore.sim.machine_error import MachineError
from twillcore.weights import encode_rows, encoded_rows

TINY = PRESETS["tiny"]
LANES, BLOCK, COLUMNS = TINY.lanes, TINY.block, TINY.dsp_columns


def run(program, **inputs):
    return FunctionalEngine(strict=True).run(program.image(), inputs).outputs


def load(program, slot, memory, local=0):
    wide = memory == Memory.WIDE
    program.add(Opcode.LOAD, memory=memory, dram=slot.address, local=local, runs=1,
                count=slot.size_bytes(TINY) // (TINY.word_bytes << wide))  # fmt: skip


def store(program, slot, memory, local=0):
    wide = memory == Memory.WIDE
    program.add(Opcode.STORE, memory=memory, dram=slot.address, local=local, runs=1,
                count=slot.size_bytes(TINY) // (TINY.word_bytes << wide))  # fmt: skip


def load_parameters(program, address, count, memory=Memory.PARAMETER):
    program.add(Opcode.LOAD, memory=memory, dram=address, count=count, runs=1)


@pytest.mark.parametrize("format", WeightFormat)
@pytest.mark.parametrize("columns_inner", [0, 1])
def test_gemm_multiplies_sparse_weights_of_every_format(format, columns_inner):
    rng = np.random.default_rng(int(format))
    rows, channels, columns, beats = 10, 24, 16, 8 if format == WeightFormat.DENSE else 3
    weight = rng.integers(-128, 128, (columns, 3, BLOCK))
    weight[rng.random(weight.shape).argsort(-1).argsort(-1) >= beats] = 0
    weight = weight.reshape(columns, -1)
    x = rng.integers(-128, 128, (1, rows, channels))
    residual = rng.integers(-999, 999, (1, rows, columns))
    bias = rng.integers(-5000, 5000, columns)
    multiplier = rng.integers(1 << 12, 1 << 15, columns)

    program = Program()
    slots = program.slot("x", "int8", x.shape), program.slot("r", "int16", residual.shape)
    out = program.slot("y", "int8", residual.shape, output=True)
    load(program, slots[0], Memory.ACTIVATION)
    load(program, slots[1], Memory.WIDE)
    parameters = program.parameters(bias, multiplier, 20, 4)
    load_parameters(program, parameters, columns)
    encoded = program.place(encode_rows(weight.astype(np.int8), beats, format, TINY))
    weight_rows = columns // COLUMNS * channels // BLOCK * beats
    program.add(Opcode.LOAD, memory=Memory.WEIGHT, format=format, beats=beats, dram=encoded,
                count=weight_rows, runs=1, local=5)  # fmt: skip
    program.add(
        Opcode.GEMM, a_row_stride=3, row_tiles=3, column_tiles=2, blocks=3, beats=beats, w=5,
        columns_inner=columns_inner, residual=1, residual_row_stride=2, residual_shift=1,
        function=Function.RELU, out=100, out_row_stride=2,
    )  # fmt: skip
    store(program, out, Memory.ACTIVATION, 100)
    y = numerics.scale_accumulator(x @ weight.T, bias, multiplier, 20)
    y = numerics.narrow(numerics.relu(numerics.add_residual(y, residual, 1)), 4)
    assert (run(program, x=x, r=residual)["y"] == y).all()


def test_a_product_in_two_instructions_equals_one():
    """The first holds its sums, the second continues on them with the other half of K."""
    rng = np.random.default_rng(7)
    x = rng.integers(-128, 128, (1, LANES, 4 * BLOCK))
    weight = rng.integers(-128, 128, (COLUMNS, 4 * BLOCK)).astype(np.int8)
    program = Program()
    slot = program.slot("x", "int8", x.shape)
    out = program.slot("y", "int16", (1, LANES, COLUMNS), output=True)
    load(program, slot, Memory.ACTIVATION)
    load_parameters(program, program.parameters(0, np.full(COLUMNS, 1 << 12), 20, 0), COLUMNS)
    encoded = program.place(encode_rows(weight, BLOCK, WeightFormat.DENSE, TINY))
    program.add(Opcode.LOAD, memory=Memory.WEIGHT, dram=encoded, count=4 * BLOCK, runs=1)
    half = {"row_tiles": 1, "column_tiles": 1, "blocks": 2, "beats": BLOCK, "wide": 1}
    program.add(Opcode.GEMM, hold=1, **half)
    program.add(Opcode.GEMM, accumulate=1, a=2, w=2 * BLOCK, **half)
    store(program, out, Memory.WIDE)
    y = numerics.scale_accumulator(x @ weight.T.astype(int), 0, 1 << 12, 20)
    assert (run(program, x=x)["y"] == y).all()


def test_attention_runs_on_moved_keys_and_values():
    """QK^T, SOFTMAX and PV with 10 queries, 11 keys, 8 channels, and keys beyond 11 masked."""
    rng = np.random.default_rng(8)
    queries, keys, padded = 10, 11, 16
    q = rng.integers(-128, 128, (1, queries, COLUMNS))
    k, v = rng.integers(-128, 128, (2, 1, keys, COLUMNS))
    mask = rng.random((1, 1, keys)) < 0.7
    mask[..., 0] = True
    program = Program()
    words = {"q": 0, "k": 16, "v": 32}
    for name, x in (("q", q), ("k", k), ("v", v)):
        load(program, program.slot(name, "int8", x.shape), Memory.ACTIVATION, words[name])
    slot = program.slot("mask", "mask", mask.shape)
    program.inputs[-1] = slot = type(slot)(**{**vars(slot), "multiplier": 1 << 14, "shift": 22})
    out = program.slot("y", "int8", q.shape, output=True)
    load_parameters(program, slot.address, padded)
    program.add(Opcode.MOVE, mode=MoveMode.KEYS, a=16, a_row_stride=1, row_tiles=3, blocks=1,
                out=0, column_stride=8)  # fmt: skip
    program.add(Opcode.MOVE, mode=MoveMode.VALUES, a=32, a_row_stride=1, row_tiles=3, blocks=1,
                out=64, column_stride=padded)  # fmt: skip
    program.add(
        Opcode.GEMM, a_row_stride=1, row_tiles=3, column_tiles=2, blocks=1, beats=BLOCK,
        operand=1, counted=1, columns_inner=1, keep_maximum=1, wide=1, out_row_stride=2,
    )  # fmt: skip
    program.add(Opcode.SOFTMAX, a_row_stride=2, row_tiles=3, words=2, numerator=40000, shift=36,
                out=64, out_row_stride=2)  # fmt: skip
    load_parameters(program, program.parameters(0, np.zeros(COLUMNS, int), 0, 3), COLUMNS)
    program.add(
        Opcode.GEMM, a=64, a_row_stride=2, row_tiles=3, column_tiles=1, blocks=2, beats=BLOCK,
        w=64, operand=1, counted=1, lane_scaled=1, out=128, out_row_stride=1,
    )  # fmt: skip
    store(program, out, Memory.ACTIVATION, 128)

    logits = numerics.scale_accumulator(q @ k.swapaxes(1, 2), 0, 1 << 14, 22)
    logits = np.where(mask, logits, -(1 << 15))
    e = numerics.exponential(logits, logits.max(-1, keepdims=True))
    m, s = numerics.lane_scale(e.sum(-1), 40000, 36)
    y = numerics.narrow(numerics.scale_accumulator(e @ v, 0, m[..., None], s[..., None]), 3)
    assert (run(program, q=q, k=k, v=v, mask=mask)["y"] == y).all()


def test_layer_norm_and_elementwise_follow_the_contract():
    rng = np.random.default_rng(9)
    x = rng.integers(-3000, 3000, (1, 7, 13))
    gamma, beta = rng.integers(-8000, 8000, 13), rng.integers(-(1 << 25), 1 << 25, 13)
    program = Program()
    slot = program.slot("x", "int16", x.shape)
    out = program.slot("y", "int8", x.shape, output=True)
    total = program.slot("z", "int16", x.shape, output=True)
    load(program, slot, Memory.WIDE)
    padding = np.zeros(3, int)
    load_parameters(
        program,
        program.parameters(np.append(beta, padding), np.append(gamma, padding), 16, 5),
        16,
        Memory.NORM,
    )
    program.add(Opcode.LAYER_NORM, a_row_stride=2, row_tiles=2, words=2, channels=13, epsilon=99,
                narrow=1, out_row_stride=2, wide=1, wide_out=8, wide_out_row_stride=2)  # fmt: skip
    program.add(Opcode.ELEMENTWISE, a_wide=1, a_row_stride=2, b_wide=1, b=8, b_row_stride=2,
                row_tiles=2, words=2, a_multiplier=-3, b_multiplier=700, shift=8, wide=1, out=16,
                out_row_stride=2)  # fmt: skip
    store(program, out, Memory.ACTIVATION)
    store(program, total, Memory.WIDE, 16)
    y = numerics.layer_norm(x, 13, 99, gamma, beta, 16)
    outputs = run(program, x=x)
    assert (outputs["y"] == numerics.narrow(y, 5)).all()
    assert (outputs["z"] == numerics.elementwise_add(x, y, -3, 700, 8)).all()


def test_a_function_table_is_loaded_in_units_of_four_entries():
    rng = np.random.default_rng(10)
    table = rng.integers(-30000, 30000, 256)
    x = rng.integers(-128, 128, (1, LANES, BLOCK))
    program = Program()
    slot = program.slot("x", "int8", x.shape)
    out = program.slot("y", "int16", x.shape, output=True)
    load(program, slot, Memory.ACTIVATION)
    address = program.place(table.astype("<i2").tobytes())
    program.add(Opcode.LOAD, memory=Memory.TABLE, dram=address, count=64, runs=1)
    load_parameters(program, program.parameters(5, np.full(COLUMNS, 1 << 10), 6, 0), COLUMNS)
    identity = program.place(encode_rows(np.eye(8, dtype=np.int8), 1, WeightFormat.BITMAP, TINY))
    program.add(Opcode.LOAD, memory=Memory.WEIGHT, format=WeightFormat.BITMAP, beats=1,
                dram=identity, count=1, runs=1)  # fmt: skip
    program.add(Opcode.GEMM, row_tiles=1, column_tiles=1, blocks=1, beats=1, wide=1,
                function=Function.TABLE)  # fmt: skip
    store(program, out, Memory.WIDE)
    y = numerics.look_up(numerics.scale_accumulator(x, 5, 1 << 10, 6), table)
    assert (run(program, x=x)["y"] == y).all()


def test_runs_are_strided_on_both_sides():
    program = Program()
    content = np.arange(1 << 10, dtype=np.int16)
    source = program.place(content.tobytes())
    out = program.slot("y", "int8", (1, LANES, 6 * BLOCK), output=True)
    word = TINY.word_bytes
    program.add(Opcode.LOAD, memory=Memory.ACTIVATION, dram=source, dram_stride=5 * word, local=1,
                local_stride=4, count=2, runs=3)  # fmt: skip
    program.add(Opcode.STORE, memory=Memory.ACTIVATION, dram=out.address, dram_stride=2 * word,
                local=1, local_stride=4, count=2, runs=3)  # fmt: skip
    stored = FunctionalEngine().run(program.image(), {})
    expected = content.view(np.uint8)[: 15 * word].reshape(3, 5 * word)[:, : 2 * word]
    assert out.pack(stored.outputs["y"], TINY) == expected.tobytes()
    assert stored.bytes_written == expected.size


def gemm(**changes):
    operands = {"row_tiles": 1, "column_tiles": 1, "blocks": 1, "beats": 8} | changes
    return Opcode.GEMM, operands


ILLEGAL = {
    "beats is not 1..8": gemm(beats=9),
    "no tiles or no blocks": gemm(row_tiles=0),
    "keep_maximum needs columns_inner": gemm(keep_maximum=1),
    "only weights have a format": (
        Opcode.LOAD, {"memory": Memory.WIDE, "format": 1, "beats": 1, "count": 1, "runs": 1}
    ),
    "dram is not a multiple of a beat": (Opcode.LOAD, {"dram": 4, "count": 1, "runs": 1}),
    "nothing to copy": (Opcode.STORE, {"memory": Memory.WIDE, "runs": 1}),
    "stores from TABLE": (Opcode.STORE, {"memory": Memory.TABLE, "count": 1, "runs": 1}),
}  # fmt: skip


@pytest.mark.parametrize("detail", ILLEGAL)
def test_illegal_operands_stop_the_machine(detail):
    program = Program()
    program.add(Opcode.ELEMENTWISE, row_tiles=1, words=1)
    opcode, operands = ILLEGAL[detail]
    program.add(opcode, **operands)
    with pytest.raises(MachineError) as error:
        FunctionalEngine().run(program.image(), {})
    assert (error.value.cause, error.value.index) == (Cause.ILLEGAL_INSTRUCTION, 1)
    assert error.value.detail == detail
    assert error.value.text.startswith(opcode.name.lower())


@pytest.mark.parametrize(
    ("operands", "detail"),
    [
        (gemm(a=512)[1], "activation word address 512, there are 512"),
        (gemm(w=505)[1], "weight row address 512, there are 512"),
        (gemm(operand=1, counted=1, w=255)[1], "operand row address 262, there are 256"),
        (gemm(wide=1, out=256)[1], "wide word address 256, there are 256"),
        (gemm(lane_scaled=1, lane=32)[1], "lane scale address 32, there are 32"),
    ],
)
def test_addresses_out_of_range_stop_the_machine(operands, detail):
    program = Program()
    program.add(Opcode.GEMM, **operands)
    with pytest.raises(MachineError) as error:
        FunctionalEngine().run(program.image(), {})
    assert (error.value.cause, error.value.detail) == (Cause.ADDRESS_OUT_OF_RANGE, detail)
    assert error.value.engine == "gemm"


def test_memory_beyond_the_end_is_an_axi_error():
    program = Program()
    program.add(Opcode.LOAD, memory=Memory.WIDE, dram=1 << 20, count=1, runs=1)
    with pytest.raises(MachineError, match="the memory answered a read with an error"):
        FunctionalEngine().run(program.image(), {})


def test_strict_refuses_words_that_nobody_has_written():
    program = Program()
    program.add(Opcode.STORE, memory=Memory.WIDE, dram=1 << 16, local=7, count=1, runs=1)
    program.place(64)
    FunctionalEngine().run(program.image(), {})
    with pytest.raises(MachineError, match="reads wide word 7, which nobody has written"):
        FunctionalEngine(strict=True).run(program.image(), {})


def test_a_program_without_halt_and_an_unknown_opcode_are_refused():
    image = random_program(1)
    truncated = type(image)(**{**vars(image), "instruction_count": image.instruction_count - 1})
    with pytest.raises(MachineError, match="no HALT"):
        FunctionalEngine().run(truncated, {})
    broken = type(image)(**{**vars(image), "memory": b"\xff" * 32 + image.memory[32:]})
    with pytest.raises(MachineError, match="unknown opcode") as error:
        FunctionalEngine().run(broken, {})
    assert error.value.index == 0


def test_wrong_inputs_are_refused():
    with pytest.raises(ProgramError, match="unknown inputs: x"):
        FunctionalEngine().run(random_program(1), {"x": np.zeros(1)})


@pytest.mark.parametrize("seed", range(20))
def test_random_programs_are_legal(seed):
    image = random_program(seed)
    result = FunctionalEngine(garbage=seed).run(image, {})
    assert result.bytes_read >= 32 * image.instruction_count


def test_an_encoded_run_is_as_long_as_the_engine_reads():
    program = Program()
    address = program.place(encoded_rows(7, 1, WeightFormat.INDEX, TINY) * COLUMNS)
    program.add(Opcode.LOAD, memory=Memory.WEIGHT, format=WeightFormat.INDEX, beats=1,
                dram=address, count=7, runs=1)  # fmt: skip
    assert FunctionalEngine().run(program.image(), {}).bytes_read == 11 * COLUMNS + 2 * 32


@pytest.mark.parametrize(
    ("changes", "opcode", "missing"),
    [
        ({"operand_depth": 0}, Opcode.MOVE, "such engine"),
        ({"norm_depth": 0}, Opcode.LAYER_NORM, "norm memory"),
    ],
)
def test_what_the_configuration_lacks_stops_dispatch(changes, opcode, missing):
    program = Program(TINY.replace(**changes))
    program.add(opcode)
    with pytest.raises(MachineError, match=f"there is no {missing}") as error:
        FunctionalEngine().run(program.image(), {})
    assert (error.value.engine, error.value.index) == ("dispatch", 0)
