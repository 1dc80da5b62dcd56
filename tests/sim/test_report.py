"""Reports partition the cycles; pictures are written."""

import pytest

from tests.agree.graphs import random_graph, random_inputs
from tests.agree.programs import random_program
from twillcore.compiler.pipeline import compile_graph
from twillcore.errors import TwillcoreError
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
