"""The deterministic memory model's parameters, shared by the cycle model and the RTL harness."""

from dataclasses import dataclass

from twillcore.errors import TwillcoreError


@dataclass(frozen=True)
class Dram:
    """How the external memory behaves.

    Read addresses are always accepted while fewer than ``outstanding`` bursts wait. A burst
    accepted (arvalid & arready) in cycle t offers its first beat in cycle t + ``latency`` at the
    earliest, and beats follow at most every ``beat_cycles`` cycles, burst after burst in the order
    of acceptance: with e the cycle in which the previous beat (of any read burst) was taken, a beat
    is offered from cycle max(t + latency, e + beat_cycles) on. Writes: address and data are always
    accepted, data at most every ``beat_cycles`` cycles; the response comes ``latency`` cycles after
    the last beat of the burst was taken (and its address accepted). The channels do not disturb
    each other.
    """

    latency: int = 40
    beat_cycles: int = 1
    outstanding: int = 16

    def __post_init__(self) -> None:
        for name in ("latency", "beat_cycles", "outstanding"):
            if getattr(self, name) < 1:
                raise TwillcoreError(f"memory {name} must be at least 1, not {getattr(self, name)}")
