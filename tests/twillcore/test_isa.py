"""The instruction set: words and text there and back, illegal ones refused, its document fresh."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twillcore import isa
from twillcore.isa import (
    ENGINE_BITS,
    HEADER_BITS,
    ISA,
    WORD_BITS,
    Engine,
    Field,
    Format,
    Instruction,
    Opcode,
    assemble,
    encode_parameter,
)

ROOT = Path(__file__).parents[2]


def values(field: Field) -> st.SearchStrategy[int]:
    if field.enum:
        return st.sampled_from([int(member) for member in field.enum])
    return st.integers(field.low, field.high)


def operands(row: Format) -> st.SearchStrategy[dict[str, int]]:
    return st.fixed_dictionaries({field.name: values(field) for field in row.operands})


masks = st.integers(0, (1 << len(Engine)) - 1)
instructions = st.sampled_from(list(ISA.values())).flatmap(
    lambda row: st.builds(Instruction, st.just(row.opcode), operands(row), wait=masks, signal=masks)
)


def test_every_opcode_has_a_format():
    assert set(ISA) == set(Opcode)
    assert len(Engine) <= ENGINE_BITS
    assert all(row.opcode is opcode for opcode, row in ISA.items())


@given(instructions)
def test_words_there_and_back(instruction):
    word = instruction.encode()
    assert 0 <= word < 1 << WORD_BITS
    assert Instruction.decode(word) == instruction


@given(instructions)
def test_text_there_and_back(instruction):
    assert assemble(str(instruction)) == instruction


@given(st.integers(0, (1 << WORD_BITS) - 1))
def test_any_word_is_decoded_or_refused(word):
    try:
        instruction = Instruction.decode(word)
    except ValueError:
        return
    assert instruction.encode() == word


@pytest.mark.parametrize("row", ISA.values(), ids=lambda row: row.opcode.name)
def test_reserved_bits_must_be_zero(row):
    word = Instruction(row.opcode, {field.name: 0 for field in row.operands}).encode()
    for bit in range(row.width, WORD_BITS):
        with pytest.raises(ValueError, match=f"{row.opcode.name}: reserved bits set"):
            Instruction.decode(word | 1 << bit)


def test_unknown_opcodes_are_refused():
    for opcode in range(len(Opcode), 16):
        with pytest.raises(ValueError, match="unknown opcode"):
            Instruction.decode(opcode)


@pytest.mark.parametrize(
    ("row", "field"),
    [(row, field) for row in ISA.values() for field in row.operands],
    ids=lambda x: x.opcode.name if isinstance(x, Format) else x.name,
)
def test_operands_beyond_their_field_are_refused(row, field):
    fitting = {other.name: 0 for other in row.operands}
    for value in (field.low - 1, field.high + 1):
        with pytest.raises(ValueError, match=f"{field.name}={value} does not fit"):
            Instruction(row.opcode, {**fitting, field.name: value}).encode()


def test_all_problems_come_in_one_message():
    fields = ISA[Opcode.GEMM].operands
    with pytest.raises(ValueError, match="GEMM") as caught:
        Instruction(Opcode.GEMM, {field.name: 1 << 64 for field in fields}).encode()
    for field in fields:
        assert field.name in str(caught.value)


def test_missing_and_unknown_operands_are_named():
    with pytest.raises(ValueError, match=r"operands missing \[.*\], unknown \['colour'\]"):
        Instruction(Opcode.MOVE, {"colour": 1}).encode()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("fly", "unknown mnemonic 'fly'"),
        ("halt now", "halt: 'now' is not name=value"),
        ("halt wait=moon", "halt: bad value in 'wait=moon'"),
        ("gemm", "operands missing"),
    ],
)
def test_wrong_text_is_refused(line, message):
    with pytest.raises(ValueError, match=message):
        assemble(line)


def test_a_format_that_does_not_fit_is_refused():
    wide = tuple(Field(f"f{i}", 64, "") for i in range(4))
    with pytest.raises(ValueError, match=f"HALT needs {HEADER_BITS + 256} bits"):
        Format(Opcode.HALT, None, wide, "")
    with pytest.raises(ValueError, match="two operands of one name"):
        Format(Opcode.HALT, None, (Field("a", 1, ""), Field("a", 1, "")), "")


@given(
    bias=st.integers(-(1 << 31), (1 << 31) - 1),
    multiplier=st.integers(-(1 << 15), (1 << 15) - 1),
    shift=st.integers(0, 63),
    narrow_shift=st.integers(0, 15),
)
def test_parameter_entry_holds_its_fields(bias, multiplier, shift, narrow_shift):
    word = encode_parameter(bias, multiplier, shift, narrow_shift)
    found, offset = [], 0
    for field in isa.PARAMETER:
        raw = word >> offset & (1 << field.bits) - 1
        found.append(raw - (1 << field.bits) if field.signed and raw > field.high else raw)
        offset += field.bits
    assert found == [bias, multiplier, shift, narrow_shift]
    assert word < 1 << 64


def test_parameter_values_beyond_their_field_are_refused():
    with pytest.raises(ValueError, match="parameter narrow_shift=16 does not fit in 4 bits"):
        encode_parameter(0, 0, 0, 16)


def test_document_is_fresh():
    assert (ROOT / "docs/isa.md").read_text() == isa.markdown(), "run python -m twillcore.isa"
