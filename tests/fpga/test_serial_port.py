"""The driver with pyserial and a real serial line of the system: a pseudo terminal to the board."""

import os
import select
import threading
import tty

import numpy as np
import pytest

from tests.fpga.board_example import BOARD, CONFIG, MEMORY_KIB, example
from twillcore.fpga.client import BoardError
from twillcore.fpga.driver import PORT_VARIABLE, BoardEngine
from twillcore.fpga.simulation.board import SimulatedSerial

serial = pytest.importorskip("serial")
pytestmark = pytest.mark.verilator


class Cable:
    """A pseudo terminal with a simulated board at its far end, in a thread of its own."""

    def __init__(self):
        self.board = SimulatedSerial(BOARD, CONFIG, MEMORY_KIB)
        self.far, self._near = os.openpty()
        tty.setraw(self._near)
        self.name = os.ttyname(self._near)
        self.requests = 0  # reads of the far end: the host did speak over the terminal
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()

    def _carry(self):
        while not self._stop.is_set():
            if select.select([self.far], [], [], 0.02)[0]:
                self.requests += 1
                self.board.write(os.read(self.far, 4096))
            while answer := self.board.read(4096):
                os.write(self.far, answer)

    def pull(self):
        """Take the board away, as a USB cable that is pulled takes its device away."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            self.board.close()
            for end in (self._near, self.far):
                os.close(end)


@pytest.fixture
def cable():
    cable = Cable()
    yield cable
    cable.pull()


def check(result, expected):
    assert result.engine == "board"
    for name, values in expected.items():
        np.testing.assert_array_equal(result.outputs[name], values)


def test_programs_run_over_a_serial_port_of_the_system(cable):
    image, inputs, expected = example()
    with BoardEngine(cable.name) as engine:
        for _ in range(2):
            check(engine.run(image, inputs), expected)
    assert cable.requests
    assert cable.board.framing_errors == 0


def test_the_port_is_found_in_the_environment(cable, monkeypatch):
    image, inputs, expected = example()
    monkeypatch.setenv(PORT_VARIABLE, cable.name)
    with BoardEngine() as engine:
        check(engine.run(image, inputs), expected)


def test_bytes_that_wait_from_before_are_no_answer(cable):
    """What another program left in the line is dropped, or does not pass for a frame."""
    image, inputs, expected = example()
    os.write(cable.far, b"\xc0boot loader: ready\xc0")
    with BoardEngine(cable.name) as engine:
        check(engine.run(image, inputs), expected)


def test_a_pulled_cable_is_a_clear_error(cable):
    image, inputs, expected = example()
    with BoardEngine(cable.name) as engine:
        check(engine.run(image, inputs), expected)
        cable.pull()
        with pytest.raises(BoardError, match=f"{cable.name}: the serial link was lost: "):
            engine.run(image, inputs)


def test_a_port_that_is_not_there_is_named(tmp_path):
    image, inputs, _ = example()
    name = str(tmp_path / "ttyUSB9")
    with pytest.raises(BoardError, match=f"{name}: the serial port cannot be opened: "):
        BoardEngine(name).run(image, inputs)
