"""The RTL itself under Verilator: exact results, exact cycles, in a compiled clock loop."""

import ctypes
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from numpy.typing import NDArray

from twillcore import registers
from twillcore.cache import cache_folder, content_key, source_key
from twillcore.config import Config
from twillcore.dram import Dram
from twillcore.errors import TwillcoreError
from twillcore.hw.verilog import MODULE, to_verilog
from twillcore.image import Image
from twillcore.isa import Cause, Engine
from twillcore.registers import REGISTERS, Counter, counter_offset
from twillcore.result import Result, Span
from twillcore.sim.machine_error import MachineError
from twillcore.sim.verilated import Message, shared_library

HARNESS = Path(__file__).with_name("rtl_harness.cpp")
DEFAULT_DRAM = Dram()
CHUNK_CYCLES = 50_000  # between two looks at progress and Ctrl-C
NEVER = (1 << 64) - 1

VERILATOR_FLAGS = ("-O3", "--output-split", "20000", "--output-split-cfuncs", "5000")
COMPILER_FLAGS = "-march=native"


@dataclass(frozen=True)
class Faults:
    """What the memory does wrong, for tests.

    ``read`` and ``write`` are byte addresses at which it answers with SLVERR; from cycle ``hang``
    of the program on it does nothing at all.
    """

    read: int = NEVER
    write: int = NEVER
    hang: int = NEVER


class _Settings(ctypes.Structure):
    """``Settings`` of rtl_harness.cpp."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "latency", "beat_cycles", "outstanding",
            "read_fault", "write_fault", "hang",
            "trace_from", "trace_to",
        )
    ]  # fmt: skip


def build(config: Config, *, trace: bool = False, message: Message | None = None) -> Path:
    """Return the shared library of the accelerator, built if there is none for its Verilog.

    Raises
    ------
    TwillcoreError
        If g++, make or Verilator is missing or fails.
    """
    # Elaboration takes seconds, so the hash of the sources leads to the hash of the Verilog.
    sources = content_key(config.hash, source_key("hw"), version("amaranth"))
    pointer = cache_folder() / "rtl" / f"sources-{sources}"
    verilog = None
    if not pointer.exists():
        if message:
            message(f"generating the Verilog of {config.name} ...")
        verilog = to_verilog(config)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=pointer.parent, delete=False) as file:
            file.write(content_key(verilog))
        Path(file.name).replace(pointer)
    defines = f"-DAXI_BYTES={config.axi_bytes} -DENGINES={len(Engine)} -DTRACE={int(trace)}"
    return shared_library(
        MODULE,
        verilog or partial(to_verilog, config),
        HARNESS.read_text(),
        name=config.name,
        key=pointer.read_text(),
        flags=(*VERILATOR_FLAGS, *(["--trace"] if trace else [])),
        compiler_flags=f"{COMPILER_FLAGS} {defines}",
        message=message,
    )


class _Library:
    """The C functions of rtl_harness.cpp, with their types."""

    def __init__(self, path: Path) -> None:
        self._library = library = ctypes.CDLL(str(path))
        u32, u64, pointer = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
        for name, result, arguments in (
            ("open", pointer, (ctypes.POINTER(_Settings), pointer, u64, ctypes.c_char_p)),
            ("close", None, (pointer,)),
            ("read", u32, (pointer, u32)),
            ("write", u32, (pointer, u32, u32)),
            ("run", ctypes.c_int, (pointer, u64)),
            ("cycle", u64, (pointer,)),
            ("bytes_read", u64, (pointer,)),
            ("bytes_written", u64, (pointer,)),
            ("problem", ctypes.c_char_p, (pointer,)),
            (
                "events",
                u64,
                (pointer, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(ctypes.POINTER(u64))),
            ),
        ):
            function = getattr(library, f"machine_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)


class RtlEngine:
    """Run programs on the RTL.

    Parameters
    ----------
    message : called with a sentence when something takes long, such as the build on first use
    faults : what the memory does wrong
    watchdog : cycles without progress after which the machine stops itself
    """

    name = "rtl"

    def __init__(
        self,
        *,
        message: Message | None = None,
        faults: Faults = Faults(),
        watchdog: int = registers.WATCHDOG_CYCLES,
    ) -> None:
        self.message, self.faults, self.watchdog = message, faults, watchdog

    def run(
        self,
        image: Image,
        inputs: Mapping[str, NDArray],
        *,
        dram: Dram = DEFAULT_DRAM,
        vcd: str | Path | None = None,
        window: tuple[int, int] | None = None,
        progress: Callable[[int], None] | None = None,
        max_cycles: int | None = None,
    ) -> Result:
        """Run a program to its HALT.

        Parameters
        ----------
        vcd : file for a waveform of every signal
        window : cycles (first, end) that the waveform covers; default: all, reset included
        progress : called with the number of cycles that have been simulated
        max_cycles : give up after so many

        Raises
        ------
        MachineError
            If the machine stopped with an error.
        TwillcoreError
            If the simulator cannot be built, or the program runs longer than ``max_cycles``.
        """
        memory = image.initial_memory(inputs)
        library = _Library(build(image.config, trace=vcd is not None, message=self.message))
        begin, end = window or (0, NEVER)
        settings = _Settings(
            dram.latency, dram.beat_cycles, dram.outstanding,
            self.faults.read, self.faults.write, self.faults.hang, begin, end,
        )  # fmt: skip
        started = time.perf_counter()
        buffer = (ctypes.c_uint8 * len(memory)).from_buffer(memory)
        path = str(vcd).encode() if vcd is not None else None
        machine = library.open(ctypes.byref(settings), buffer, len(memory), path)
        try:
            self._run(library, machine, image, progress, max_cycles)
            cycles = _read(library, machine, "CYCLES")
            if cycles != library.cycle(machine) & 0xFFFF_FFFF:
                raise AssertionError("CYCLES differs from the cycles that the harness counted")
            spans = _spans(library, machine, image)
            counters = _counters(library, machine, image.config)
            bytes_read, bytes_written = library.bytes_read(machine), library.bytes_written(machine)
        finally:
            library.close(machine)
            del buffer
        return Result(
            outputs=image.read_outputs(memory),
            engine=self.name,
            cycles=cycles,
            spans=spans,
            counters=counters,
            bytes_read=bytes_read,
            bytes_written=bytes_written,
            seconds=time.perf_counter() - started,
        )

    def _run(self, library, machine, image, progress, max_cycles) -> None:
        if (found := _read(library, machine, "CONFIG_HASH")) != int(image.config.hash, 16):
            raise AssertionError(f"the hardware says configuration {found:08x}")
        for name, value in (
            ("BASE", 0),
            ("PROGRAM", image.program_address),
            ("WATCHDOG", self.watchdog),
            ("CONTROL", 1),
        ):
            library.write(machine, REGISTERS[name].offset, value)
        limit = NEVER if max_cycles is None else max_cycles
        while not library.run(machine, min(CHUNK_CYCLES, limit - library.cycle(machine))):
            if progress:
                progress(library.cycle(machine))
            if library.cycle(machine) >= limit:
                raise TwillcoreError(f"the program still runs after {limit} cycles")
        if progress:
            progress(library.cycle(machine))
        if problem := library.problem(machine).decode():
            raise AssertionError(f"the hardware broke the AXI protocol: {problem}")
        if cause := Cause(_read(library, machine, "ERROR_CAUSE")):
            raise _machine_error(library, machine, image, cause)


def _read(library, machine, name: str) -> int:
    return library.read(machine, REGISTERS[name].offset)


def _machine_error(library, machine, image: Image, cause: Cause) -> MachineError:
    index = _read(library, machine, "ERROR_INDEX")
    number = _read(library, machine, "ERROR_ENGINE")
    engine = Engine(number).name.lower() if number in tuple(Engine) else "dispatch"
    if index >= image.instruction_count:
        return MachineError(cause, engine)
    try:
        text = str(image.instructions()[index])
    except ValueError as error:
        return MachineError(cause, engine, index, detail=str(error))
    return MachineError(cause, engine, index, text)


def _spans(library, machine, image: Image) -> tuple[Span, ...]:
    """Match the pulses of every engine with its instructions, which it executes in order."""
    spans = []
    instructions = image.instructions()
    for engine in Engine:
        indices = [i for i, one in enumerate(instructions) if one.engine is engine]
        starts, ends = (_events(library, machine, end, engine) for end in (False, True))
        if not len(indices) == len(starts) == len(ends):
            raise AssertionError(
                f"{engine.name}: {len(indices)} instructions,"
                f" {len(starts)} starts, {len(ends)} ends"
            )
        spans += [Span(*span) for span in zip(indices, starts, ends, strict=True)]
    return tuple(sorted(spans, key=lambda span: span.index))


def _events(library, machine, ends: bool, engine: Engine) -> list[int]:
    cycles = ctypes.POINTER(ctypes.c_uint64)()
    count = library.events(machine, ends, engine, ctypes.byref(cycles))
    return cycles[:count]


def _counters(library, machine, config: Config) -> dict[str, dict[str, int]]:
    return {
        engine.name.lower(): {
            counter.name.lower(): library.read(machine, counter_offset(engine, counter))
            for counter in Counter
        }
        for engine in config.engines
    }
