"""The control registers under Verilator, on an AXI4-Lite bus that stalls at random."""

import pytest

from twillcore.config import PRESETS
from twillcore.hw.registers import Registers
from twillcore.sim.cosim import cosimulate


@pytest.mark.verilator
def test_registers():
    cosimulate(Registers(), "twillcore.sim.benches.registers", PRESETS["tiny"])
