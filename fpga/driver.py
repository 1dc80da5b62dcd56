"""Programs on a board: the same ``run`` as the simulators'."""

import os
import time
from collections.abc import Callable, Mapping

from numpy.typing import NDArray

from twillcore.fpga.boards import BOARDS
from twillcore.fpga.client import BoardError, Client, Port
from twillcore.fpga.protocol import LONGEST_REQUEST, MAX_PAYLOAD
from twillcore.fpga.readout import CONTROL, STATUS, counters, machine_error
from twillcore.image import Image
from twillcore.registers import WATCHDOG_CYCLES
from twillcore.result import Result

PORT_VARIABLE = "TWILLCORE_PORT"
Progress = Callable[[int], None]


class BoardEngine:
    """Run programs on a board over its serial port.

    Parameters
    ----------
    port : name of the serial port, or an open one, which stays open. Default:
        ``$TWILLCORE_PORT``, or the only port with the USB bridge of a known board
    baud : as the bitstream was built
    message : called with a sentence when something takes long
    watchdog : cycles without progress after which the machine stops itself
    """

    name = "board"

    def __init__(
        self,
        port: str | Port | None = None,
        *,
        baud: int | None = None,
        message: Callable[[str], None] | None = None,
        watchdog: int = WATCHDOG_CYCLES,
    ) -> None:
        self._port, self._baud = port, baud or next(iter(BOARDS.values())).baud
        self.message, self.watchdog = message, watchdog
        self._client: Client | None = None

    def __enter__(self) -> "BoardEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the port, if it was opened here; the next run opens it again."""
        if self._client is not None and (self._port is None or isinstance(self._port, str)):
            self._client.close()
        self._client = None

    @property
    def repeated(self) -> int:
        """Requests that had to be sent again since the port was opened: how good the line is."""
        return self._client.repeated if self._client is not None else 0

    def run(
        self,
        image: Image,
        inputs: Mapping[str, NDArray],
        *,
        progress: Progress | None = None,
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
        BoardError
            If the board does not answer, is made for another configuration, or has too little
            memory; if the link is lost, or the program runs longer than ``max_seconds``.
        MachineError
            If the machine stopped with an error.
        """
        memory = image.initial_memory(inputs)
        try:
            return self._run(image, memory, progress, max_seconds)
        except BoardError:
            self.close()
            raise

    def _run(
        self, image: Image, memory: bytearray, progress: Progress | None, max_seconds: float
    ) -> Result:
        client = self._client = self._client or self._open()
        started = time.perf_counter()
        client.reset()  # whatever ran before
        _check(client, image)
        for address in range(0, len(memory), MAX_PAYLOAD):
            client.write_memory(address, memory[address : address + MAX_PAYLOAD])
            if self.message:
                self.message(f"sending the program: {address:,} of {len(memory):,} bytes")
        for name, value in (
            ("BASE", 0),
            ("PROGRAM", image.program_address),
            ("WATCHDOG", self.watchdog),
            ("CONTROL", CONTROL["start"]),
        ):
            client.write_register(name, value)

        deadline = time.monotonic() + max_seconds
        while not (status := client.read_register("STATUS")) & (STATUS["done"] | STATUS["error"]):
            if status & STATUS["idle"]:
                raise BoardError("the board forgot the program: it was reset, or lost power")
            if progress:
                progress(client.read_register("CYCLES"))
            if time.monotonic() > deadline:
                raise BoardError(f"the program still runs after {max_seconds:g} s")
        if status & STATUS["error"]:
            raise machine_error(client.read_register, image)
        cycles = client.read_register("CYCLES")
        if progress:
            progress(cycles)
        beat = image.config.axi_bytes
        for slot in image.outputs:
            size = slot.size_bytes(image.config)
            memory[slot.address : slot.address + size] = client.read_memory(slot.address, size)
        return Result(
            outputs=image.read_outputs(memory),
            engine=self.name,
            cycles=cycles,
            counters=counters(client.read_register, image.config),
            bytes_read=client.read_register("READ_BEATS") * beat,
            bytes_written=client.read_register("WRITE_BEATS") * beat,
            seconds=time.perf_counter() - started,
        )

    def _open(self) -> Client:
        if self._port is not None and not isinstance(self._port, str):
            return Client(self._port, "the board")
        try:
            import serial
        except ImportError:
            raise BoardError(
                "pyserial is missing; install it with: pip install 'twillcore[board]'"
            ) from None
        name = self._port or os.environ.get(PORT_VARIABLE) or _find_port()
        # Longer than the longest request and its answer, and the delays of a USB bridge.
        timeout = 0.3 + 2 * 2 * LONGEST_REQUEST * 10 / self._baud
        try:
            port = serial.Serial(name, self._baud, timeout=timeout, write_timeout=timeout)
            port.reset_input_buffer()
        except (OSError, ValueError) as error:
            raise BoardError(f"{name}: the serial port cannot be opened: {error}") from None
        try:
            return Client(port, name)
        except BaseException:
            port.close()
            raise


def _find_port() -> str:
    """Return the serial port of the only board that is connected."""
    from serial.tools import list_ports

    bridges = {board.usb_id for board in BOARDS.values()}
    found = [one.device for one in list_ports.comports() if (one.vid, one.pid) in bridges]
    if len(found) != 1:
        there = "no board is" if not found else f"several boards are ({', '.join(found)})"
        raise BoardError(f"{there} connected: name the serial port, or set {PORT_VARIABLE}")
    return found[0]


def _check(client: Client, image: Image) -> None:
    """Refuse a program that the board cannot run."""
    if (found := client.read_register("CONFIG_HASH")) != int(image.config.hash, 16):
        raise BoardError(
            f"the board carries configuration {found:08x}; the program was compiled for"
            f" {image.config.name!r} ({image.config.hash}): load that bitstream, or compile again"
        )
    if image.memory_bytes > client.memory_bytes:
        raise BoardError(
            f"the program needs {image.memory_bytes:,} bytes of memory;"
            f" the board has {client.memory_bytes:,}"
        )
