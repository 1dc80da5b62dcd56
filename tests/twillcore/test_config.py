"""Configurations: what is derived, how they are read and written, what is refused."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twillcore.config import MEANINGS, PRESETS, Config, ConfigError, load_config

TINY = PRESETS["tiny"]


def test_derived_parameters_of_u256():
    u256 = PRESETS["u256"]
    assert u256.multipliers == 256
    assert u256.index_bits == 3
    assert u256.word_bytes == 128
    assert u256.axi_bytes == 16
    assert u256.words_per_tile == 2


def test_every_parameter_has_a_meaning():
    assert set(MEANINGS) == {field.name for field in dataclasses.fields(Config)}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_survives_toml(name, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(PRESETS[name].to_toml())
    assert load_config(path) == load_config(str(path)) == load_config(name) == PRESETS[name]


@given(
    lanes=st.sampled_from([4, 8, 16, 64]),
    block=st.sampled_from([8, 16]),
    depth=st.integers(16, 1 << 15),
    clock=st.floats(0.1, 2000),
    name=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20),
)
def test_any_configuration_survives_toml(lanes, block, depth, clock, name):
    config = TINY.replace(
        name=name, lanes=lanes, block=block, dsp_columns=64, weight_depth=depth, clock_mhz=clock
    )
    assert Config.from_toml(config.to_toml()) == config


def test_hash_names_what_programs_depend_on():
    assert TINY.replace(name="other", clock_mhz=50.0).hash == TINY.hash
    others = [
        TINY.replace(**change)
        for change in ({"lanes": 8}, {"weight_depth": 1024}, {"family": "xc7"}, {"queue_depth": 5})
    ]
    assert len({TINY.hash, *(config.hash for config in others)}) == 5
    assert len(TINY.hash) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": 1}, "lanes must be 2..64, not 1"),
        ({"lanes": 65, "operand_depth": 0}, "lanes must be 2..64, not 65"),
        ({"lanes": True}, "lanes must be an integer, not True"),
        ({"lanes": 4.0}, "lanes must be an integer, not 4.0"),
        ({"block": 12, "dsp_columns": 12}, "block must be 8 or 16, not 12"),
        (
            {"dsp_columns": 20, "axi_data_bits": 32},
            "dsp_columns must be a multiple of block=8, not 20",
        ),
        ({"dsp_columns": 136}, "dsp_columns must be 8..128, not 136"),
        ({"accumulator_bits": 19}, "accumulator_bits must be 20..40, not 19"),
        ({"operand_depth": 8}, "operand_depth must be 0 (absent) or 16..32768, not 8"),
        ({"norm_depth": -1}, "norm_depth must be 0 (absent) or 16..32768, not -1"),
        ({"family": "asic"}, "family must be one of generic, xc7, xcup, ecp5, ice40, not 'asic'"),
        ({"axi_data_bits": 48}, "axi_data_bits must be 32, 64, 128, 256 or 512, not 48"),
        (
            {"axi_data_bits": 512},
            (
                "an activation word (lanes * block * 8) is 256 bits,"
                " not a multiple of axi_data_bits=512"
            ),
        ),
        (
            {"axi_data_bits": 512, "lanes": 16, "dsp_columns": 64, "axi_burst_beats": 256},
            "a burst of 256 beats of 512 bits is longer than the 4 KiB that AXI4 allows",
        ),
        (
            {"lanes": 6},
            (
                "operand memory needs dsp_columns to be a multiple of lanes=6, not 8;"
                " set operand_depth = 0 for networks without attention"
            ),
        ),
        ({"clock_mhz": 0.0}, "clock_mhz must be positive, not 0.0"),
        ({"clock_mhz": float("nan")}, "clock_mhz must be positive, not nan"),
    ],
)
def test_illegal_values_are_refused_with_a_sentence(changes, message):
    with pytest.raises(ConfigError) as caught:
        TINY.replace(**changes)
    assert str(caught.value) == f"configuration 'tiny': {message}"


def test_all_problems_come_in_one_message():
    with pytest.raises(ConfigError) as caught:
        TINY.replace(queue_depth=1, axi_burst_beats=1, clock_mhz=-1.0)
    for part in ("queue_depth must be", "axi_burst_beats must be", "clock_mhz must be"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lanes = 4", "lanse = 4", "unknown parameter 'lanse'; missing parameter 'lanes'"),
        ("lanes = 4", "lanes = ", "not TOML: "),
        ("lanes = 4", "lanes = 'four'", "lanes must be an integer, not 'four'"),
        ("clock_mhz = 100.0", "clock_mhz = 'fast'", "a value has the wrong type: "),
    ],
)
def test_wrong_files_are_refused_by_name(tmp_path, old, new, message):
    path = tmp_path / "mine.toml"
    path.write_text(TINY.to_toml().replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_neither_preset_nor_file():
    with pytest.raises(ConfigError) as caught:
        load_config("u265")
    assert str(caught.value) == (
        f"no configuration 'u265': neither a preset ({', '.join(PRESETS)}) nor a TOML file"
    )


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(path)
