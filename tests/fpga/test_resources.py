"""Counting what Yosys leaves, and what is said when it does not fit."""

import re

import pytest

from twillcore.config import load_config
from twillcore.errors import TwillcoreError
from twillcore.fpga.parts import PARTS, Part, find_part
from twillcore.fpga.resources import Report, _scope, count, resources, synthesise, usages
from twillcore.fpga.target import to_rtlil, without_brackets, without_collisions
from twillcore.hw.elementwise import Elementwise
from twillcore.hw.multiplier import Multiplier

TINY = load_config("tiny")


def report(modules, total, config=TINY, family="ecp5", part="lfe5u-25f"):
    return Report(config, family, PARTS[part], count(total), modules, "Yosys")


def test_cells_by_family():
    xilinx = count({"LUT6": 3, "LUT2": 1, "FDRE": 5, "DSP48E1": 2, "RAMB18E1": 3, "RAM32M": 1})
    assert (xilinx.luts, xilinx.flip_flops, xilinx.multipliers) == (8, 5, 2)
    assert (xilinx.memory_blocks, xilinx.memory_luts) == (1.5, 4)
    lattice = count({"LUT4": 3, "CCU2C": 2, "TRELLIS_FF": 4, "MULT18X18D": 1, "DP16KD": 2})
    assert (lattice.luts, lattice.flip_flops, lattice.multipliers) == (7, 4, 1)
    assert lattice.memory_blocks == 2


def test_estimate_replaces_the_count_of_logic_only():
    assert count({"LUT6": 30, "RAM32M": 2}, estimated_luts=20).luts == 28


def test_modules_include_their_submodules():
    total, modules = usages({"": {"LUT4": 1}, "gemm": {"LUT4": 2}, "gemm.drain": {"LUT4": 3}})
    assert total.luts == 6
    assert {name: usage.luts for name, usage in modules.items()} == {"gemm": 5, "gemm.drain": 3}


def test_a_cell_belongs_to_the_innermost_module_of_its_name():
    scopes = {"gemm", "gemm.array"}
    assert _scope("gemm.array.sum_0_LUT4_Z", scopes) == "gemm.array"
    assert _scope("gemm.phase.x_LUT4_Z", scopes) == "gemm"
    assert _scope("busy_LUT4_Z", scopes) == ""


def test_too_large_says_by_how_much_and_what_to_lower():
    modules = {
        "weight_memory": count({"DP16KD": 40}),
        "wide_memory": count({"DP16KD": 20}),
        "gemm": count({"LUT4": 9_000}),
        "gemm.array": count({"LUT4": 9_000}),
    }
    luts, blocks = report(modules, {"DP16KD": 60, "LUT4": 30_000}).over()
    assert luts == (
        "30,000 luts of 24,288 on lfe5u-25f: 5,712 too many;"
        " lower lanes, dsp_columns or accumulator_bits (gemm has 9,000 of them)"
    )
    assert blocks == (
        "60 memory blocks of 56 on lfe5u-25f: 4 too many;"
        " lower weight_depth (the weight memory has 40 of them)"
    )


def test_the_larger_array_is_what_to_lower():
    modules = {
        "gemm": count({"LUT6": 50_000, "DSP48E1": 250}),
        "gemm.dsp.array": count({"LUT6": 20_000, "DSP48E1": 230}),
        "gemm.lut.array": count({"LUT6": 30_000}),
    }
    cells = {"LUT6": 60_000, "DSP48E1": 250}
    luts, multipliers = report(modules, cells, TINY, "xc7", "xc7z020").over()
    assert luts == (
        "60,000 luts of 53,200 on xc7z020: 6,800 too many;"
        " lower lut_columns or lanes (gemm.lut.array has 30,000 of them)"
    )
    assert multipliers == (
        "250 multipliers of 220 on xc7z020: 30 too many;"
        " lower dsp_columns or lanes (gemm.dsp.array has 230 of them)"
    )


def test_small_luts_share_a_site():
    """As Yosys estimates it: LUT5 with LUT1, LUT4 and LUT3 with LUT2, LUT2 with each other."""
    assert count({"LUT6": 5, "LUT5": 4, "LUT4": 3, "LUT3": 2, "LUT2": 9, "LUT1": 4}).luts == 16
    # z7020 as synthesised by Yosys 0.70, and its estimated_num_lc
    cells = {"LUT6": 24_104, "LUT5": 10_499, "LUT4": 3_681, "LUT3": 5_281, "LUT2": 6_573}
    assert count(cells).luts == 43_565


def test_what_fits_says_nothing():
    fits = report({}, {"LUT4": 24_288})
    assert fits.over() == []
    assert fits.percent()["luts"] == 100
    assert fits.to_json()["fits"]


def test_multipliers_on_a_part_without_any():
    assert report({}, {"SB_MAC16": 1}, part="hx8k").percent()["multipliers"] == float("inf")


def test_memories_outside_of_memory_blocks_are_named():
    config = TINY.replace(operand_depth=0, norm_depth=0)
    modules = {
        "activation_memory": count({"DP16KD": 8}),
        "wide_memory": count({"TRELLIS_DPR16X4": 100}),
        "weight_memory": count({"TRELLIS_FF": 100}),
        "parameter_memory": count({"DP16KD": 1}),
    }
    assert report(modules, {}, config).misplaced() == [
        "the wide memory is in LUTs, not in memory blocks",
        "the weight memory is in flip-flops, not in memory blocks",
    ]


def test_two_multipliers_share_a_block():
    config = TINY.replace(family="xc7", lanes=5, dsp_columns=8, operand_depth=0, axi_data_bits=32)
    memories = {name: count({"RAMB36E1": 1}) for name in
                ("activation_memory", "wide_memory", "weight_memory", "parameter_memory",
                 "norm_memory")}  # fmt: skip

    def with_blocks(blocks):
        modules = memories | {"gemm.dsp.array": count({"DSP48E1": blocks})}
        return report(modules, {}, config, "xc7", "xc7z020").misplaced()

    assert with_blocks(24) == []
    assert with_blocks(40) == ["the array has 40 DSP48E1 for 40 multipliers, not 24"]


@pytest.mark.parametrize(
    ("name", "family", "message"),
    [
        (None, "virtex", "unknown family 'virtex'; known: xc7, xcup, ecp5, ice40"),
        ("lfe5u-99f", "ecp5", "unknown part 'lfe5u-99f'; known of family ecp5:"),
        ("xc7z020", "ecp5", "part xc7z020 is of family xc7, not ecp5"),
    ],
)
def test_unknown_parts(name, family, message):
    with pytest.raises(TwillcoreError) as caught:
        find_part(name, family)
    assert str(caught.value).startswith(message)


def test_parts_have_their_names_in_any_case():
    assert find_part("XC7Z020", "xc7") is PARTS["xc7z020"]
    assert isinstance(find_part(None, "ecp5"), Part)


def test_unknown_family_of_synthesis():
    with pytest.raises(TwillcoreError, match="unknown family 'pdp11'; known: xc7"):
        resources(TINY, "pdp11", PARTS["xc7z020"])


def test_old_data_need_not_be_read():
    def cell(mask, collision, enable):
        return (
            f"  cell $memrd_v2 $1\n    parameter \\TRANSPARENCY_MASK {mask}\n"
            f"    parameter \\COLLISION_X_MASK {collision}\n"
            f"    parameter \\CLK_ENABLE {enable}\n  end\n"
        )

    assert without_collisions(cell("1'0", "1'0", 1)) == cell("1'0", "1'1", 1)
    assert without_collisions(cell("2'00", "2'00", 1)) == cell("2'00", "2'11", 1)
    for kept in (cell("1'1", "1'0", 1), cell("1'0", "1'0", 0), cell("0'0", "0'0", 1)):
        assert without_collisions(kept) == kept


def test_no_wire_is_named_like_a_bit_of_another():
    """With \\a[3] beside \\a, ABC9 connects the wrong widths, and Yosys fails."""
    before = "wire width 8 \\a[3].b\n connect \\a[3].b { \\a [3] \\c[0][1] [7:0] }\n"
    after = "wire width 8 \\a.3.b\n connect \\a.3.b { \\a [3] \\c.0.1 [7:0] }\n"
    assert without_brackets(before) == after
    assert not re.search(r"\\\S*\[", to_rtlil(Elementwise(TINY), "elementwise", "ecp5"))


@pytest.mark.parametrize(("family", "block"), [("ecp5", "MULT18X18D"), ("xc7", "DSP48E1")])
def test_a_component_by_yosys(family, block, tmp_path, monkeypatch):
    monkeypatch.setenv("TWILLCORE_CACHE", str(tmp_path))
    stages = []
    text = to_rtlil(Multiplier(16, 16), "multiplier", family)
    total, _ = synthesise(text, "multiplier", family, stages.append)
    assert total.multipliers == total.cells[block] == 1
    assert stages
    stages.clear()
    again, _ = synthesise(text, "multiplier", family, stages.append)
    assert again == total
    assert not stages  # from the cache


@pytest.mark.slow
@pytest.mark.parametrize("family", ["ecp5", "xc7"])
def test_tiny_is_placed_where_it_belongs(family):
    config = TINY.replace(family=family)
    found = resources(config, family, find_part("lfe5u-85f" if family == "ecp5" else None, family))
    assert found.misplaced() == []
    assert found.over() == []
    assert found.modules["gemm.dsp.array"].multipliers == (16 if family == "xc7" else 32)
    assert sum(u.luts for name, u in found.modules.items() if "." not in name) > 10_000
