"""Clocks of their own for parts of the machine, which stop while a part sleeps: for simulation.

A product has one clock. A *gated* machine is the same elaboration for the platform
:class:`GatedClocks`: every :class:`Part` is in a clock domain of its own, and says by ``awake`` in
which cycles its clock must rise. A simulator does no work for a clock that stands still, and most
parts are idle most of the time.

A part may sleep in a cycle in which nothing of its state would change, or nothing that matters: it
may leave out registers that follow an input and are looked at only together with a valid bit.
``awake`` may depend on inputs of the cycle. tests/sim/test_rtl_machine.py compares gated machines
with the Verilog of the product, cycle by cycle.
"""

from amaranth.hdl import DomainRenamer
from amaranth.lib import enum


class Part(enum.IntEnum):
    """A clock domain of a gated machine, and its bit in ``Accelerator.awake``."""

    ISSUE = 0
    LOAD = 1
    STORE = 2
    GEMM = 3
    DRAIN = 4  # of GEMM
    VECTOR = 5
    MOVE = 6
    LUT = 7
    GATHER = 8  # of GEMM

    @property
    def domain(self) -> str:
        """Name of the clock domain."""
        return self.name.lower()


class GatedClocks:
    """What a gated machine is elaborated for: stands in the place of an Amaranth platform."""


def clocked_by(part: Part, component, platform, otherwise="sync"):
    """Return ``component`` in the domain of ``part`` in a gated machine, else in ``otherwise``."""
    domain = part.domain if isinstance(platform, GatedClocks) else otherwise
    return DomainRenamer(domain)(component)


def awake_while(m, platform, awake, condition) -> None:
    """Drive ``awake`` in a gated machine; in others it does not exist."""
    if isinstance(platform, GatedClocks):
        m.d.comb += awake.eq(condition)


class Inputs(enum.IntEnum):
    """Inputs of a gated machine, in groups that pass registers with a clock each.

    So what depends on them is computed when they have changed, and not in every evaluation. These
    clocks rise half a cycle after the others, before anything looks at what the registers hold: a
    register is but a name for its input, and costs no cycle.
    """

    READ = 0
    WRITE = 1
    HOST = 2

    @property
    def domain(self) -> str:
        """Name of the clock domain."""
        return f"{self.name.lower()}_inputs"

    @classmethod
    def of(cls, port: str) -> "Inputs":
        """Return the group of an input of the top."""
        bus, _, wire = port.rpartition("_")
        if bus != "m_axi":
            return cls.HOST
        return cls.READ if wire.startswith(("ar", "r")) else cls.WRITE
