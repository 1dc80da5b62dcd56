"""Place and route: reading reports, wrong arguments, and a small component for real."""

import json
from pathlib import Path

import pytest

from twillcore.config import load_config
from twillcore.errors import TwillcoreError
from twillcore.fpga.parts import PARTS
from twillcore.fpga.pnr import (
    HARNESS,
    PathStep,
    _check_size,
    out_of_context,
    pack,
    place_and_route,
    read_report,
)
from twillcore.hw.multiplier import Multiplier


def step(kind, start, end, delay):
    return {"type": kind, "delay": delay, "from": {"cell": start}, "to": {"cell": end}}


RAW = {
    "fmax": {"$glbnet$clk$TRELLIS_IO_IN": {"achieved": 98.5, "constraint": 100.0}},
    "critical_paths": [
        {
            "from": "posedge $glbnet$clk$TRELLIS_IO_IN",
            "to": "posedge $glbnet$clk$TRELLIS_IO_IN",
            "path": [
                step("clk-to-q", "core.gemm.array.chosen_0_TRELLIS_FF_Q_3",
                     "core.gemm.array.chosen_0_TRELLIS_FF_Q_3", 0.5),
                step("routing", "core.gemm.array.chosen_0_TRELLIS_FF_Q_3",
                     "core.gemm.array.sum_0_CCU2C_S0$CCU2_COMB0", 1.5),
                step("logic", "core.gemm.array.sum_0_CCU2C_S0$CCU2_COMB0",
                     "core.gemm.array.sum_0_CCU2C_S0$CCU2_COMB0", 0.45),
                step("routing", "core.gemm.array.sum_0_CCU2C_S0$CCU2_COMB0",
                     "core.gemm.array.sum_0_CCU2C_S0_1$CCU2_COMB1", 0.0),
                step("logic", "core.gemm.array.sum_0_CCU2C_S0_1$CCU2_COMB1",
                     "core.gemm.array.sum_0_CCU2C_S0_1$CCU2_COMB1", 0.07),
                step("setup", "core.gemm.array.sum_0_TRELLIS_FF_Q",
                     "core.gemm.array.sum_0_TRELLIS_FF_Q", 0.1),
            ],
        },
        {"from": "async", "to": "posedge $glbnet$clk$TRELLIS_IO_IN", "path": []},
    ],
    "utilization": {
        "TRELLIS_COMB": {"used": 10, "available": 24288},
        "DP16KD": {"used": 0, "available": 56},
        "ALU54B": {"used": 0, "available": 14},
    },
}  # fmt: skip
KNOWN = {
    "top": "top", "part": "lfe5u-25f", "package": "CABGA381", "speed": 6, "seed": 1, "seconds": 1.0,
    "tools": "", "textcfg": Path("top.config"), "log": Path("log"),
}  # fmt: skip


def test_report_in_our_names():
    report = read_report(RAW, **KNOWN)
    (clock,) = report.clocks
    assert (clock.name, clock.mhz, clock.met) == ("clk", 98.5, False)
    assert report.mhz == 98.5
    assert report.used == {"luts": 10, "memory_blocks": 0}
    assert clock.ends == ("gemm.array.chosen_0", "gemm.array.sum_0")
    assert clock.path == (
        PathStep("clk-to-q", "gemm.array.chosen_0", 0.5),
        PathStep("routing", "gemm.array.chosen_0 -> gemm.array.sum_0", 1.5),
        PathStep("logic", "gemm.array.sum_0", pytest.approx(0.52)),
        PathStep("setup", "gemm.array.sum_0", 0.1),
    )
    json.dumps(report.to_json())


def test_unknown_part_and_speed():
    with pytest.raises(
        TwillcoreError, match="no open place and route for part 'xc7z020'; there is"
    ):
        place_and_route("", "top", "xc7z020")
    with pytest.raises(TwillcoreError, match=r"speed grade must be one of \(6, 7, 8\), not 5"):
        place_and_route("", "top", speed=5)


def test_a_component_from_amaranth_to_bitstream(tmp_path, monkeypatch):
    monkeypatch.setenv("TWILLCORE_CACHE", str(tmp_path / "cache"))
    stages = []
    report = out_of_context(Multiplier(16, 16), "lfe5u-25f", "CABGA381", progress=stages.append)
    assert report.used["multipliers"] == 1
    assert report.mhz > 100
    assert any("Yosys" in stage for stage in stages)
    assert any("nextpnr" in stage for stage in stages)
    stages.clear()
    again = out_of_context(Multiplier(16, 16), "lfe5u-25f", "CABGA381", progress=stages.append)
    assert again == report
    assert len(stages) == 1  # elaboration; the rest is from the cache
    bitstream = pack(report, tmp_path / "out" / "multiplier.bit")
    assert bitstream.stat().st_size > 50_000


def test_what_does_not_fit_is_said_before_placement(tmp_path):
    cells = {f"core.weight_memory.m_{n}": {"type": "DP16KD"} for n in range(57)}
    cells["core.weight_memory"] = {"type": "$scopeinfo"}
    netlist = tmp_path / "netlist.json"
    netlist.write_text(json.dumps({"modules": {HARNESS: {"cells": cells}}}))
    with pytest.raises(TwillcoreError) as caught:
        _check_size(netlist, load_config("ecp5-small"), PARTS["lfe5u-25f"])
    assert str(caught.value) == (
        "ecp5-small does not fit: 57 memory blocks of 56 on lfe5u-25f: 1 too many;"
        " lower weight_depth (the weight memory has 57 of them)"
    )
    _check_size(netlist, load_config("ecp5-small"), PARTS["lfe5u-45f"])


def test_wrong_source_shows_what_yosys_says(tmp_path, monkeypatch):
    monkeypatch.setenv("TWILLCORE_CACHE", str(tmp_path))
    with pytest.raises(TwillcoreError, match=r"(?s)Yosys failed .*syntax error"):
        place_and_route("module top(; endmodule", "top")


def test_too_large_shows_what_nextpnr_says(tmp_path, monkeypatch):
    monkeypatch.setenv("TWILLCORE_CACHE", str(tmp_path))
    pins = ", ".join(f"output o{n}" for n in range(300))
    with pytest.raises(TwillcoreError, match=r"(?s)nextpnr-ecp5 failed .*ERROR"):
        place_and_route(f"module top({pins}); endmodule", "top", "lfe5u-25f")
