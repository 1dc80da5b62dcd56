"""What every engine returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from numpy.typing import NDArray


@dataclass(frozen=True)
class Span:
    """When one instruction ran.

    ``start`` is the cycle in which its engine accepted it (all tokens taken), ``end`` the cycle in
    which it ended (its tokens are given); cycle 0 is the first after the start command.
    """

    index: int
    start: int
    end: int


@dataclass(frozen=True)
class Result:
    """Outputs and, for engines that know time, cycles.

    Attributes
    ----------
    outputs : integer tensors by name, each (batch, rows, channels)
    engine : "reference", "functional", "cycle" or "rtl"
    cycles : from the start command to the done flag; None if the engine knows no time
    spans : one per instruction but HALT, in program order
    counters : for every hardware engine, cause to cycles; each engine's sum is ``cycles``
    bytes_read, bytes_written : over the memory port
    seconds : wall-clock time of the run
    """

    outputs: Mapping[str, NDArray]
    engine: str
    cycles: int | None = None
    spans: tuple[Span, ...] = ()
    counters: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    bytes_read: int = 0
    bytes_written: int = 0
    seconds: float = 0.0
