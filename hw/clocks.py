"""Parts of the machine that may each have a clock of its own, which stops while the part sleeps."""

from amaranth.hdl import DomainRenamer
from amaranth.lib import enum


class Part(enum.IntEnum):
    """A clock domain of a *gated* machine; bit ``part`` of ``awake`` and of the clocks is its own.

    A product has one clock, and all of this is absent from it. The simulator gates clocks since it
    does no work for a clock that stands still.
    """

    ISSUE = 0
    LOAD = 1
    STORE = 2
    GEMM = 3
    DRAIN = 4  # of GEMM
    VECTOR = 5
    MOVE = 6

    @property
    def domain(self) -> str:
        """Name of the clock domain."""
        return self.name.lower()


class GatedClocks:
    """The platform of a gated machine: to be given to Amaranth in the place of a platform."""


def clocked_by(part: Part, component, platform):
    """Return ``component``, with the clock of ``part`` for its own in a gated machine."""
    return DomainRenamer(part.domain)(component) if isinstance(platform, GatedClocks) else component


def awake_while(m, platform, awake, condition) -> None:
    """Drive ``awake`` in a gated machine; in others it does not exist."""
    if isinstance(platform, GatedClocks):
        m.d.comb += awake.eq(condition)


class Inputs(enum.IntEnum):
    """Inputs of a gated machine that pass registers with a clock of their own.

    So what depends on them is computed when they have changed, and not twice in every cycle. These
    clocks rise half a cycle after the others: a register is but a name for its input.
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
