"""Any component as a :class:`pyverilator.PyVerilator` object: poke inputs, tick, look at outputs.

    >>> sim = interactive(Registers())
    >>> sim.io.bus__araddr = 0x20
    >>> sim.clock.tick()

PyVerilator 0.7.0 is kept alive by two crutches: its waveform viewer is not imported, since
``tclwrapper`` uses a call of tkinter that is gone, and it does not build the model itself, since it
knows the headers of Verilator 4 only. It is for looking at a component by hand; programs run on
:mod:`twillcore.sim.rtl`.
"""

import re
import sys
import types
from collections.abc import Callable

from amaranth.back import verilog
from amaranth.lib.wiring import Component

from twillcore.sim.verilated import shared_library

sys.modules.setdefault("tclwrapper", types.ModuleType("tclwrapper"))
import pyverilator  # noqa: E402  needs the line above
from pyverilator.verilatorcpp import template_cpp  # noqa: E402

_PORT = re.compile(r"^  (input|output) (?:signed )?(?:\[(\d+):0\] )?(\S+);$", re.MULTILINE)


def interactive(
    component: Component, *, message: Callable[[str], None] | None = None
) -> pyverilator.PyVerilator:
    """Return a handle on ``component``, whose clock and reset are ``clk`` and ``rst``.

    Every write of an input settles the logic; ``sim.clock.tick()`` is a cycle. Ports have their
    Amaranth names, with ``__`` between levels. Components without registers have no clock.

    Raises
    ------
    TwillcoreError
        If the model cannot be built.
    """
    module = type(component).__name__.lower()
    text = verilog.convert(component, name=module, emit_src=False, strip_internal_attrs=True)
    inputs, outputs = _ports(text, module)
    library = shared_library(
        module,
        text,
        template_cpp(module, inputs, outputs, [], '"null"'),
        name=type(component).__name__,
        flags=("--trace",),
        optimise="-O1",
        compiler_flags="-DVL_USER_FINISH",  # the wrapper has its own vl_finish
        message=message,
    )
    return pyverilator.PyVerilator(str(library))


def _ports(text: str, module: str) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Return names (as Verilator writes them in C++) and widths of inputs and outputs."""
    body = text[text.index(f"\nmodule {module}(") :]
    body = body[: body.index("\nendmodule")]
    ports: dict[str, list[tuple[str, int]]] = {"input": [], "output": []}
    for direction, high, name in _PORT.findall(body):
        ports[direction].append((name.replace("__", "___05F"), int(high or 0) + 1))
    return ports["input"], ports["output"]
