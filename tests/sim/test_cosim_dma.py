"""LOAD and STORE under Verilator, on an AXI4 memory that stalls and fails at random."""

import pytest

from twillcore.config import PRESETS
from twillcore.hw.load import LoadEngine
from twillcore.hw.store import StoreEngine
from twillcore.sim.cosim import cosimulate

TINY = PRESETS["tiny"]
NARROW = TINY.replace(name="narrow", axi_data_bits=32, lanes=2)
#: A row of weights is one and a half beats, one of bit-planes half a beat.
PADDED = TINY.replace(
    name="padded", axi_data_bits=128, dsp_columns=24, lut_columns=8, lut_weight_depth=64,
    tap_depth=64, operand_depth=0,
)  # fmt: skip


@pytest.mark.verilator
@pytest.mark.parametrize(
    ("engine", "config"),
    [(LoadEngine, TINY), (LoadEngine, NARROW), (LoadEngine, PADDED), (StoreEngine, TINY)],
)
def test_engine(engine, config):
    bench = engine.__name__.removesuffix("Engine").lower()
    cosimulate(engine(config), f"twillcore.sim.benches.{bench}", config)
