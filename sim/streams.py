"""cocotb drivers for streams, and what every cocotb bench starts with."""

import os
import random
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.queue import Queue
from cocotb.triggers import RisingEdge

from twillcore.config import Config, load_config


def bench_config() -> Config:
    """Return the configuration that :func:`twillcore.sim.cosim.cosimulate` has built."""
    return load_config(os.environ["TWILLCORE_CONFIG"])


async def reset(dut: Any, **inputs: int) -> None:
    """Start the clock, drive ``inputs``, and reset; drivers start afterwards, on a quiet bus."""
    clock = Clock(dut.clk, 10, unit="ns")
    clock.start(start_high=False)
    for name, value in inputs.items():
        dut[name].value = value
    dut.rst.value = 1
    await clock.cycles(2)
    dut.rst.value = 0


class StreamSource:
    """Drive a stream from a queue. ``gap`` is the probability of an idle cycle before a payload.

    Amaranth makes ports ``{name}__payload``, ``{name}__valid`` and ``{name}__ready`` of a stream; a
    payload of several fields is packed by its layout.
    """

    def __init__(self, dut: Any, name: str, *, gap: float = 0.0, rng: random.Random) -> None:
        self.clk, self.gap, self.rng = dut.clk, gap, rng
        self.payload, self.valid, self.ready = (
            dut[f"{name}__{part}"] for part in ("payload", "valid", "ready")
        )
        self.payloads: Queue[int] = Queue()
        cocotb.start_soon(self._run())

    def put(self, payload: int) -> None:
        """Send ``payload`` after all before it."""
        self.payloads.put_nowait(payload)

    async def _run(self) -> None:
        while True:
            self.valid.value = 0
            payload = await self.payloads.get()
            while self.rng.random() < self.gap:
                await RisingEdge(self.clk)
            self.payload.value = payload
            self.valid.value = 1
            await RisingEdge(self.clk)
            while not self.ready.value:  # RisingEdge returns before the edge takes effect
                await RisingEdge(self.clk)
