"""Programs on a Zynq board under PYNQ: the same ``run`` as the simulators'.

Runs on the board's own processor. Of Twillcore it needs the files of the package and numpy, nothing
that :mod:`pynq` does not bring: ``pip install --no-deps twillcore``.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twillcore.errors import TwillcoreError
from twillcore.fpga.readout import CONTROL, STATUS, counters, machine_error
from twillcore.image import Image
from twillcore.registers import REGISTERS, WATCHDOG_CYCLES
from twillcore.result import Result

CORE = "core"  # the cell's name in pynq_z2.tcl


class PynqEngine:
    """Run programs on the overlay that ``pynq_z2.tcl`` makes.

    Parameters
    ----------
    bitstream : twillcore.bit, with twillcore.hwh beside it
    watchdog : cycles without progress after which the machine stops itself

    Raises
    ------
    TwillcoreError
        If PYNQ is missing, or the bitstream or its hardware description is.
    """

    name = "pynq"

    def __init__(self, bitstream: str | Path, *, watchdog: int = WATCHDOG_CYCLES) -> None:
        path = Path(bitstream)
        for file in (path, path.with_suffix(".hwh")):
            if not file.is_file():
                raise TwillcoreError(f"{file}: no such file; fpga/zynq/pynq_z2.tcl makes it")
        try:
            import pynq
        except ImportError:
            raise TwillcoreError(
                "PYNQ is missing: run this on a board with the PYNQ image"
            ) from None
        self._overlay = overlay = pynq.Overlay(str(path))
        if not hasattr(overlay, CORE):
            raise TwillcoreError(f"{path}: there is no cell {CORE!r} in this design")
        self._allocate, self._core, self._watchdog = pynq.allocate, getattr(overlay, CORE), watchdog

    def run(
        self,
        image: Image,
        inputs: Mapping[str, NDArray],
        *,
        progress: Callable[[int], None] | None = None,
        max_seconds: float = 60.0,
    ) -> Result:
        """Run a program to its HALT.

        Parameters
        ----------
        progress : called with the cycles so far
        max_seconds : give up on a program that runs longer

        Raises
        ------
        ProgramError
            If the inputs do not fit the program.
        MachineError
            If the machine stopped with an error.
        TwillcoreError
            If the bitstream is for another configuration, there is too little contiguous memory,
            or the program runs longer than ``max_seconds``.
        """
        content = image.initial_memory(inputs)
        if (found := self._read("CONFIG_HASH")) != int(image.config.hash, 16):
            raise TwillcoreError(
                f"the bitstream is for configuration {found:08x}; the program was compiled for"
                f" {image.config.name!r} ({image.config.hash}): load that bitstream, or compile"
                " again"
            )
        try:
            buffer = self._allocate(shape=(len(content),), dtype=np.uint8)
        except (MemoryError, RuntimeError) as error:
            raise TwillcoreError(
                f"there are no {len(content):,} bytes of contiguous memory: {error}"
            ) from None
        try:
            buffer[:] = np.frombuffer(content, np.uint8)
            buffer.flush()
            started = time.perf_counter()
            self._execute(image, buffer.physical_address, progress, max_seconds)
            seconds = time.perf_counter() - started
            buffer.invalidate()
            outputs = image.read_outputs(bytes(buffer))
        except BaseException:
            # Before the memory is freed: the machine may be in the middle of something.
            self._overlay.download()
            raise
        finally:
            buffer.freebuffer()
        return Result(
            outputs=outputs,
            engine=self.name,
            cycles=self._read("CYCLES"),
            counters=counters(self._read, image.config),
            bytes_read=self._read("READ_BEATS") * image.config.axi_bytes,
            bytes_written=self._read("WRITE_BEATS") * image.config.axi_bytes,
            seconds=seconds,
        )

    def _execute(
        self,
        image: Image,
        base: int,
        progress: Callable[[int], None] | None,
        max_seconds: float,
    ) -> None:
        for name, value in (
            ("BASE", base),
            ("PROGRAM", image.program_address),
            ("WATCHDOG", self._watchdog),
            ("CONTROL", CONTROL["start"]),
        ):
            self._write(name, value)
        deadline = time.monotonic() + max_seconds
        while not (status := self._read("STATUS")) & (STATUS["done"] | STATUS["error"]):
            if progress:
                progress(self._read("CYCLES"))
            if time.monotonic() > deadline:
                raise TwillcoreError(f"the program still runs after {max_seconds:g} s")
        if status & STATUS["error"]:
            raise machine_error(self._read, image)

    def _read(self, name: str) -> int:
        return self._core.read(REGISTERS[name].offset)

    def _write(self, name: str, value: int) -> None:
        self._core.write(REGISTERS[name].offset, value)
