import pytest

from twillcore.hw.registers import Registers
from twillcore.hw.run_control import RunControl
from twillcore.registers import REGISTERS
from twillcore.sim.interactive import interactive, pyverilator

pytestmark = pytest.mark.verilator


def test_a_register_is_written_and_read_by_hand():
    sim = interactive(Registers())
    assert isinstance(sim, pyverilator.PyVerilator)
    sim.io.bus__awaddr = sim.io.bus__araddr = REGISTERS["BASE"].offset
    sim.io.bus__wdata = 0x1234_5678
    sim.io.bus__wstrb = 0xF
    sim.io.bus__bready = sim.io.bus__rready = 1
    sim.io.bus__awvalid = sim.io.bus__wvalid = 1
    sim.clock.tick()
    sim.io.bus__awvalid = sim.io.bus__wvalid = 0
    assert sim.io.bus__bvalid == 1
    assert sim.io.base == 0x1234_5678
    sim.io.bus__arvalid = 1
    sim.clock.tick()
    sim.io.bus__arvalid = 0
    sim.clock.tick()
    assert sim.io.bus__rvalid == 1
    assert sim.io.bus__rdata == 0x1234_5678


def test_a_second_component_has_its_own_model():
    sim = interactive(RunControl())
    sim.io.start = 1
    sim.clock.tick()
    sim.io.start = 0
    assert (sim.io.running, sim.io.phase, sim.io.cycles) == (1, 0, 0)
    for _ in range(10):
        sim.clock.tick()
    assert (sim.io.running, sim.io.phase, sim.io.cycles) == (1, 2, 10)
