"""From rows of the activation memory to the words of windows: a path for one core or for both."""

import itertools

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from twillcore.config import Config
from twillcore.hw.clocks import awake_while
from twillcore.hw.ports import gather_port, window_port


class Gather(wiring.Component):
    """Read two neighbouring words at a time, rotate them, and put padding in.

    A read per cycle, of one core or the other: who asks makes sure that two never do so in the same
    cycle. ``data`` stands :data:`LATENCY` cycles after ``enable``, on the ports of all cores,
    until that of the next read does. In cycles from ``enable`` on: 1 data of the memory, 2 and 3
    rotated, 4 padded.

    With ``strided`` every second lane from 0 on counts, and both halves of ``data`` are the same.
    A lane that is not ``inside`` or whose word the memory does not have is padding.

    Parameters
    ----------
    config : Config
        With windows (``tap_depth`` > 0).
    cores : tuple of "dsp" and "lut"
        Whom it serves.

    Members
    -------
    dsp, lut : In(window_port(config))
        What the cores ask for; of those in ``cores`` only.
    memory : Out(gather_port(config))
    """

    LATENCY = 4

    def __init__(self, config: Config, cores: tuple[str, ...] = ("dsp",)):
        self._config, self._cores = config, cores
        super().__init__(
            {core: In(window_port(config)) for core in cores} | {"memory": Out(gather_port(config))}
        )
        self.awake = Signal()  # of gated machines: twillcore.hw.clocks

    def elaborate(self, platform):
        m = Module()
        config = self._config
        lanes = range(config.lanes)
        cores = [getattr(self, core) for core in self._cores]
        ask = {
            name: getattr(cores[0], name)
            if len(cores) == 1
            else Mux(cores[0].enable, *(getattr(core, name) for core in cores))
            for name in ("address", "second", "uses_second", "rotate", "strided", "low", "inside")
        }
        valid = [Signal(name=f"valid_{n}") for n in range(self.LATENCY)]
        m.d.comb += [
            valid[0].eq(Cat(core.enable for core in cores).any()),
            self.memory.enable.eq(valid[0]),
            self.memory.address.eq(ask["address"]),
            self.memory.second.eq(ask["second"]),
            self.memory.uses_second.eq(ask["uses_second"]),
        ]
        m.d.sync += [later.eq(now) for now, later in itertools.pairwise(valid)]
        awake_while(m, platform, self.awake, Cat(valid).any())

        visible, padding, strided = self._visible(m, ask)
        rotated = self._rotate(m, ask["rotate"], valid)
        low = Cat(Const(0, 7), padding).replicate(config.block)
        half = config.lanes // 2
        for lane in lanes:
            padded = Signal(8 * config.block, name=f"padded_{lane}", reset_less=True)
            with m.If(valid[3]):
                source = Mux(strided, rotated[2 * (lane % half)], rotated[lane])
                m.d.sync += padded.eq(Mux(visible[lane], source, low))
            m.d.comb += [core.data[lane].eq(padded) for core in cores]
        return m

    def _visible(self, m, ask):
        """Cycles 0 to 2; returns, for 3, which lanes are not padding, ``low`` and ``strided``."""
        config = self._config
        lanes, half = range(config.lanes), config.lanes // 2
        # Position p of the rotated word comes from the second word if p + rotate >= lanes.
        positions = [
            Mux(
                ask["strided"],
                ask["uses_second"][config.lanes - 1 - 2 * (lane % half)],
                ask["uses_second"][config.lanes - 1 - lane],
            )
            for lane in lanes
        ]
        exists = [
            (ask[name] >= 0) & (ask[name] < config.activation_depth)
            for name in ("address", "second")
        ]
        first, second = Signal(), Signal()
        is_second, inside, there, visible = (
            Signal(config.lanes, name=name) for name in ("is_second", "inside", "there", "visible")
        )
        m.d.sync += [
            first.eq(exists[0]),
            second.eq(exists[1]),
            is_second.eq(Cat(positions)),
            inside.eq(ask["inside"]),
            there.eq(inside & Cat(Mux(is_second[lane], second, first) for lane in lanes)),
            visible.eq(there),
        ]
        later = []
        for name in ("low", "strided"):
            value = ask[name]
            for n in range(1, 4):
                following = Signal(name=f"{name}_{n}")
                m.d.sync += following.eq(value)
                value = following
            later.append(value)
        return visible, *later

    def _rotate(self, m, rotate, valid):
        """Cycles 1 and 2: lane l becomes lane l + rotation of the word that was read."""
        config = self._config
        lanes, bits = config.lanes, ceil_log2(config.lanes)
        rotates = [rotate]  # by cycle
        for n in (1, 2):
            rotates.append(Signal(bits, name=f"rotate_{n}", reset_less=True))
            m.d.sync += rotates[n].eq(rotates[n - 1])
        lanes_in = [self.memory.data[r].as_value() for r in range(lanes)]
        low_bits = -(-bits // 2)
        for n, amount, step in (
            (1, rotates[1][:low_bits], 1),
            (2, rotates[2][low_bits:], 1 << low_bits),
        ):
            lanes_out = [
                Signal(8 * config.block, name=f"rotated_{n}_{r}", reset_less=True)
                for r in range(lanes)
            ]
            with m.If(valid[n]), m.Switch(amount):
                for k in range(min(1 << len(amount), -(-lanes // step))):
                    with m.Case(k):
                        m.d.sync += [
                            lanes_out[r].eq(lanes_in[(r + k * step) % lanes]) for r in range(lanes)
                        ]
            lanes_in = lanes_out
        return lanes_in
