"""The control and status registers, as data.

``registers.json``, the C header and ``docs/registers.md`` derive from :data:`REGISTERS`, and so do
the ports of :class:`twillcore.hw.registers.Registers`. All registers are 32 bits wide.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, IntEnum

from twillcore.config import Config
from twillcore.isa import CAUSE_MEANINGS, Cause, Engine

VERSION = 0x0001_0000  # major in the upper half: an incompatible change
ADDRESS_BITS = 12
REGISTER_BYTES = 4
WATCHDOG_CYCLES = 1 << 20
NO_ENGINE = 7  # ERROR_ENGINE when FETCH or DISPATCH found the error


class Access(Enum):
    """What the bus may do with a register."""

    READ = "read"
    WRITE = "write"  # bits act once, in the cycle after the write; they read as 0
    READ_WRITE = "read/write"


@dataclass(frozen=True)
class Field:
    """Some bits of a register."""

    name: str
    offset: int
    bits: int
    meaning: str


@dataclass(frozen=True)
class Register:
    """One register; ``fields`` only where it is not a single number."""

    name: str
    offset: int
    access: Access
    meaning: str
    fields: tuple[Field, ...] = ()
    init: int = 0


class Counter(IntEnum):
    """Performance counters of an engine: each cycle counts in exactly one of them."""

    BUSY = 0
    BLOCKED = 1
    WAIT_LOAD = 2
    WAIT_STORE = 3
    WAIT_GEMM = 4
    WAIT_VECTOR = 5
    WAIT_MOVE = 6
    WAIT_LUT = 7
    ENDING = 8
    EMPTY = 9


COUNTER_MEANINGS = {
    Counter.BUSY: "useful work",
    Counter.BLOCKED: "LOAD, STORE: waited for the bus; GEMM, LUT: waited for the drain, or for"
    " a word of activations",
    **{
        Counter[f"WAIT_{engine.name}"]: f"the next instruction waited for a token of {engine.name}"
        for engine in Engine
    },
    Counter.ENDING: "nothing to accept, and instructions that have not retired",
    Counter.EMPTY: "idle with an empty queue",
}
assert set(COUNTER_MEANINGS) == set(Counter)

COUNTERS_OFFSET = 0x100
COUNTERS_STRIDE = 0x40


def counter_offset(engine: Engine, counter: Counter) -> int:
    """Return the address of a performance counter."""
    return COUNTERS_OFFSET + COUNTERS_STRIDE * engine + REGISTER_BYTES * counter


def _registers() -> Iterator[Register]:
    read, write, both = Access.READ, Access.WRITE, Access.READ_WRITE
    yield Register("CONTROL", 0x000, write, "commands", (
        Field("start", 0, 1, "run the program; ignored while one runs"),
        Field("reset", 1, 1, "abandon everything; only when no bus transfer is outstanding"),
    ))  # fmt: skip
    yield Register("STATUS", 0x004, read, "state", (
        Field("idle", 0, 1, "no program runs"),
        Field("done", 1, 1, "the last program ended with HALT"),
        Field("error", 2, 1, "the last program was stopped by an error"),
    ))  # fmt: skip
    yield Register("BASE", 0x008, both, "byte address that is added to every address of a program")
    yield Register("PROGRAM", 0x00C, both, "byte address of the first instruction, from BASE")
    yield Register(
        "WATCHDOG",
        0x010,
        both,
        "cycles without progress after which the machine stops; 0: never",
        init=WATCHDOG_CYCLES,
    )
    causes = ", ".join(f"{cause.value} {CAUSE_MEANINGS[cause]}" for cause in Cause)
    yield Register("ERROR_CAUSE", 0x014, read, causes)
    yield Register("ERROR_INDEX", 0x018, read, "position of the failing instruction in its program")
    engines = ", ".join(f"{engine.value} {engine.name}" for engine in Engine)
    yield Register(
        "ERROR_ENGINE", 0x01C, read, f"who failed: {engines}, {NO_ENGINE} fetch or dispatch"
    )
    yield Register("VERSION", 0x020, read, "major version in 31:16, minor in 15:0")
    yield Register("CONFIG_HASH", 0x024, read, "hash of the configuration, as in program files")
    yield Register("CYCLES", 0x028, read, "cycles from start to done, modulo 2**32")
    yield Register("READ_BEATS", 0x02C, read, "data beats read over the memory port since start")
    yield Register("WRITE_BEATS", 0x030, read, "data beats written since start")
    for engine in Engine:
        for counter in Counter:
            yield Register(
                f"{engine.name}_{counter.name}",
                counter_offset(engine, counter),
                read,
                f"cycles of {engine.name}: {COUNTER_MEANINGS[counter]}",
            )


REGISTERS = {register.name: register for register in _registers()}

_offsets = [register.offset for register in REGISTERS.values()]
assert len(set(_offsets)) == len(_offsets), "two registers at one address"
assert all(o % REGISTER_BYTES == 0 and o < 1 << ADDRESS_BITS for o in _offsets)


def to_json(config: Config) -> str:
    """Return ``registers.json``."""
    registers = [
        {
            "name": register.name,
            "offset": register.offset,
            "access": register.access.value,
            "meaning": register.meaning,
            "init": register.init,
            "fields": [vars(field) for field in register.fields],
        }
        for register in REGISTERS.values()
    ]
    document = {"version": VERSION, "config_hash": config.hash, "registers": registers}
    return json.dumps(document, indent=2) + "\n"


def to_c_header(config: Config) -> str:
    """Return ``registers.h``."""
    lines = [
        f"/* Registers of Twillcore, configuration {config.name}; generated. */",
        "#ifndef TWILLCORE_REGISTERS_H",
        "#define TWILLCORE_REGISTERS_H",
        "",
        f"#define TWILLCORE_VERSION_VALUE {VERSION:#010x}u",
        f"#define TWILLCORE_CONFIG_HASH_VALUE 0x{config.hash}u",
        "",
    ]
    for register in REGISTERS.values():
        lines.append(f"#define TWILLCORE_{register.name} {register.offset:#05x}u")
        for field in register.fields:
            mask = ((1 << field.bits) - 1) << field.offset
            lines.append(f"#define TWILLCORE_{register.name}_{field.name.upper()} {mask:#x}u")
    lines.append("")
    for cause in Cause:
        lines.append(f"#define TWILLCORE_CAUSE_{cause.name} {cause.value}u")
    lines += ["", "#endif"]
    return "\n".join(lines) + "\n"


def markdown() -> str:
    """Return ``docs/registers.md``."""
    lines = [
        "# Registers",
        "",
        (
            "Generated from `twillcore/registers.py` by `python -m twillcore.registers`; a test"
            " fails when stale."
        ),
        "",
        (
            f"AXI4-Lite slave, 32-bit data, {ADDRESS_BITS}-bit byte addresses. Accesses to other"
            " addresses, and writes to read-only registers, are answered with SLVERR."
        ),
        "",
        (
            "To run a program: write BASE and PROGRAM, write CONTROL.start, wait for the interrupt"
            " `done` (high from the end of a program, by HALT or error, to the next start), read"
            " STATUS."
        ),
        "",
        "| offset | name | access | at reset | meaning |",
        "|---|---|---|---|---|",
    ]
    for register in REGISTERS.values():
        if register.offset >= COUNTERS_OFFSET:
            break
        fields = "".join(
            f"; bit {field.offset} `{field.name}`: {field.meaning}" for field in register.fields
        )
        lines.append(
            f"| {register.offset:#05x} | `{register.name}` | {register.access.value}"
            f" | {register.init:#x} | {register.meaning}{fields} |"
        )
    lines += [
        "",
        "## Performance counters",
        "",
        (
            "Cleared by a start, stopped by done or error. In every cycle exactly one counter of"
            " each engine counts, so each engine's sum is CYCLES."
        ),
        "",
        "| counter | meaning | " + " | ".join(engine.name for engine in Engine) + " |",
        "|---|---|" + "---|" * len(Engine),
    ]
    for counter in Counter:
        offsets = " | ".join(f"{counter_offset(engine, counter):#05x}" for engine in Engine)
        lines.append(f"| `{counter.name}` | {COUNTER_MEANINGS[counter]} | {offsets} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    from pathlib import Path

    Path(__file__).resolve().parents[1].joinpath("docs/registers.md").write_text(markdown())
