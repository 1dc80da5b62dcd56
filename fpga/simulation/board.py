"""A board in simulation: the Verilog of the bitstream, behind an object like a serial port."""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

from twillcore.config import Config
from twillcore.fpga.boards import Board
from twillcore.fpga.build import board_verilog, design_name
from twillcore.sim.verilated import Message, shared_library

_HERE = Path(__file__).parent
DIVISOR = 8  # clock cycles per bit: the line is most of the simulation
_IDLE_BITS = 300  # without a bit on the line after which a read ends

Fault = Callable[[bytes], bytes]


@cache
def _build(board: Board, config: Config, memory_kib: int, message: Message | None) -> Path:
    """Return the shared library of a board design."""
    module = design_name(board)
    verilog = board_verilog(board, config, memory_kib, DIVISOR)
    return shared_library(
        module,
        verilog + (_HERE / "ehxplll.v").read_text(),
        (_HERE / "harness.cpp").read_text(),
        name=f"board {board.name}",
        flags=("-O3", "-Wno-SYNCASYNCNET"),
        compiler_flags=f"-O2 -DMODEL=V{module} -DHEADER='\"V{module}.h\"'",
        message=message,
    )


class SimulatedSerial:
    """The serial port of a simulated board, as far as ``serial.Serial`` has the same methods.

    Parameters
    ----------
    memory_kib : block RAM of the design
    to_board, from_board : applied to the bytes on their way; for tests: drop some, change some
    drift : by how much the host's bit is longer than the board's
    message : called when the model is built

    Raises
    ------
    TwillcoreError
        If g++, make or Verilator is missing or fails.
    """

    def __init__(
        self,
        board: Board,
        config: Config,
        memory_kib: int = 32,
        *,
        to_board: Fault = bytes,
        from_board: Fault = bytes,
        drift: float = 0.0,
        message: Message | None = None,
    ) -> None:
        self._library = lib = ctypes.CDLL(str(_build(board, config, memory_kib, message)))
        u64, pointer = ctypes.c_uint64, ctypes.c_void_p
        for name, result, arguments in (
            ("open", pointer, (ctypes.c_double,)),
            ("close", None, (pointer,)),
            ("send", None, (pointer, ctypes.c_char_p, u64)),
            ("receive", u64, (pointer, ctypes.c_char_p, u64, u64)),
            ("waiting", u64, (pointer,)),
            ("wait", None, (pointer, u64, ctypes.c_int)),
            ("leds", ctypes.c_uint, (pointer,)),
            ("ticks", u64, (pointer,)),
            ("framing_errors", u64, (pointer,)),
        ):
            function = getattr(lib, f"board_{name}")
            function.restype, function.argtypes = result, arguments
        self.to_board, self.from_board = to_board, from_board
        self._model = lib.board_open(DIVISOR * (1 + drift))
        self.wait(64)  # configuration and reset

    @property
    def in_waiting(self) -> int:
        """Bytes that have come and were not read."""
        return self._library.board_waiting(self._open())

    @property
    def leds(self) -> int:
        """A bit per LED."""
        return self._library.board_leds(self._open())

    @property
    def cycles(self) -> int:
        """Clock cycles so far."""
        return self._library.board_ticks(self._open())

    @property
    def framing_errors(self) -> int:
        """Bytes from the board without start or stop bit."""
        return self._library.board_framing_errors(self._open())

    def write(self, data: bytes) -> int:
        """Send bytes; they leave as the clock runs, in :meth:`read` and :meth:`wait`."""
        on_line = self.to_board(bytes(data))
        self._library.board_send(self._open(), on_line, len(on_line))
        return len(data)

    def read(self, size: int = 1) -> bytes:
        """Run until ``size`` bytes have come, or the line is idle for long."""
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = self._library.board_receive(self._open(), buffer, size, _IDLE_BITS * DIVISOR)
            if not count:
                return b""
            if found := self.from_board(buffer.raw[:count]):
                return found

    def wait(self, cycles: int, broken: bool = False) -> None:
        """Let the clock run; ``broken``: with the line to the board held low."""
        self._library.board_wait(self._open(), cycles, broken)

    def close(self) -> None:
        """Throw the board away."""
        if self._model is not None:
            self._library.board_close(self._model)
            self._model = None

    def _open(self) -> int:
        if self._model is None:
            raise OSError("the port is closed")
        return self._model
