import pytest

from tests.fpga.board_example import BOARD, CONFIG
from twillcore.errors import TwillcoreError
from twillcore.fpga.boards import find_board
from twillcore.fpga.build import board_verilog, build
from twillcore.fpga.client import BoardError, Client
from twillcore.fpga.driver import PORT_VARIABLE, BoardEngine
from twillcore.fpga.top import LEDS


def test_unknown_board():
    with pytest.raises(TwillcoreError, match=r"^no board 'icebreaker': there are ulx3s$"):
        find_board("icebreaker")


def test_pins_are_those_of_the_board():
    lines = BOARD.lpf(len(LEDS)).splitlines()
    assert lines[0] == 'FREQUENCY PORT "clk" 25 MHZ;'
    for port, pin in {
        "clk": "G2",
        "rx": "M1",
        "tx": "L4",
        "led[0]": "B2",
        "keep_high": "L2",
    }.items():
        assert f'LOCATE COMP "{port}" SITE "{pin}";' in lines


def test_pll():
    pll = BOARD.pll  # the middle of the oscillator's range, 600 MHz
    assert (pll["CLKI_DIV"], pll["CLKFB_DIV"], pll["CLKOP_DIV"]) == (1, 1, 24)
    assert pll["CLKOP_CPHASE"] == 11


def test_baud_rates():
    assert BOARD.divisor(1_000_000) == 25
    assert BOARD.divisor(115_200) == 217
    with pytest.raises(TwillcoreError, match="a clock of 25 MHz cannot make 12000000 baud"):
        BOARD.divisor(12_000_000)


def test_configuration_of_another_family(tmp_path):
    with pytest.raises(TwillcoreError) as caught:
        build(BOARD, CONFIG.replace(family="xc7"), tmp_path)
    assert str(caught.value) == (
        "configuration 'ulx3s' is for family 'xc7'; board ulx3s carries an ecp5:"
        ' set family = "ecp5"'
    )


@pytest.mark.parametrize("size", [0, 3, 96])
def test_memory_sizes(size):
    with pytest.raises(TwillcoreError, match=f"a power of two and at least 4 KiB, not {size}"):
        board_verilog(BOARD, CONFIG, size)


def test_memory_that_the_part_does_not_have(tmp_path):
    with pytest.raises(TwillcoreError) as caught:
        build(BOARD, CONFIG, tmp_path, memory_kib=512)
    assert "memory blocks" in str(caught.value)
    assert "--memory" in str(caught.value)


def test_serial_port_that_is_not_there():
    with pytest.raises(BoardError, match=r"/dev/nowhere: the serial port cannot be opened"):
        BoardEngine("/dev/nowhere")._open()


def test_no_board_connected(monkeypatch):
    monkeypatch.delenv(PORT_VARIABLE, raising=False)
    monkeypatch.setattr("serial.tools.list_ports.comports", lambda: [])
    with pytest.raises(BoardError, match=f"no board is connected: .* or set {PORT_VARIABLE}"):
        BoardEngine()._open()


class Loopback:
    """A port whose answers are what was written, such as a wire from TX to RX."""

    def __init__(self):
        self.bytes = bytearray()

    @property
    def in_waiting(self):
        return len(self.bytes)

    def read(self, size=1):
        data, self.bytes = bytes(self.bytes[:size]), self.bytes[size:]
        return data

    def write(self, data):
        self.bytes += data

    def close(self):
        pass


def test_something_else_on_the_port():
    with pytest.raises(BoardError, match="no undamaged answer to HELLO"):
        Client(Loopback(), "COM3")
