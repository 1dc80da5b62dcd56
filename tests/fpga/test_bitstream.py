"""``twillcore bitstream`` and ``--engine board``, without the minutes that a bitstream takes."""

import json
from pathlib import Path

import pytest

from tests.fpga.board_example import BOARD
from twillcore.cli import main
from twillcore.fpga import build as board_build
from twillcore.fpga.boards import find_board
from twillcore.fpga.driver import PORT_VARIABLE
from twillcore.fpga.pnr import Clock, PnrReport
from twillcore.sim.engine import get_engine


def leave(capsys, *arguments):
    """Return exit code or message, and what was printed."""
    with pytest.raises(SystemExit) as left:
        main([str(one) for one in arguments])
    return left.value.code, capsys.readouterr().out


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Stand for place and route; return a dictionary in which the clock can be set."""
    settings = {"mhz": 61.2}

    def place_and_route(text, top, part, package, speed, lpf, seed, *, mhz, progress):
        return PnrReport(
            top=top, part=part, package=package, speed=speed, seed=seed,
            clocks=(Clock("clk", settings["mhz"], mhz),),
            used={"luts": 41_820}, available={"luts": 83_640},
            seconds=1.0, tools="none", textcfg=tmp_path / "x", log=tmp_path / "y",
        )  # fmt: skip

    def pack(report, bitstream):
        bitstream.write_bytes(b"bits")
        return bitstream

    # a top that is built but never elaborated makes Amaranth warn whenever it is collected
    monkeypatch.setattr(board_build, "BoardTop", lambda *_: None)
    monkeypatch.setattr(board_build, "to_rtlil", lambda *_: "")
    monkeypatch.setattr(board_build, "place_and_route", place_and_route)
    monkeypatch.setattr(board_build, "pack", pack)
    return settings


def test_bitstream(quick, capsys, tmp_path):
    code, text = leave(capsys, "bitstream", "--board", "ulx3s", "-o", tmp_path / "out")
    assert code == 0
    assert "61.2 MHz, the board's is 25 MHz: met" in text
    assert "41,820 of  83,640   50.0 %" in text
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {
        "twillcore_ulx3s.bit", "twillcore_ulx3s.lpf", "config.toml", "report.json",
    }  # fmt: skip


def test_bitstream_that_is_too_slow(quick, capsys, tmp_path):
    quick["mhz"] = 24.9
    code, text = leave(capsys, "bitstream", "-o", tmp_path, "--json")
    assert code == 1
    report = json.loads(text)
    assert (report["met"], report["mhz"], report["clock_mhz"]) == (False, 24.9, 25.0)
    assert Path(report["bitstream"]).is_file()  # it may still run on a good day


def test_bad_input(capsys, tmp_path):
    code, _ = leave(capsys, "bitstream", "--board", "nexys", "-o", tmp_path)
    assert code == "error: no board 'nexys': there are ulx3s"
    code, _ = leave(capsys, "bitstream", "--config", "u256", "-o", tmp_path)
    assert code.startswith("error: configuration 'u256' is for family 'xcup'; board ulx3s carries")
    code, _ = leave(capsys, "bitstream", "--memory", 100, "-o", tmp_path)
    assert code == "error: memory must be a power of two and at least 4 KiB, not 100"
    code, _ = leave(capsys, "bitstream", "--memory", 1024, "-o", tmp_path)
    assert "--memory 1024 (KiB) needs 512; lfe5u-85f has 208: lower --memory" in code
    code, _ = leave(capsys, "bitstream", "--baud", 9_000_000, "-o", tmp_path)
    assert "cannot make 9000000 baud" in code


def test_board_is_an_engine(monkeypatch):
    monkeypatch.setenv(PORT_VARIABLE, "/dev/nowhere")
    assert get_engine("board").name == "board"
    assert find_board("ulx3s") is BOARD
