"""Reports partition the cycles; pictures are written."""

import dataclasses

import pytest
from matplotlib.axes import Axes

from tests.agree.graphs import random_graph, random_inputs
from tests.agree.maps import random_map_graph
from tests.agree.programs import TINY, Program, random_program
from twillcore.commands.report import RunReport
from twillcore.compiler.pipeline import compile_graph
from twillcore.errors import TwillcoreError
from twillcore.image import Layer
from twillcore.isa import Opcode
from twillcore.result import Result, Span
from twillcore.sim.cycle import CycleEngine
from twillcore.sim.engine import ENGINES, get_engine
from twillcore.sim.functional import FunctionalEngine
from twillcore.sim.profile import profile_picture
from twillcore.sim.report import layer_times, run_dict


@pytest.fixture(scope="module")
def run():
    graph = random_graph(5, ops=6)
    image = compile_graph(graph)
    return image, CycleEngine().run(image, random_inputs(graph, 5))


def test_layers_partition_the_cycles(run):
    image, result = run
    times = layer_times(image, result)
    assert len(times) == len(image.layers)
    assert sum(layer.cycles for layer in times) == result.cycles
    assert sum(layer.busy for layer in times) == result.counters["gemm"]["busy"]
    for layer in times:
        assert layer.busy + sum(layer.lost.values()) == layer.cycles
        assert min(layer.lost.values()) >= 0
        assert layer.utilisation(image.config.multipliers) <= 1
    assert sum(layer.bytes for layer in times) <= result.bytes_read + result.bytes_written


@pytest.mark.parametrize("seed", range(10))
def test_any_program_is_partitioned(seed):
    image = random_program(seed)
    result = CycleEngine().run(image, {})
    assert sum(layer.cycles for layer in layer_times(image, result)) == result.cycles


def test_stalls_and_busy_add_up_to_all_cycles(run):
    image, result = run
    data = run_dict(image, result)
    assert data["busy"] + sum(data["stalls"].values()) == data["cycles"] == result.cycles
    assert 0 < data["utilisation"] < 1
    assert data["macs"] == sum(layer["macs"] for layer in data["layers"])


def test_the_schedule_is_of_every_instruction(run):
    image, result = run
    found = run_dict(image, result)["schedule"]
    again = CycleEngine().run(image, random_inputs(random_graph(5, ops=6), 5))
    assert run_dict(image, again)["schedule"] == found
    for number in range(len(result.spans)):
        spans = list(result.spans)
        spans[number] = dataclasses.replace(spans[number], end=spans[number].end + 1)
        later = dataclasses.replace(result, spans=spans)
        assert run_dict(image, later)["schedule"] != found


def test_an_engine_without_time_has_no_cycles_to_report():
    image = random_program(2)
    result = FunctionalEngine().run(image, {})
    data = run_dict(image, result)
    assert (data["cycles"], data["utilisation"], data["layers"]) == (None, None, [])


def test_a_profile_is_a_png(run, tmp_path):
    image, result = run
    profile_picture(image, result, tmp_path / "profile.png")
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")


def test_profiles_that_cannot_be_are_refused(run, tmp_path):
    image, result = run
    with pytest.raises(TwillcoreError, match="cannot be written"):
        profile_picture(image, result, tmp_path / "no" / "folder.png")
    with pytest.raises(TwillcoreError, match="cannot be written"):
        profile_picture(image, result, tmp_path / "profile.nothing")
    timeless = FunctionalEngine().run(random_program(2), {})
    with pytest.raises(TwillcoreError, match="'functional' knows no time"):
        profile_picture(random_program(2), timeless, tmp_path / "profile.png")


def test_engines_by_name():
    assert [get_engine(name).name for name in ("functional", "cycle", "rtl")] == [
        "functional", "cycle", "rtl",
    ]  # fmt: skip
    with pytest.raises(TwillcoreError) as error:
        get_engine("fpga")
    assert str(error.value) == f"no engine 'fpga': there are {', '.join(ENGINES)}"


@pytest.fixture
def two_cores():
    """A run in which both cores work on two layers: made up, cycle by cycle."""
    config = TINY.replace(name="two", lut_columns=8, lut_weight_depth=64, tap_depth=16)
    program = Program(config)
    shape = {"row_tiles": 2, "column_tiles": 1, "blocks": 1}
    program.add(Opcode.WINDOW, taps=9, stride=1)
    program.add(Opcode.GEMM, **shape, beats=2, windowed=1)  # 36 beats
    program.add(Opcode.LUT_WINDOW, taps=4, stride=1)
    program.add(Opcode.LUT_GEMM, **shape, beats=4, windowed=1)  # 32
    program.add(Opcode.GEMM, **shape, beats=1, windowed=1, pool=1)  # 18
    program.add(Opcode.LUT_GEMM, **shape, beats=3)  # 6
    spans = [(0, 1), (1, 50), (0, 1), (1, 60), (70, 90), (60, 95)]
    layers = (
        Layer("a", macs=2000, useful_macs=800, lut_macs=500, lut_work=2000),
        Layer("b", macs=100, useful_macs=10, lut_macs=90, lut_work=270),
    )
    image = dataclasses.replace(
        program.image(), layers=layers, instruction_layers=(0, 0, 0, 0, 1, 1, 1)
    )
    idle = {"ending": 0, "empty": 0}
    result = Result(
        {}, "made up", 100, tuple(Span(n, *span) for n, span in enumerate(spans)),
        {"gemm": {"busy": 54, "blocked": 46, **idle}, "lut": {"busy": 38, "blocked": 62, **idle}},
        seconds=1.0,
    )  # fmt: skip
    return image, result


def test_cycles_of_two_cores(two_cores):
    image, result = two_cores
    a, b = layer_times(image, result)
    assert (a.busy, b.busy) == (36, 18)
    assert (a.lut_busy, b.lut_busy) == (32, 6)
    assert a.cycles + b.cycles == 100
    assert a.lost["lut"] == 10  # cycles 51 to 60
    assert b.lost["lut"] == 15  # 61 to 70, 91 to 95
    assert b.lost["drain"] == 2
    assert a.lut_utilisation(image.config.bit_products) == 2000 / (61 * 4 * 8 * 8)


@pytest.mark.parametrize("seed", range(12))
def test_beats_of_windows_are_those_that_the_cores_count(seed):
    graph = random_map_graph(seed)
    image = compile_graph(graph)
    result = CycleEngine().run(image, random_inputs(graph, seed))
    times = layer_times(image, result)
    assert sum(layer.cycles for layer in times) == result.cycles
    assert sum(layer.busy for layer in times) == result.counters["gemm"]["busy"]
    assert sum(layer.lut_busy for layer in times) == result.counters["lut"]["busy"]
    for layer in times:
        assert min(layer.lost.values()) >= 0
        assert layer.utilisation(image.config.multipliers) <= 1
        assert layer.lut_work <= layer.lut_busy * image.config.bit_products


def test_json_has_both_cores(two_cores):
    image, result = two_cores
    data = run_dict(image, result)
    assert data["utilisation"] == 810 / (100 * 32)
    assert data["lut"] == {
        "macs": 590,
        "bit_products": 2270,
        "utilisation": 2270 / (100 * 256),
        "busy": 38,
        "stalls": {"blocked": 62, "ending": 0, "empty": 0},
    }
    assert [layer["lut_work"] for layer in data["layers"]] == [2000, 270]
    assert "lut" not in run_dict(random_program(1), CycleEngine().run(random_program(1), {}))


def test_the_profile_has_a_row_per_engine(two_cores, tmp_path, monkeypatch):
    image, result = two_cores
    rows = []
    monkeypatch.setattr(
        Axes, "set_yticks", lambda axes, ticks, labels=(), **_: rows.append(list(labels))
    )
    profile_picture(image, result, tmp_path / "two.png")
    assert rows[0] == ["LOAD", "MOVE", "GEMM", "LUT", "VECTOR", "STORE", "no GEMM"]


def test_several_runs_are_added(two_cores, capsys):
    image, result = two_cores
    report = RunReport(image)
    report.add(result, True)
    report.add(result, True)
    data = report.as_dict()
    assert data["lut"]["busy"] == 76
    assert data["lut"]["utilisation"] == run_dict(image, result)["lut"]["utilisation"]
    report.show(as_json=False)
    shown = capsys.readouterr().out
    for words in ("DSP core", "LUT core", "25.3% of the multipliers, 8.9% of the LUT core"):
        assert words in shown
