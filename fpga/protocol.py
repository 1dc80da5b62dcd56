"""The protocol between host and board, as data: hardware and driver both derive from it.

Bytes travel over a serial line in **frames**. A frame begins and ends with :data:`END`; inside it,
END and ESCAPE stand as two bytes (:data:`ESCAPES`), so that END always is a border: after any loss,
the next END starts afresh. A frame holds a header, a payload and the CRC-32 of both, all numbers
little-endian.

The host sends a **request** and waits for its **response**, one at a time. The board executes a
request only when all of it has arrived and its checksum is right; to anything else it answers
:attr:`Status.BAD_FRAME`. While it executes and answers, it does not listen. The host repeats a
request, with the same sequence number, after BAD_FRAME and when no response comes. Reads, RESET
and writes of memory may be executed twice; a write of a register that repeats the sequence number
of the write before it is answered but not executed again: no program is started twice.
"""

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

VERSION = 1
MAX_PAYLOAD = 1024  # bytes; the board keeps a whole request before it acts

END = 0xC0
ESCAPE = 0xDB
#: What follows ESCAPE, for each byte that cannot stand for itself.
ESCAPES = {END: 0xDC, ESCAPE: 0xDD}

#: CRC-32 of IEEE 802.3, which is zlib's: see :func:`checksum`.
CRC = {
    "crc_width": 32,
    "polynomial": 0x04C1_1DB7,
    "initial_crc": 0xFFFF_FFFF,
    "reflect_input": True,
    "reflect_output": True,
    "xor_output": 0xFFFF_FFFF,
}
CRC_BYTES = 4


class Opcode(IntEnum):
    """What a request asks for; ``length`` counts bytes of the payload, for reads the answer's."""

    HELLO = 1
    READ_MEMORY = 2
    WRITE_MEMORY = 3
    READ_REGISTER = 4
    WRITE_REGISTER = 5
    RESET = 6  # accelerator and bus as after configuration; the memory keeps its contents


class Status(IntEnum):
    """How a request ended."""

    OK = 0
    BAD_FRAME = 1
    BAD_REQUEST = 2
    OUT_OF_RANGE = 3
    BUS_ERROR = 4


STATUS_MEANINGS = {
    Status.OK: "done",
    Status.BAD_FRAME: "the request arrived damaged and was not executed",
    Status.BAD_REQUEST: "unknown opcode, or a length that it does not allow",
    Status.OUT_OF_RANGE: "an address beyond the end of the memory or the registers",
    Status.BUS_ERROR: "the accelerator refused the access to its register",
}
assert set(STATUS_MEANINGS) == set(Status)

REGISTER_BYTES = 4

#: Field to bytes, in order. Payload and checksum follow.
REQUEST = {"opcode": 1, "sequence": 1, "length": 2, "address": 4}
RESPONSE = {"status": 1, "sequence": 1, "length": 2}
#: Payload of the response to HELLO.
HELLO = {"version": 2, "max_payload": 2, "memory_bytes": 4}

REQUEST_BYTES = sum(REQUEST.values())
RESPONSE_BYTES = sum(RESPONSE.values())
HELLO_BYTES = sum(HELLO.values())
LONGEST_REQUEST = REQUEST_BYTES + MAX_PAYLOAD + CRC_BYTES

_FORMATS = {1: "B", 2: "H", 4: "I"}


@dataclass(frozen=True)
class Response:
    """A response whose checksum was right."""

    status: Status
    sequence: int
    payload: bytes


def checksum(data: bytes) -> int:
    """Return the CRC-32 of ``data``."""
    return zlib.crc32(data)


def frame(content: bytes) -> bytes:
    """Return the bytes on the line: checksum appended, escaped, between two END."""
    body = content + struct.pack("<I", checksum(content))
    line = bytearray([END])
    for byte in body:
        line += bytes([ESCAPE, ESCAPES[byte]]) if byte in ESCAPES else bytes([byte])
    line.append(END)
    return bytes(line)


def unframe(line: bytes) -> bytes | None:
    """Return the content of the bytes between two END, or None if they are damaged."""
    plain = {after: byte for byte, after in ESCAPES.items()}
    body, escaped = bytearray(), False
    for byte in line:
        if escaped:
            if byte not in plain:
                return None
            body.append(plain[byte])
            escaped = False
        elif byte == ESCAPE:
            escaped = True
        else:
            body.append(byte)
    content, found = bytes(body[:-CRC_BYTES]), bytes(body[-CRC_BYTES:])
    if escaped or len(found) < CRC_BYTES or found != struct.pack("<I", checksum(content)):
        return None
    return content


def request(
    opcode: Opcode, sequence: int, length: int, address: int, payload: bytes = b""
) -> bytes:
    """Return the bytes of a request on the line."""
    if not 0 <= length <= MAX_PAYLOAD or len(payload) not in (0, length):
        raise ValueError(f"length must be 0..{MAX_PAYLOAD} and that of the payload, not {length}")
    header = struct.pack(_format(REQUEST), opcode, sequence, length, address)
    return frame(header + payload)


def parse_response(line: bytes) -> Response | None:
    """Return the response between two END, or None if it is damaged."""
    content = unframe(line)
    if content is None or len(content) < RESPONSE_BYTES:
        return None
    status, sequence, length = struct.unpack_from(_format(RESPONSE), content)
    payload = content[RESPONSE_BYTES:]
    if len(payload) != length or status not in tuple(Status):
        return None
    return Response(Status(status), sequence, payload)


def parse_hello(payload: bytes) -> dict[str, int]:
    """Return the fields of :data:`HELLO`."""
    return dict(zip(HELLO, struct.unpack(_format(HELLO), payload), strict=True))


def _format(fields: dict[str, int]) -> str:
    return "<" + "".join(_FORMATS[size] for size in fields.values())
