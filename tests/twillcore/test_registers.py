import json
import re
from pathlib import Path

import pytest

from twillcore.config import PRESETS
from twillcore.isa import Cause, Engine
from twillcore.registers import (
    REGISTERS,
    Counter,
    counter_offset,
    markdown,
    to_c_header,
    to_json,
)

ROOT = Path(__file__).parents[2]


def test_the_document_is_not_stale():
    assert (ROOT / "docs/registers.md").read_text() == markdown(), (
        "run python -m twillcore.registers"
    )


@pytest.mark.parametrize("engine", Engine)
@pytest.mark.parametrize("counter", Counter)
def test_every_engine_has_every_counter(engine, counter):
    assert REGISTERS[f"{engine.name}_{counter.name}"].offset == counter_offset(engine, counter)


def test_every_pair_of_engines_has_a_wait_counter():
    waits = {name.removeprefix("WAIT_") for name in Counter.__members__ if "WAIT_" in name}
    assert waits == set(Engine.__members__)


def test_header_and_json_have_every_register():
    config = PRESETS["tiny"]
    defines = dict(re.findall(r"#define TWILLCORE_(\w+) (\w+)u\n", to_c_header(config)))
    entries = {entry["name"]: entry for entry in json.loads(to_json(config))["registers"]}
    assert entries.keys() == REGISTERS.keys()
    for name, register in REGISTERS.items():
        assert int(defines[name], 0) == entries[name]["offset"] == register.offset
    assert defines["CONFIG_HASH_VALUE"] == f"0x{config.hash}"
    assert all(int(defines[f"CAUSE_{cause.name}"], 0) == cause for cause in Cause)
