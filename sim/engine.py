"""What executes programs, by name."""

from collections.abc import Callable, Mapping
from typing import Protocol

from numpy.typing import NDArray

from twillcore.errors import TwillcoreError
from twillcore.image import Image
from twillcore.result import Result

ENGINES = ("functional", "cycle", "rtl", "board")


class Engine(Protocol):
    """Executes the instructions of a program.

    Engines that know time take ``dram``, how the memory behaves, and ``progress``, which is called
    with the cycles so far; ``rtl`` can also write waveforms. ``board`` is hardware on a serial
    port; it has a memory of its own, so it takes no ``dram``. All of them are keyword arguments
    with defaults.
    """

    name: str

    def run(self, image: Image, inputs: Mapping[str, NDArray]) -> Result:
        """Return outputs and, if the engine knows time, cycles.

        Raises
        ------
        ProgramError
            If the inputs do not fit the program.
        MachineError
            If the program stops the machine.
        """
        ...


def get_engine(name: str) -> Engine:
    """Return a new engine.

    Raises
    ------
    TwillcoreError
        If there is none of that name.
    """
    if name not in _MAKERS:
        raise TwillcoreError(f"no engine {name!r}: there are {', '.join(ENGINES)}")
    return _MAKERS[name]()


# Imported when they are needed: the cycle model and the RTL bring Amaranth with them.


def _functional() -> Engine:
    from twillcore.sim.functional import FunctionalEngine

    return FunctionalEngine()


def _cycle() -> Engine:
    from twillcore.sim.cycle import CycleEngine

    return CycleEngine()


def _rtl() -> Engine:
    from twillcore.sim.rtl import RtlEngine

    return RtlEngine()


def _board() -> Engine:
    from twillcore.fpga.driver import BoardEngine

    return BoardEngine()


_MAKERS: Mapping[str, Callable[[], Engine]] = {
    "functional": _functional,
    "cycle": _cycle,
    "rtl": _rtl,
    "board": _board,
}
assert tuple(_MAKERS) == ENGINES
