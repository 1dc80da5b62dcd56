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
from twillcore.hw.clocks import Part
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
SETTLING_CYCLES = 100_000  # that transfers may take to end, before a reset
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
        )
    ]  # fmt: skip


def build(
    config: Config, *, trace: bool = False, gated: bool = True, message: Message | None = None
) -> Path:
    """Return the shared library of the accelerator, built if there is none for its Verilog.

    Parameters
    ----------
    trace : can write waveforms
    gated : with a clock for each of its parts (:mod:`twillcore.hw.clocks`); else it is the Verilog
        of the product. Results and cycles are the same; gated it is twice as fast.

    Raises
    ------
    TwillcoreError
        If g++, make or Verilator is missing or fails.
    """
    # Elaboration takes seconds, so the hash of the sources leads to the hash of the Verilog.
    sources = content_key(config.hash, source_key("hw"), version("amaranth"), f"{gated=}")
    pointer = cache_folder() / "rtl" / f"sources-{sources}"
    verilog = None
    if not pointer.exists():
        if message:
            message(f"generating the Verilog of {config.name} ...")
        verilog = to_verilog(config, gated)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=pointer.parent, delete=False) as file:
            file.write(content_key(verilog))
        Path(file.name).replace(pointer)
    defines = (
        f"-DAXI_BYTES={config.axi_bytes} -DENGINES={len(Engine)}"
        f" -DTRACE={int(trace)} -DGATED={int(gated)}"
    )
    parts = " ".join(f"DO({part.domain})" for part in Part)
    return shared_library(
        MODULE,
        verilog or partial(to_verilog, config, gated),
        f"#define PARTS(DO) {parts}\n{HARNESS.read_text()}",
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
            ("open", pointer, (ctypes.c_char_p, u64, u64)),
            ("begin", None, (pointer, ctypes.POINTER(_Settings), pointer, u64)),
            ("settle", ctypes.c_int, (pointer, u64)),
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


class RtlMachine:
    """One instance of the RTL, in which programs run one after another.

    Like a chip it keeps registers and memories from program to program; DRAM is each program's own.
    A program starts when the transfers of the one before have ended (FETCH reads beyond HALT), so
    it takes as many cycles as on a new machine. To be closed, or used in a ``with`` statement.

    Parameters
    ----------
    config : of all programs
    vcd : file for a waveform of every signal
    window : cycles (first, end) of every program that the waveform covers; default: all, reset
        included
    gated : see :func:`build`; by default a machine without a waveform is, since in a waveform the
        clocks of its parts would stand still
    message : called with a sentence when something takes long, such as the build on first use

    Raises
    ------
    TwillcoreError
        If the simulator cannot be built.
    """

    def __init__(
        self,
        config: Config,
        *,
        vcd: str | Path | None = None,
        window: tuple[int, int] | None = None,
        gated: bool | None = None,
        message: Message | None = None,
    ) -> None:
        self.config = config
        if gated is None:
            gated = vcd is None
        path = build(config, trace=vcd is not None, gated=gated, message=message)
        self._library = _Library(path)
        self._machine = self._library.open(
            str(vcd).encode() if vcd is not None else None, *(window or (0, NEVER))
        )
        self._buffer: ctypes.Array | None = None  # of the last program: transfers may still end
        if (found := self._read("CONFIG_HASH")) != int(config.hash, 16):
            raise AssertionError(f"the hardware says configuration {found:08x}")

    def __enter__(self) -> "RtlMachine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the simulation, and the waveform."""
        if self._machine is not None:
            self._library.close(self._machine)
        self._machine = self._buffer = None

    def run(
        self,
        image: Image,
        inputs: Mapping[str, NDArray],
        *,
        dram: Dram = DEFAULT_DRAM,
        faults: Faults = Faults(),
        watchdog: int = registers.WATCHDOG_CYCLES,
        progress: Callable[[int], None] | None = None,
        max_cycles: int | None = None,
    ) -> Result:
        """Run a program to its HALT; parameters are those of :class:`RtlEngine` and its ``run``.

        Raises
        ------
        MachineError
            If the machine stopped with an error. Then only a :meth:`reset` makes it run again.
        TwillcoreError
            If the program is for another configuration, or runs longer than ``max_cycles``, or the
            one before still runs.
        """
        if image.config.hash != self.config.hash:
            raise TwillcoreError(
                f"the program is for configuration {image.config.name} ({image.config.hash}),"
                f" the machine is {self.config.name} ({self.config.hash})"
            )
        if not self._read("STATUS") & 1:
            raise TwillcoreError("the program before still runs")
        library, machine = self._library, self._machine
        library.settle(machine, SETTLING_CYCLES)
        memory = image.initial_memory(inputs)
        settings = _Settings(
            dram.latency, dram.beat_cycles, dram.outstanding,
            faults.read, faults.write, faults.hang,
        )  # fmt: skip
        started = time.perf_counter()
        buffer = (ctypes.c_uint8 * len(memory)).from_buffer(memory)
        library.begin(machine, ctypes.byref(settings), buffer, len(memory))
        self._buffer = buffer
        self._execute(image, watchdog, progress, max_cycles)
        cycles = self._read("CYCLES")
        if cycles != library.cycle(machine) & 0xFFFF_FFFF:
            raise AssertionError("CYCLES differs from the cycles that the harness counted")
        return Result(
            outputs=image.read_outputs(memory),
            engine=RtlEngine.name,
            cycles=cycles,
            spans=_spans(library, machine, image),
            counters=_counters(library, machine, image.config),
            bytes_read=library.bytes_read(machine),
            bytes_written=library.bytes_written(machine),
            seconds=time.perf_counter() - started,
        )

    @property
    def cycle(self) -> int:
        """Cycles for which the last program has run."""
        return self._library.cycle(self._machine)

    def reset(self) -> None:
        """Reset the machine by command (CONTROL.reset), once the bus is idle as that needs.

        A memory that hung has recovered by then.

        Raises
        ------
        TwillcoreError
            If the bus does not become idle: a program runs, or a STORE went beyond its memory and
            has left bursts without data.
        """
        if not self._library.settle(self._machine, SETTLING_CYCLES):
            raise TwillcoreError(
                f"bus transfers are still outstanding after {SETTLING_CYCLES} cycles"
            )
        field = next(f for f in REGISTERS["CONTROL"].fields if f.name == "reset")
        self._write("CONTROL", 1 << field.offset)

    def _execute(self, image, watchdog, progress, max_cycles) -> None:
        library, machine = self._library, self._machine
        for name, value in (
            ("BASE", 0),
            ("PROGRAM", image.program_address),
            ("WATCHDOG", watchdog),
            ("CONTROL", 1),
        ):
            self._write(name, value)
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
        if cause := Cause(self._read("ERROR_CAUSE")):
            raise _machine_error(library, machine, image, cause)

    def _read(self, name: str) -> int:
        return _read(self._library, self._machine, name)

    def _write(self, name: str, value: int) -> None:
        self._library.write(self._machine, REGISTERS[name].offset, value)


class RtlEngine:
    """Run programs on the RTL, each on a new instance.

    Parameters
    ----------
    message : called with a sentence when something takes long, such as the build on first use
    faults : what the memory does wrong
    watchdog : cycles without progress after which the machine stops itself
    gated : as of :class:`RtlMachine`
    """

    name = "rtl"

    def __init__(
        self,
        *,
        message: Message | None = None,
        faults: Faults = Faults(),
        watchdog: int = registers.WATCHDOG_CYCLES,
        gated: bool | None = None,
    ) -> None:
        self.message, self.faults, self.watchdog, self.gated = message, faults, watchdog, gated

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
        with RtlMachine(
            image.config, vcd=vcd, window=window, gated=self.gated, message=self.message
        ) as machine:
            return machine.run(
                image,
                inputs,
                dram=dram,
                faults=self.faults,
                watchdog=self.watchdog,
                progress=progress,
                max_cycles=max_cycles,
            )


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
