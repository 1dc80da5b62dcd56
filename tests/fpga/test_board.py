"""The whole board design under Verilator, serial pins included, driven by the driver."""

import random
from dataclasses import replace

import numpy as np
import pytest

from tests.fpga.board_example import BOARD, CONFIG, MEMORY_KIB, example
from twillcore.fpga.client import BoardError
from twillcore.fpga.driver import BoardEngine
from twillcore.fpga.simulation.board import SimulatedSerial
from twillcore.fpga.top import LEDS
from twillcore.isa import Cause
from twillcore.sim.machine_error import MachineError
from twillcore.sim.rtl import RtlEngine

pytestmark = pytest.mark.verilator


class Noise:
    """Drop and change bytes, each with a probability."""

    def __init__(self, seed: int, drop: float = 0.0, change: float = 0.0) -> None:
        self.rng, self.drop, self.change = random.Random(seed), drop, change
        self.count = 0

    def __call__(self, data: bytes) -> bytes:
        out = bytearray()
        for byte in data:
            if self.rng.random() < self.drop:
                self.count += 1
                continue
            if self.rng.random() < self.change:
                self.count += 1
                byte ^= 1 << self.rng.randrange(8)
            out.append(byte)
        return bytes(out)


@pytest.fixture
def plug():
    """Return a function that plugs in a board."""
    ports = []

    def connect(**options):
        ports.append(SimulatedSerial(BOARD, CONFIG, MEMORY_KIB, **options))
        return ports[-1]

    yield connect
    for port in ports:
        port.close()


def leds(port):
    return {name for number, name in enumerate(LEDS) if port.leds >> number & 1} - {"alive"}


def same(result, expected):
    assert result.outputs.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(result.outputs[name], values)


def test_board_computes_what_the_reference_does(plug):
    image, inputs, expected = example()
    port = plug()
    assert leds(port) == {"idle"}
    result = BoardEngine(port).run(image, inputs)
    same(result, expected)
    assert result.engine == "board"
    assert port.framing_errors == 0
    assert leds(port) == {"idle", "done"}
    for counters in result.counters.values():
        assert sum(counters.values()) == result.cycles


def test_counters_are_those_of_the_rtl(plug):
    """Only the memory differs, so what does not wait for it takes the same cycles."""
    image, inputs, _ = example()
    board = BoardEngine(plug()).run(image, inputs)
    rtl = RtlEngine().run(image, inputs)
    assert board.counters.keys() == rtl.counters.keys()
    assert board.counters["gemm"]["busy"] == rtl.counters["gemm"]["busy"]
    assert board.bytes_written == rtl.bytes_written


def test_one_board_runs_again_and_again(plug):
    image, inputs, expected = example()
    port = plug()
    with BoardEngine(port) as engine:
        for _ in range(3):
            same(engine.run(image, inputs), expected)
        changed = {name: -np.maximum(value, -127) for name, value in inputs.items()}
        other = engine.run(image, changed).outputs["y"]
    assert (other != expected["y"]).any()


@pytest.mark.parametrize("drift", [-0.03, 0.03])
def test_clocks_of_both_ends_may_differ(plug, drift):
    image, inputs, expected = example()
    port = plug(drift=drift)
    same(BoardEngine(port).run(image, inputs), expected)
    assert port.framing_errors == 0


@pytest.mark.parametrize("seed", range(4))
def test_dropped_and_changed_bytes_in_both_directions(plug, seed):
    image, inputs, expected = example()
    there, back = (Noise(2 * seed + way, drop=2e-4, change=2e-4) for way in (0, 1))
    engine = BoardEngine(plug(to_board=there, from_board=back))
    same(engine.run(image, inputs), expected)
    assert there.count + back.count  # or the test tests nothing
    assert engine.repeated


def test_a_broken_line_in_the_middle_of_a_frame(plug):
    """The line to the board is held low for a while: no byte of it is believed."""
    image, inputs, expected = example()
    port = plug()
    engine = BoardEngine(port)
    same(engine.run(image, inputs), expected)
    port.write(b"\xc0\x03\x01")  # a write of memory begins ...
    port.wait(300)
    port.wait(3000, broken=True)
    same(engine.run(image, inputs), expected)


def test_machine_error_comes_through(plug):
    image, inputs, expected = example()
    damaged = bytearray(image.memory)
    damaged[image.program_address] |= 0xFF  # an opcode that is none
    port = plug()
    engine = BoardEngine(port)
    with pytest.raises(MachineError, match="unknown opcode") as caught:
        engine.run(replace(image, memory=bytes(damaged)), inputs)
    assert caught.value.cause is Cause.ILLEGAL_INSTRUCTION
    assert caught.value.index == 0
    assert leds(port) == {"idle", "error"}
    same(engine.run(image, inputs), expected)  # and the board is usable at once


def test_memory_beyond_the_boards_is_a_machine_error(plug):
    """The block memory answers what is outside it with SLVERR, and the machine stops."""
    image, inputs, expected = example()
    beyond = replace(image, program_address=1 << 20)
    port = plug()
    engine = BoardEngine(port)
    with pytest.raises(MachineError, match="the memory answered a read with an error"):
        engine.run(beyond, inputs)
    same(engine.run(image, inputs), expected)


def test_wrong_bitstream(plug):
    image, inputs, _ = example()
    other = replace(image, config=image.config.replace(queue_depth=8))
    with pytest.raises(BoardError) as caught:
        BoardEngine(plug()).run(other, inputs)
    assert str(caught.value) == (
        f"the board carries configuration {CONFIG.hash}; the program was compiled for 'ulx3s'"
        f" ({other.config.hash}): load that bitstream, or compile again"
    )


def test_program_larger_than_the_boards_memory(plug):
    image, inputs, _ = example()
    with pytest.raises(BoardError) as caught:
        BoardEngine(plug()).run(replace(image, memory_bytes=40_000), inputs)
    assert str(caught.value) == "the program needs 40,000 bytes of memory; the board has 32,768"


def test_link_lost_in_the_middle(plug):
    image, inputs, _ = example()
    port = plug()
    engine = BoardEngine(port)
    left = [3]

    def unplug(data):
        left[0] -= 1
        if left[0] < 0:
            raise OSError("device reports readiness to read but returned no data")
        return data

    port.to_board = unplug
    with pytest.raises(BoardError, match="the board: the serial link was lost: device reports"):
        engine.run(image, inputs)


def test_silent_board(plug):
    image, inputs, _ = example()
    port = plug(from_board=lambda data: b"")
    with pytest.raises(BoardError, match=r"the board does not answer \(8 attempts\): check that"):
        BoardEngine(port).run(image, inputs)


def test_board_that_talks_nonsense(plug):
    image, inputs, _ = example()
    port = plug(from_board=lambda data: bytes(byte ^ 0x10 for byte in data))
    with pytest.raises(BoardError, match="no undamaged answer to HELLO in 8 attempts"):
        BoardEngine(port).run(image, inputs)
