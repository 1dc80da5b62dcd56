"""The host's side of :mod:`twillcore.fpga.protocol`: requests, repeated until they are answered."""

import struct
from typing import Protocol

from twillcore.errors import TwillcoreError
from twillcore.fpga import protocol
from twillcore.fpga.protocol import MAX_PAYLOAD, STATUS_MEANINGS, Opcode, Response, Status
from twillcore.registers import REGISTERS

ATTEMPTS = 8
#: Bytes without a good response after which an attempt has failed: the line talks, but not to us.
_MOST_BYTES = 4 * protocol.LONGEST_REQUEST


class BoardError(TwillcoreError):
    """The board does not answer, refuses a request, or carries another design."""


class Port(Protocol):
    """What is needed of a ``serial.Serial``; reads end after the port's own timeout."""

    @property
    def in_waiting(self) -> int: ...
    def read(self, size: int = 1) -> bytes: ...
    def write(self, data: bytes) -> int | None: ...
    def close(self) -> None: ...


class Client:
    """Memory and registers of a board.

    Parameters
    ----------
    port : an open serial port with a read timeout longer than any request takes
    name : of the port, for messages

    Attributes
    ----------
    memory_bytes : size of the board's memory
    repeated : requests that had to be sent again so far

    Raises
    ------
    BoardError
        By every method: if the link is lost, or the board does not answer or refuses.
    """

    def __init__(self, port: Port, name: str) -> None:
        self._port, self._name = port, name
        self._sequence = 0
        self.repeated = 0
        hello = protocol.parse_hello(
            self._request(Opcode.HELLO, 0, 0, answer_bytes=protocol.HELLO_BYTES)
        )
        if hello["version"] != protocol.VERSION:
            raise BoardError(
                f"{name}: the board speaks version {hello['version']} of the protocol,"
                f" this is {protocol.VERSION}; build its bitstream again"
            )
        self.memory_bytes = hello["memory_bytes"]

    def close(self) -> None:
        """Close the port."""
        self._port.close()

    def reset(self) -> None:
        """Put the accelerator in the state after configuration; the memory stays."""
        self._request(Opcode.RESET, 0, 0)

    def read_memory(self, address: int, size: int) -> bytes:
        """Return ``size`` bytes."""
        data = bytearray()
        while len(data) < size:
            length = min(MAX_PAYLOAD, size - len(data))
            data += self._request(
                Opcode.READ_MEMORY, address + len(data), length, answer_bytes=length
            )
        return bytes(data)

    def write_memory(self, address: int, data: bytes | bytearray) -> None:
        """Write ``data``."""
        for start in range(0, len(data), MAX_PAYLOAD):
            part = bytes(data[start : start + MAX_PAYLOAD])
            self._request(Opcode.WRITE_MEMORY, address + start, len(part), part)

    def read_register(self, name: str) -> int:
        """Return the value of a register of :data:`twillcore.registers.REGISTERS`."""
        size = protocol.REGISTER_BYTES
        offset = REGISTERS[name].offset
        answer = self._request(Opcode.READ_REGISTER, offset, size, answer_bytes=size)
        return struct.unpack("<I", answer)[0]

    def write_register(self, name: str, value: int) -> None:
        """Write a register; what it starts is started once, however often the line fails."""
        data = struct.pack("<I", value)
        self._request(Opcode.WRITE_REGISTER, REGISTERS[name].offset, len(data), data)

    def _request(
        self, opcode: Opcode, address: int, length: int, payload: bytes = b"", answer_bytes: int = 0
    ) -> bytes:
        """Return the payload of the response, ``answer_bytes`` long."""
        self._sequence = (self._sequence + 1) % 256
        line = protocol.request(opcode, self._sequence, length, address, payload)
        heard = False
        for attempt in range(ATTEMPTS):
            self.repeated += attempt > 0
            try:
                self._port.write(line)
                response, received = self._receive()
            except OSError as error:  # pyserial's errors are OSErrors
                raise BoardError(f"{self._name}: the serial link was lost: {error}") from None
            heard |= received
            if response is None or response.status is Status.BAD_FRAME:
                continue
            if response.status is not Status.OK:
                raise BoardError(
                    f"{self._name}: {opcode.name} at {address:#x}:"
                    f" {STATUS_MEANINGS[response.status]}"
                )
            if len(response.payload) == answer_bytes:
                return response.payload
        if heard:
            raise BoardError(
                f"{self._name}: no undamaged answer to {opcode.name} in {ATTEMPTS} attempts:"
                " check the baud rate and the cable, and that the board carries this design"
            )
        raise BoardError(
            f"{self._name}: the board does not answer ({ATTEMPTS} attempts):"
            " check that it is powered, carries a Twillcore bitstream, and that no other program"
            " uses the port"
        )

    def _receive(self) -> tuple[Response | None, bool]:
        """Return the response to the last request, or None; and whether there was any byte."""
        line, count = bytearray(), 0
        while count < _MOST_BYTES:
            data = self._port.read(max(1, self._port.in_waiting))
            if not data:
                break
            count += len(data)
            for byte in data:
                if byte != protocol.END:
                    line.append(byte)
                    continue
                if not line:
                    continue  # between two frames
                found = protocol.parse_response(bytes(line))
                line.clear()
                if found is None or found.status is Status.BAD_FRAME:
                    return found, True
                if found.sequence == self._sequence:
                    return found, True
                # Else the late answer to a request that was sent twice.
        return None, count > 0
