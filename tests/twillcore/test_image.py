"""The program file: there and back, damaged files refused, inputs checked."""

import dataclasses
import json
import random
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twillcore.config import PRESETS
from twillcore.image import (
    MAGIC,
    MASKED_BIAS,
    Image,
    Layer,
    ProgramError,
    Slot,
    from_words,
    to_words,
)
from twillcore.isa import WORD_BYTES, Instruction, Opcode

TINY, U256 = PRESETS["tiny"], PRESETS["u256"]
HALT = Instruction(Opcode.HALT, {})


def image(**changes) -> Image:
    slots = {
        "x": Slot("x", "int8", 64, batch=2, rows=3, channels=10, scale=0.5),
        "mask": Slot("mask", "mask", 512, batch=2, rows=1, channels=9, multiplier=3, shift=4),
        "y": Slot("y", "int16", 1024, batch=2, rows=3, channels=10),
    }
    made = Image(
        config=TINY,
        program_address=0,
        instruction_count=1,
        memory=HALT.encode().to_bytes(WORD_BYTES, "little") + bytes(range(32)),
        memory_bytes=2048,
        inputs=(slots["x"], slots["mask"]),
        outputs=(slots["y"],),
        layers=(Layer("all", macs=100, useful_macs=50),),
        instruction_layers=(0,),
        host={"graph": b"\x00\xff", "empty": b""},
        notes={"made": "by a test"},
    )
    return dataclasses.replace(made, **changes)


def inputs():
    rng = np.random.default_rng(0)
    return {
        "x": rng.integers(-128, 128, (2, 3, 10)),
        "mask": rng.integers(0, 2, (2, 1, 9)).astype(bool),
    }


def test_there_and_back(tmp_path):
    path = tmp_path / "program"
    image().save(path)
    assert Image.load(path) == image()
    assert image().instructions() == [HALT]


@given(
    batch=st.integers(1, 3),
    rows=st.integers(1, 40),
    channels=st.integers(1, 70),
    kind=st.sampled_from(["int8", "int16"]),
    config=st.sampled_from([TINY, U256]),
)
def test_tensors_lie_in_memory_and_come_back(batch, rows, channels, kind, config):
    slot = Slot("t", kind, 0, batch, rows, channels)
    limits = np.iinfo(kind)
    array = np.random.default_rng(0).integers(limits.min, limits.max + 1, slot.shape)
    data = slot.pack(array, config)
    assert len(data) == slot.size_bytes(config)
    assert np.array_equal(slot.unpack(data, config), array)


def test_words_hold_a_block_of_every_lane():
    array = np.arange(2 * 5 * 9).reshape(2, 5, 9)
    words = to_words(array, TINY)
    assert words.shape == (2, 2, 2, TINY.lanes, TINY.block)
    for b, row, channel in np.ndindex(array.shape):
        tile, lane = divmod(row, TINY.lanes)
        block, position = divmod(channel, TINY.block)
        assert words[b, tile, block, lane, position] == array[b, row, channel]
    assert words.sum() == array.sum()  # the rest is zero
    assert np.array_equal(from_words(words.reshape(-1), array.shape, TINY), array)


def test_masks_become_biases_of_columns():
    data = image().initial_memory(inputs())
    entries = np.frombuffer(bytes(data[512 : 512 + 2 * 16 * 8]), "<i8").reshape(2, 16)
    bias = entries.astype("<i8").view("<i4")[:, ::2]
    mask = inputs()["mask"][:, 0]
    assert np.array_equal(bias[:, :9], np.where(mask, 0, MASKED_BIAS))
    assert (bias[:, 9:] == MASKED_BIAS).all()


@given(st.data())
def test_truncated_files_are_refused(data):
    whole = image().to_bytes()
    length = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ProgramError, match=r"^p: (not a Twillcore program|truncated)"):
        Image.from_bytes(whole[:length], "p")


def test_any_flipped_bit_is_noticed():
    whole = image().to_bytes()
    rng = random.Random(0)
    for position in rng.sample(range(len(whole) * 8), 500):
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(ProgramError, match=r"not a Twillcore program|damaged"):
            Image.from_bytes(bytes(damaged))


def test_other_versions_are_refused():
    changed = image().to_bytes()[:-32].replace(b'"version": 1', b'"version": 7')
    with pytest.raises(ProgramError, match="program format 7, this is 1; compile again"):
        Image.from_bytes(sealed(changed))


def test_a_configuration_with_another_meaning_is_refused():
    changed = image().to_bytes()[:-32].replace(TINY.hash.encode(), b"01234567")
    with pytest.raises(ProgramError, match="other configurations; compile again"):
        Image.from_bytes(sealed(changed))


def sealed(body: bytes) -> bytes:
    """Return ``body`` with a right checksum."""
    import hashlib

    return body + hashlib.sha256(body).digest()


def test_header_is_readable_by_anything():
    data = image().to_bytes()
    (length,) = struct.unpack_from("<I", data, len(MAGIC))
    header = json.loads(data[len(MAGIC) + 4 : len(MAGIC) + 4 + length])
    assert header["config"]["lanes"] == 4
    assert header["inputs"][0]["name"] == "x"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": None}, "missing inputs: x"),
        ({"z": np.zeros(1)}, "unknown inputs: z"),
        ({"x": np.zeros((2, 3, 11), int)}, "x: shape must be (2, 3, 10), not (2, 3, 11)"),
        ({"x": np.zeros((2, 3, 10))}, "x: values must be integers, not float64"),
        ({"x": np.full((2, 3, 10), 128)}, "x: values must fit in int8"),
        ({"mask": np.ones((2, 9), bool)}, "mask: shape must be (2, 1, 9), not (2, 9)"),
        ({"x": None, "w": 0}, "missing inputs: x; unknown inputs: w"),
    ],
)
def test_wrong_inputs_are_refused(changes, message):
    wrong = {name: array for name, array in (inputs() | changes).items() if array is not None}
    with pytest.raises(ProgramError) as caught:
        image().initial_memory(wrong)
    assert str(caught.value) == message


def test_another_configuration_is_refused():
    image().require(TINY.replace(clock_mhz=1.0))
    with pytest.raises(ProgramError) as caught:
        image().require(U256)
    assert str(caught.value) == (
        f"program was compiled for configuration 'tiny' ({TINY.hash}), not for 'u256'"
        f" ({U256.hash}); compile again"
    )


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ProgramError, match=r"nothing: cannot be read: No such file"):
        Image.load(tmp_path / "nothing")
    with pytest.raises(ProgramError, match="cannot be written: No such file"):
        image().save(tmp_path / "no" / "where")


def test_lines_of_pixels_have_a_pitch():
    slot = Slot("map", "int8", 0, batch=2, rows=6, channels=3, width=3, pitch=5)
    array = np.arange(36).reshape(2, 6, 3)
    data = slot.pack(array, TINY)
    assert len(data) == slot.size_bytes(TINY) == 2 * 2 * TINY.word_bytes
    words = np.frombuffer(data, np.int8).reshape(2, 8, TINY.block)  # rows of one block
    assert (words[:, [0, 1, 2, 5, 6, 7], :3] == array).all()
    assert not words[:, 3:5].any()
    assert (slot.unpack(data, TINY) == array).all()
