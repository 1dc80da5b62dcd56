"""What one accelerator is: free parameters as fields, derived ones as properties.

The same :class:`Config` drives RTL, compiler and every simulator. Its :attr:`Config.hash` stands in
every program file and in a hardware register, so a program for another configuration is refused.
"""

import dataclasses
import hashlib
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

from twillcore.errors import TwillcoreError
from twillcore.isa import ISA, PARAMETER_BYTES, Engine, Opcode

FAMILIES = ("generic", "xc7", "xcup", "ecp5", "ice40")

#: What each free parameter means, with its unit. ``to_toml`` writes these as comments.
MEANINGS = {
    "name": "name of the configuration",
    "lanes": "rows of the GEMM that work side by side (tokens, output pixels)",
    "block": "int8 activations per lane in one activation word: the B of N:B sparsity",
    "dsp_columns": "output channels that the DSP core computes side by side",
    "lut_columns": "output channels that the LUT core computes side by side; 0: no LUT core",
    "accumulator_bits": "width of one accumulator",
    "activation_depth": "activation memory, in words of lanes * block int8",
    "wide_depth": "wide memory (16-bit residuals, logits), in words of lanes * block int16;"
    " 0: none, and no vector engine",
    "weight_depth": "weight memory, in rows of dsp_columns weights with their indices",
    "lut_weight_depth": "weight memory of the LUT core, in rows of lut_columns * block bits",
    "tap_depth": "taps of windows (convolution), in 64-bit entries; 0: no windows",
    "operand_depth": "operand memory (moved keys and values), in rows of dsp_columns int8; 0: none",
    "parameter_depth": "column parameters (bias, scale), in 64-bit entries",
    "norm_depth": "layer norm parameters, in 64-bit entries; 0: no layer norm",
    "lane_depth": "row maxima and lane scales, in entries of one value per lane; 0 without vector"
    " engine",
    "function_table": "whether the drain can look up functions (GELU, hard-swish) in a table",
    "axi_data_bits": "width of the AXI4 memory port",
    "axi_burst_beats": "longest burst on the AXI4 memory port",
    "queue_depth": "instructions that wait in front of each engine",
    "family": "device family, which decides how multipliers are packed",
    "clock_mhz": "clock target in MHz",
}

#: Frame of the time-multiplexed memory ports, in cycles. See :mod:`twillcore.timing`.
FRAME_CYCLES = 8
ADDRESS_BITS = 16  # local addresses in instructions


class ConfigError(TwillcoreError):
    """A configuration that cannot be built, with every reason in one message."""


@dataclass(frozen=True)
class Config:
    """Free parameters of one accelerator; :data:`MEANINGS` says what each means.

    Raises
    ------
    ConfigError
        If any parameter is illegal; the message lists all that are.
    """

    name: str
    lanes: int
    block: int
    dsp_columns: int
    lut_columns: int
    accumulator_bits: int
    activation_depth: int
    wide_depth: int
    weight_depth: int
    lut_weight_depth: int
    tap_depth: int
    operand_depth: int
    parameter_depth: int
    norm_depth: int
    lane_depth: int
    function_table: bool
    axi_data_bits: int
    axi_burst_beats: int
    queue_depth: int
    family: str
    clock_mhz: float

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ConfigError(f"configuration {self.name!r}: " + "; ".join(problems))

    def _problems(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and (not isinstance(value, int) or isinstance(value, bool)):
                yield f"{field.name} must be an integer, not {value!r}"
                return
            if field.type is bool and not isinstance(value, bool):
                yield f"{field.name} must be true or false, not {value!r}"
        ranges = {
            "lanes": (2, 64),
            "dsp_columns": (self.block, 128),
            "accumulator_bits": (20, 40),
            "activation_depth": (16, 1 << ADDRESS_BITS),
            "weight_depth": (16, 1 << (ADDRESS_BITS - 1)),
            "parameter_depth": (16, 1 << ADDRESS_BITS),
            "axi_burst_beats": (2, 256),
            "queue_depth": (2, 64),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                yield f"{name} must be {low}..{high}, not {getattr(self, name)}"
        for name, (low, high) in {
            "wide_depth": (16, 1 << ADDRESS_BITS),
            "operand_depth": (16, 1 << (ADDRESS_BITS - 1)),
            "norm_depth": (16, 1 << (ADDRESS_BITS - 1)),
            "lane_depth": (2, 1 << 10),
            "lut_columns": (8, 128),
            "lut_weight_depth": (16, 1 << (ADDRESS_BITS - 1)),
            "tap_depth": (16, 1 << 10),
        }.items():
            value = getattr(self, name)
            if value and not low <= value <= high:
                yield f"{name} must be 0 (absent) or {low}..{high}, not {value}"
        for name in ("operand_depth", "norm_depth"):
            if getattr(self, name) and not self.wide_depth:
                yield f"{name} must be 0 without vector engine (wide_depth = 0)"
        if bool(self.lane_depth) != bool(self.wide_depth):
            yield "lane_depth must be 0 if, and only if, wide_depth is 0 (no vector engine)"
        if bool(self.lut_columns) != bool(self.lut_weight_depth):
            yield "lut_weight_depth must be 0 if, and only if, lut_columns is 0 (no LUT core)"
        if self.tap_depth and self.lanes % 2:
            yield f"windows (tap_depth > 0) need an even number of lanes, not {self.lanes}"
        if self.block not in (8, 16):
            yield f"block must be 8 or 16, not {self.block}"
            return
        if self.dsp_columns % self.block:
            yield f"dsp_columns must be a multiple of block={self.block}, not {self.dsp_columns}"
        if self.lut_columns % self.block:
            yield f"lut_columns must be a multiple of block={self.block}, not {self.lut_columns}"
        if self.family not in FAMILIES:
            yield f"family must be one of {', '.join(FAMILIES)}, not {self.family!r}"
        if self.axi_data_bits not in (32, 64, 128, 256, 512):
            yield f"axi_data_bits must be 32, 64, 128, 256 or 512, not {self.axi_data_bits}"
            return
        word_bits = self.lanes * self.block * 8
        if word_bits % self.axi_data_bits:
            yield (
                f"an activation word (lanes * block * 8) is {word_bits} bits,"
                f" not a multiple of axi_data_bits={self.axi_data_bits}"
            )
        if self.axi_burst_beats * self.axi_data_bits // 8 > 4096:
            yield (
                f"a burst of {self.axi_burst_beats} beats of {self.axi_data_bits} bits"
                " is longer than the 4 KiB that AXI4 allows"
            )
        if self.operand_depth and self.dsp_columns % self.lanes:
            yield (
                f"operand memory needs dsp_columns to be a multiple of lanes={self.lanes},"
                f" not {self.dsp_columns}; set operand_depth = 0 for networks without attention"
            )
        if not self.clock_mhz > 0:
            yield f"clock_mhz must be positive, not {self.clock_mhz}"

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The engines that the configuration has."""
        absent = set()
        if not self.wide_depth:
            absent.add(Engine.VECTOR)
        if not self.operand_depth:
            absent.add(Engine.MOVE)
        if not self.lut_columns:
            absent.add(Engine.LUT)
        return tuple(engine for engine in Engine if engine not in absent)

    @property
    def opcodes(self) -> tuple[Opcode, ...]:
        """The instructions that the configuration can execute."""
        absent = set()
        if not self.norm_depth:
            absent.add(Opcode.LAYER_NORM)
        if not self.tap_depth:
            absent |= {Opcode.WINDOW, Opcode.LUT_WINDOW}
        engines = (None, *self.engines)
        return tuple(
            row.opcode for row in ISA.values() if row.engine in engines and row.opcode not in absent
        )

    @property
    def multipliers(self) -> int:
        """Int8 multiply-accumulates of the DSP core per cycle."""
        return self.lanes * self.dsp_columns

    @property
    def bit_products(self) -> int:
        """Products of an activation and one bit of a weight that the LUT core makes per cycle."""
        return self.lanes * self.lut_columns * self.block

    @property
    def index_bits(self) -> int:
        """Bits of the position of a weight in its block."""
        return (self.block - 1).bit_length()

    @property
    def word_bytes(self) -> int:
        """Bytes of one activation word; a wide word has twice as many."""
        return self.lanes * self.block

    @property
    def axi_bytes(self) -> int:
        """Bytes of one beat of the memory port."""
        return self.axi_data_bits // 8

    @property
    def entries_per_beat(self) -> int:
        """64-bit entries that come with one beat of the memory port, and are written at once."""
        return max(1, self.axi_bytes // PARAMETER_BYTES)

    @property
    def words_per_tile(self) -> int:
        """Activation words that one drained column tile fills, per row tile."""
        return self.dsp_columns // self.block

    @property
    def hash(self) -> str:
        """32 hexadecimal bits that name everything hardware and programs must agree on."""
        fields = dataclasses.asdict(self)
        for irrelevant in ("name", "clock_mhz"):
            del fields[irrelevant]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]

    def replace(self, **changes) -> "Config":
        """Return a copy with ``changes``."""
        return dataclasses.replace(self, **changes)

    def to_toml(self) -> str:
        """Return the configuration as TOML, every line with its meaning."""
        lines = [f"# Twillcore configuration, hash {self.hash}"]
        for name, value in dataclasses.asdict(self).items():
            text = json.dumps(value, ensure_ascii=False)  # JSON of strings and numbers is TOML
            lines.append(f"{name} = {text}".ljust(28) + f" # {MEANINGS[name]}")
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str, source: str = "configuration") -> "Config":
        """Read what :meth:`to_toml` wrote; raises :class:`ConfigError` with all problems."""
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{source}: not TOML: {error}") from None
        known = set(MEANINGS)
        problems = [f"unknown parameter {name!r}" for name in sorted(values.keys() - known)]
        problems += [f"missing parameter {name!r}" for name in sorted(known - values.keys())]
        if problems:
            raise ConfigError(f"{source}: " + "; ".join(problems))
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None
        except TypeError as error:
            raise ConfigError(f"{source}: a value has the wrong type: {error}") from None


PRESETS = {
    config.name: config
    for config in (
        Config(
            name="tiny",
            lanes=4,
            block=8,
            dsp_columns=8,
            lut_columns=0,
            accumulator_bits=28,
            activation_depth=512,
            wide_depth=256,
            weight_depth=512,
            lut_weight_depth=0,
            tap_depth=0,
            operand_depth=256,
            parameter_depth=256,
            norm_depth=256,
            lane_depth=32,
            function_table=True,
            axi_data_bits=64,
            axi_burst_beats=16,
            queue_depth=4,
            family="generic",
            clock_mhz=100.0,
        ),
        Config(
            name="u256",
            lanes=16,
            block=8,
            dsp_columns=16,
            lut_columns=0,
            accumulator_bits=32,
            activation_depth=4096,
            wide_depth=2048,
            weight_depth=8192,
            lut_weight_depth=0,
            tap_depth=0,
            operand_depth=2048,
            parameter_depth=4096,
            norm_depth=2048,
            lane_depth=256,
            function_table=True,
            axi_data_bits=128,
            axi_burst_beats=32,
            queue_depth=16,
            family="xcup",
            clock_mhz=200.0,
        ),
        Config(  # per lane the vector engine and the drain need 13 MULT18: few lanes, many columns
            name="ecp5-85",
            lanes=2,
            block=8,
            dsp_columns=32,
            lut_columns=0,
            accumulator_bits=28,
            activation_depth=4096,
            wide_depth=1024,
            weight_depth=2048,
            lut_weight_depth=0,
            tap_depth=0,
            operand_depth=1024,
            parameter_depth=2048,
            norm_depth=1024,
            lane_depth=256,
            function_table=True,
            axi_data_bits=64,
            axi_burst_beats=32,
            queue_depth=8,
            family="ecp5",
            clock_mhz=90.0,
        ),
        Config(
            name="ecp5-small",
            lanes=2,
            block=8,
            dsp_columns=8,
            lut_columns=0,
            accumulator_bits=24,
            activation_depth=1024,
            wide_depth=512,
            weight_depth=1024,
            lut_weight_depth=0,
            tap_depth=0,
            operand_depth=0,
            parameter_depth=256,
            norm_depth=0,
            lane_depth=32,
            function_table=True,
            axi_data_bits=32,
            axi_burst_beats=16,
            queue_depth=4,
            family="ecp5",
            clock_mhz=90.0,
        ),
        Config(  # convolutions only: attention runs on z7020-transformer
            name="z7020",
            lanes=14,
            block=8,
            dsp_columns=24,
            lut_columns=16,
            accumulator_bits=26,
            activation_depth=2048,
            wide_depth=0,
            weight_depth=4096,
            lut_weight_depth=4096,
            tap_depth=256,
            operand_depth=0,
            parameter_depth=2048,
            norm_depth=0,
            lane_depth=0,
            function_table=False,
            axi_data_bits=128,
            axi_burst_beats=32,
            queue_depth=8,
            family="xc7",
            clock_mhz=100.0,
        ),
        Config(
            name="z7020-transformer",
            lanes=8,
            block=8,
            dsp_columns=24,
            lut_columns=0,
            accumulator_bits=28,
            activation_depth=2048,
            wide_depth=1024,
            weight_depth=4096,
            lut_weight_depth=0,
            tap_depth=0,
            operand_depth=1024,
            parameter_depth=2048,
            norm_depth=1024,
            lane_depth=256,
            function_table=True,
            axi_data_bits=64,
            axi_burst_beats=32,
            queue_depth=8,
            family="xc7",
            clock_mhz=100.0,
        ),
    )
}


def load_config(name_or_path: "str | Path | Config") -> Config:
    """Return a preset by name, or read a TOML file.

    Raises
    ------
    ConfigError
        If there is neither such a preset nor such a file, or the file is illegal.
    """
    if isinstance(name_or_path, Config):
        return name_or_path
    if str(name_or_path) in PRESETS:
        return PRESETS[str(name_or_path)]
    path = Path(name_or_path)
    if not path.is_file():
        raise ConfigError(
            f"no configuration {str(name_or_path)!r}:"
            f" neither a preset ({', '.join(PRESETS)}) nor a TOML file"
        )
    try:
        return Config.from_toml(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
