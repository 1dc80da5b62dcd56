"""The program file: instructions, constants and buffers of one network for one configuration."""

import dataclasses
import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twillcore.config import Config
from twillcore.errors import TwillcoreError
from twillcore.isa import PARAMETER_BYTES, WORD_BYTES, Instruction, encode_parameter

MAGIC = b"TWILLCORE PROGRAM\n"
VERSION = 1
MASKED_BIAS = -(1 << 31)  # as bias of a logit's column: the logit saturates at the bottom


class ProgramError(TwillcoreError):
    """A program file that is damaged, or made for another configuration, or fed wrong inputs."""


@dataclass(frozen=True)
class Slot:
    """Where an input or output tensor lies in DRAM, and how.

    ``kind`` is ``"int8"`` or ``"int16"`` (lane-blocked words: for every item of the batch, for
    every row tile of ``lanes`` rows, for every block of ``block`` channels, one word of lanes *
    block values, lane by lane; missing rows and channels are zero), or ``"mask"`` (one parameter
    entry per column of ``channels``: bias 0 where the boolean input is true, :data:`MASKED_BIAS`
    where it is false and beyond ``channels``; multiplier and shift as given in ``multiplier``,
    ``shift``). ``scale`` converts integers to real values: real = integer * scale.

    Rows that are pixels can have a ``pitch``: then pixel x of line y, row ``y * width + x`` of the
    tensor, stands in row ``y * pitch + x`` of the words, and rows between the lines are zero.
    """

    name: str
    kind: str
    address: int
    batch: int
    rows: int
    channels: int
    scale: float = 1.0
    multiplier: int = 0
    shift: int = 0
    width: int = 0
    pitch: int = 0

    @property
    def word_rows(self) -> int:
        """Rows of the words of one item, those between lines included."""
        if not self.pitch:
            return self.rows
        return (self.rows // self.width - 1) * self.pitch + self.width

    @property
    def shape(self) -> tuple[int, int, int]:
        """Logical shape, (batch, rows, channels)."""
        return self.batch, self.rows, self.channels

    def padded_columns(self, config: Config) -> int:
        """Columns of a mask, up to a whole column tile."""
        return -(-self.channels // config.dsp_columns) * config.dsp_columns

    def size_bytes(self, config: Config) -> int:
        """Bytes in DRAM."""
        if self.kind == "mask":
            return self.batch * self.padded_columns(config) * PARAMETER_BYTES
        tiles = -(-self.word_rows // config.lanes)
        words = self.batch * tiles * -(-self.channels // config.block)
        return words * config.word_bytes * (2 if self.kind == "int16" else 1)

    def pack(self, array: NDArray, config: Config) -> bytes:
        """Return the bytes of ``array`` (of :attr:`shape`) in DRAM.

        Raises
        ------
        ProgramError
            If shape, dtype or values do not fit.
        """
        array = np.asarray(array)
        if array.shape != self.shape:
            raise ProgramError(f"{self.name}: shape must be {self.shape}, not {array.shape}")
        if self.kind == "mask":
            bits = np.zeros((self.batch, self.padded_columns(config)), bool)
            bits[:, : self.channels] = array[:, 0, :] != 0
            entries = [
                encode_parameter(0 if bit else MASKED_BIAS, self.multiplier, self.shift, 0)
                for bit in bits.reshape(-1)
            ]
            return np.array(entries, "<u8").tobytes()
        dtype = np.dtype("<i2" if self.kind == "int16" else "i1")
        if array.dtype.kind not in "iu":
            raise ProgramError(f"{self.name}: values must be integers, not {array.dtype}")
        limits = np.iinfo(dtype)
        if array.size and (array.min() < limits.min or array.max() > limits.max):
            raise ProgramError(f"{self.name}: values must fit in {self.kind}")
        if self.pitch:
            lines = array.reshape(self.batch, -1, self.width, self.channels)
            gap = [(0, 0), (0, 0), (0, self.pitch - self.width), (0, 0)]
            array = np.pad(lines, gap).reshape(self.batch, -1, self.channels)[:, : self.word_rows]
        return to_words(array, config).astype(dtype).tobytes()

    def unpack(self, data: bytes, config: Config) -> NDArray:
        """Return the tensor of :attr:`shape` that lies in ``data``; inverse of :meth:`pack`."""
        dtype = np.dtype("<i2" if self.kind == "int16" else "i1")
        shape = self.batch, self.word_rows, self.channels
        array = from_words(np.frombuffer(data, dtype), shape, config)
        if not self.pitch:
            return array
        pixel = np.arange(self.rows)
        return array[:, pixel // self.width * self.pitch + pixel % self.width]


def to_words(array: NDArray, config: Config) -> NDArray:
    """Lane-blocked words of a (batch, rows, channels) array.

    Returns an array of shape (batch, row tiles, blocks, lanes, block), padded with zeros.
    """
    batch, rows, channels = array.shape
    tiles, blocks = -(-rows // config.lanes), -(-channels // config.block)
    padded = np.zeros((batch, tiles * config.lanes, blocks * config.block), array.dtype)
    padded[:, :rows, :channels] = array
    split = padded.reshape(batch, tiles, config.lanes, blocks, config.block)
    return np.ascontiguousarray(split.transpose(0, 1, 3, 2, 4))


def from_words(words: NDArray, shape: tuple[int, int, int], config: Config) -> NDArray:
    """Return the (batch, rows, channels) array of flat lane-blocked ``words``."""
    batch, rows, channels = shape
    tiles, blocks = -(-rows // config.lanes), -(-channels // config.block)
    split = words.reshape(batch, tiles, blocks, config.lanes, config.block)
    flat = split.transpose(0, 1, 3, 2, 4).reshape(batch, tiles * config.lanes, -1)
    return flat[:, :rows, :channels].copy()


@dataclass(frozen=True)
class Layer:
    """A named share of the program, for reports: instructions carry the index of their layer.

    ``macs`` counts multiply-accumulates of the dense equivalent with the real sizes,
    ``useful_macs`` those that the kept weights on the DSP core need (N of N:B of the real sizes),
    ``lut_macs`` those of the LUT core, and ``lut_work`` its products of an activation and one bit
    of a kept weight.
    """

    name: str
    macs: int = 0
    useful_macs: int = 0
    lut_macs: int = 0
    lut_work: int = 0

    def ideal_cycles(self, config: Config) -> int:
        """Cycles in which the cores, side by side, could compute it if nothing were lost."""
        lut = -(-self.lut_work // config.bit_products) if self.lut_work else 0
        return max(-(-self.useful_macs // config.multipliers), lut)


@dataclass(frozen=True)
class Image:
    """Everything an engine needs to run a network.

    Attributes
    ----------
    config : the configuration it was compiled for
    program_address : byte address of the first instruction
    instruction_count : instructions, HALT included
    memory : initial content of DRAM from address 0, instructions and constants included
    memory_bytes : size of DRAM that the program uses
    inputs, outputs : slots
    layers : shares of the program
    instruction_layers : for every instruction, its layer's index
    host : opaque sections for the host (name to bytes)
    notes : anything printable about the compilation
    """

    config: Config
    program_address: int
    instruction_count: int
    memory: bytes
    memory_bytes: int
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    layers: tuple[Layer, ...] = ()
    instruction_layers: tuple[int, ...] = ()
    host: Mapping[str, bytes] = field(default_factory=dict)
    notes: Mapping[str, object] = field(default_factory=dict)

    def instructions(self) -> list[Instruction]:
        """Decode the program. Raises ``ValueError`` on an illegal word."""
        start = self.program_address
        return [
            Instruction.decode(
                int.from_bytes(self.memory[start + i * WORD_BYTES : start + (i + 1) * WORD_BYTES],
                               "little")
            )
            for i in range(self.instruction_count)
        ]  # fmt: skip

    def initial_memory(self, inputs: Mapping[str, NDArray]) -> bytearray:
        """Return DRAM with the inputs in place.

        Raises
        ------
        ProgramError
            If input names, shapes or types are wrong; all problems in one message.
        """
        problems = []
        names = {slot.name for slot in self.inputs}
        if missing := sorted(names - inputs.keys()):
            problems.append(f"missing inputs: {', '.join(missing)}")
        if unknown := sorted(inputs.keys() - names):
            problems.append(f"unknown inputs: {', '.join(unknown)}")
        memory = bytearray(self.memory_bytes)
        memory[: len(self.memory)] = self.memory
        for slot in self.inputs:
            if slot.name not in inputs:
                continue
            try:
                data = slot.pack(inputs[slot.name], self.config)
            except ProgramError as error:
                problems.append(str(error))
                continue
            memory[slot.address : slot.address + len(data)] = data
        if problems:
            raise ProgramError("; ".join(problems))
        return memory

    def read_outputs(self, memory: bytes | bytearray) -> dict[str, NDArray]:
        """Return the output tensors that lie in DRAM."""
        result = {}
        for slot in self.outputs:
            end = slot.address + slot.size_bytes(self.config)
            result[slot.name] = slot.unpack(bytes(memory[slot.address : end]), self.config)
        return result

    def to_bytes(self) -> bytes:
        """Return the program file: magic, header length, JSON header, sections, SHA-256."""
        sections = {"memory": self.memory, **{f"host.{k}": v for k, v in self.host.items()}}
        header = {
            "version": VERSION,
            "config_hash": self.config.hash,
            "config": dataclasses.asdict(self.config),
            "program_address": self.program_address,
            "instruction_count": self.instruction_count,
            "memory_bytes": self.memory_bytes,
            "inputs": [dataclasses.asdict(slot) for slot in self.inputs],
            "outputs": [dataclasses.asdict(slot) for slot in self.outputs],
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
            "instruction_layers": list(self.instruction_layers),
            "notes": self.notes,
            "sections": {name: len(data) for name, data in sections.items()},
        }
        text = json.dumps(header).encode()
        body = MAGIC + struct.pack("<I", len(text)) + text + b"".join(sections.values())
        return body + hashlib.sha256(body).digest()

    @classmethod
    def from_bytes(cls, data: bytes, source: str = "program") -> "Image":
        """Read a program file.

        Raises
        ------
        ProgramError
            If it is no program, truncated, damaged, or of another version.
        """
        if data[: len(MAGIC)] != MAGIC:
            raise ProgramError(f"{source}: not a Twillcore program")
        if len(data) < len(MAGIC) + 4 + 32:
            raise ProgramError(f"{source}: truncated, only {len(data)} bytes")
        body, digest = data[:-32], data[-32:]
        if hashlib.sha256(body).digest() != digest:
            raise ProgramError(f"{source}: truncated or damaged (checksum differs); compile again")
        position = len(MAGIC)
        (length,) = struct.unpack_from("<I", body, position)
        header = json.loads(body[position + 4 : position + 4 + length])
        if header["version"] != VERSION:
            raise ProgramError(
                f"{source}: program format {header['version']}, this is {VERSION}; compile again"
            )
        position += 4 + length
        sections = {}
        for name, size in header["sections"].items():
            sections[name] = body[position : position + size]
            position += size
        config = Config(**header["config"])
        if config.hash != header["config_hash"]:
            raise ProgramError(
                f"{source}: made by a version with other configurations; compile again"
            )
        return cls(
            config=config,
            program_address=header["program_address"],
            instruction_count=header["instruction_count"],
            memory=sections["memory"],
            memory_bytes=header["memory_bytes"],
            inputs=tuple(Slot(**slot) for slot in header["inputs"]),
            outputs=tuple(Slot(**slot) for slot in header["outputs"]),
            layers=tuple(Layer(**layer) for layer in header["layers"]),
            instruction_layers=tuple(header["instruction_layers"]),
            host={k.removeprefix("host."): v for k, v in sections.items() if k != "memory"},
            notes=header["notes"],
        )

    def save(self, path: str | Path) -> None:
        """Write the program file. Raises :class:`ProgramError` if the path cannot be written."""
        try:
            Path(path).write_bytes(self.to_bytes())
        except OSError as error:
            raise ProgramError(f"{path}: cannot be written: {error.strerror}") from None

    @classmethod
    def load(cls, path: str | Path) -> "Image":
        """Read a program file. Raises :class:`ProgramError`; see :meth:`from_bytes`."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise ProgramError(f"{path}: cannot be read: {error.strerror}") from None
        return cls.from_bytes(data, str(path))

    def require(self, config: Config) -> None:
        """Refuse another configuration. Raises :class:`ProgramError`."""
        if config.hash != self.config.hash:
            raise ProgramError(
                f"program was compiled for configuration {self.config.name!r}"
                f" ({self.config.hash}), not for {config.name!r} ({config.hash}); compile again"
            )
