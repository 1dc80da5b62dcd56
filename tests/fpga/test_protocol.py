import random

import pytest

from twillcore.fpga import protocol
from twillcore.fpga.protocol import END, ESCAPE, Opcode, Status


@pytest.mark.parametrize("content", [b"", b"a", bytes(range(256)), bytes([END, ESCAPE] * 9)])
def test_frame_round_trip(content):
    line = protocol.frame(content)
    assert line[0] == line[-1] == END
    assert END not in line[1:-1]
    assert protocol.unframe(line[1:-1]) == content


def test_damage_is_seen():
    rng = random.Random(1)
    for _ in range(300):
        line = bytearray(protocol.frame(rng.randbytes(rng.randrange(60)))[1:-1])
        position = rng.randrange(len(line))
        if rng.random() < 0.5:
            del line[position]
        else:
            line[position] ^= 1 << rng.randrange(8)
        assert protocol.unframe(bytes(line)) is None


def test_response():
    content = bytes([Status.OK, 7, 2, 0, 0xAA, 0xBB])
    found = protocol.parse_response(protocol.frame(content)[1:-1])
    assert found == protocol.Response(Status.OK, 7, b"\xaa\xbb")
    for wrong in (content[:-1], content + b"x", bytes([99]) + content[1:], b"\0"):
        assert protocol.parse_response(protocol.frame(wrong)[1:-1]) is None


def test_request_lengths():
    with pytest.raises(ValueError, match=r"0\.\.1024 and that of the payload, not 3"):
        protocol.request(Opcode.WRITE_MEMORY, 0, 3, 0, b"four")
    with pytest.raises(ValueError, match="not 1025"):
        protocol.request(Opcode.READ_MEMORY, 0, 1025, 0)
