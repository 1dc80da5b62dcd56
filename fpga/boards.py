"""Boards by name: part, pins and clock, from ``amaranth-boards`` as far as it knows them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from twillcore.config import Config, load_config
from twillcore.errors import TwillcoreError

#: Settings of an ECP5 PLL that are the same at every frequency.
_PLL = {
    "PLLRST_ENA": "DISABLED",
    "INTFB_WAKE": "DISABLED",
    "STDBY_ENABLE": "DISABLED",
    "DPHASE_SOURCE": "DISABLED",
    "OUTDIVIDER_MUXA": "DIVA",
    "OUTDIVIDER_MUXB": "DIVB",
    "OUTDIVIDER_MUXC": "DIVC",
    "OUTDIVIDER_MUXD": "DIVD",
    "CLKOP_ENABLE": "ENABLED",
    "CLKOP_FPHASE": 0,
    "FEEDBK_PATH": "CLKOP",
}
_VCO_MHZ = (400, 800)


@dataclass(frozen=True)
class Board:
    """A board with an ECP5, a crystal, a USB serial bridge and LEDs.

    Attributes
    ----------
    platform : module and class of ``amaranth-boards``
    part, package, speed : as place and route names them
    crystal, serial, led : resources of the platform
    keep_high : resource and pin that must be high, or ()
    crystal_mhz, clock_mhz : what comes in, and what the design runs at
    usb_id : vendor and product of the serial bridge
    """

    name: str
    platform: tuple[str, str]
    part: str
    package: str
    speed: int
    crystal: str
    crystal_mhz: float
    clock_mhz: float
    serial: str = "uart"
    led: str = "led"
    keep_high: tuple[str, str] | tuple[()] = ()
    usb_id: tuple[int, int] = (0x0403, 0x6015)
    baud: int = 1_000_000

    @property
    def pll(self) -> dict[str, object]:
        """Parameters of the EHXPLLL that makes ``clock_mhz`` of ``crystal_mhz``.

        Raises
        ------
        TwillcoreError
            If there are none.
        """
        for divide in range(1, 8):
            for multiply in range(1, 80):
                if abs(self.crystal_mhz * multiply / divide - self.clock_mhz) > 1e-6:
                    continue
                for output in range(1, 128):
                    if _VCO_MHZ[0] <= self.clock_mhz * output <= _VCO_MHZ[1] and (
                        self.clock_mhz * (output + 1) > 600  # the middle of the range
                    ):
                        return _PLL | {
                            "CLKI_DIV": divide,
                            "CLKFB_DIV": multiply,
                            "CLKOP_DIV": output,
                            "CLKOP_CPHASE": output // 2 - 1 if output > 1 else 0,
                        }
        raise TwillcoreError(
            f"{self.name}: no PLL setting makes {self.clock_mhz:g} MHz of {self.crystal_mhz:g} MHz"
        )

    def divisor(self, baud: int) -> int:
        """Return the clock cycles per bit of the serial line.

        Raises
        ------
        TwillcoreError
            If the clock cannot make that rate, to 2 %.
        """
        divisor = round(self.clock_mhz * 1e6 / baud)
        if divisor < 8 or abs(divisor * baud / (self.clock_mhz * 1e6) - 1) > 0.02:
            raise TwillcoreError(
                f"{self.name}: a clock of {self.clock_mhz:g} MHz cannot make {baud} baud:"
                " it needs 8 clock cycles per bit, and a whole number of them to 2 %"
            )
        return divisor

    def lpf(self, leds: int) -> str:
        """Return the pin constraints of :class:`twillcore.fpga.top.BoardTop` with ``leds`` LEDs.

        Raises
        ------
        TwillcoreError
            If ``amaranth-boards`` is missing.
        """
        lines = [f'FREQUENCY PORT "clk" {self.crystal_mhz:g} MHZ;']
        for port, pin, attributes in self._pins(leds):
            lines.append(f'LOCATE COMP "{port}" SITE "{pin}";')
            settings = " ".join(f"{name}={value}" for name, value in attributes.items())
            lines.append(f'IOBUF PORT "{port}" {settings};')
        return "\n".join(lines) + "\n"

    def _pins(self, leds: int) -> Iterator[tuple[str, str, Mapping[str, str]]]:
        """Yield port, pin and attributes."""
        module, name = self.platform
        try:
            platform = getattr(import_module(module), name)
        except ImportError:
            raise TwillcoreError(
                "amaranth-boards is missing; install it with: pip install 'twillcore[board]'"
            ) from None
        resources = {(one.name, one.number): one for one in platform.resources}

        def pin(resource, number=0, part=None):
            found = resources[resource, number]
            pins, attributes = found.ios[0], dict(found.attrs)
            if part is not None:
                sub = next(io for io in found.ios if io.name == part)
                pins, attributes = sub.ios[0], attributes | dict(sub.attrs)
            return pins.names[0], attributes

        yield "clk", *pin(self.crystal)
        yield "rx", *pin(self.serial, part="rx")
        yield "tx", *pin(self.serial, part="tx")
        for number in range(leds):
            yield f"led[{number}]", *pin(self.led, number)
        if self.keep_high:
            resource, part = self.keep_high
            yield "keep_high", *pin(resource, part=part)


BOARDS = {
    board.name: board
    for board in (
        Board(
            name="ulx3s",
            platform=("amaranth_boards.ulx3s", "ULX3S_85F_Platform"),
            part="lfe5u-85f",
            package="CABGA381",
            speed=6,
            crystal="clk25",
            crystal_mhz=25.0,
            clock_mhz=25.0,  # aimed at 50, the design was placed at 40
            # GPIO0 of the ESP32, or it may pull the board into its own bootloader.
            keep_high=("esp32", "gpio0"),
        ),
    )
}


def board_config(board: Board, chosen: "str | Path | Config | None" = None) -> Config:
    """Return a configuration, or the board's own one.

    Raises
    ------
    ConfigError
        If there is no such configuration.
    """
    if chosen is not None:
        return load_config(chosen)
    return load_config("ecp5-small").replace(name=board.name, clock_mhz=board.clock_mhz)


def find_board(name: str) -> Board:
    """Return a board.

    Raises
    ------
    TwillcoreError
        If there is none of that name.
    """
    if name not in BOARDS:
        raise TwillcoreError(f"no board {name!r}: there are {', '.join(BOARDS)}")
    return BOARDS[name]
