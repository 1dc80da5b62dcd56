"""Any component with five pins, to place and route it where it has more ports than the part."""

from amaranth.hdl import Cat, ClockDomain, ClockSignal, Module, ResetSignal, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

_FOLD = 8  # bits whose parity is taken between two registers


class Harness(wiring.Component):
    """A component whose inputs come out of a shift register and whose outputs go into registers.

    So every path of the component starts and ends in a register, as it would among its neighbours,
    and none can be optimised away. The parity of all outputs, by a pipelined tree, leaves at ``o``.
    Reset, too, comes from a register.

    Members
    -------
    clk, rst : In(1)
    i, enable : In(1)
        Next input bit, and whether it moves in.
    o : Out(1)
    """

    def __init__(self, component: wiring.Component):
        self._component = component
        super().__init__({"clk": In(1), "rst": In(1), "i": In(1), "enable": In(1), "o": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.domains.sync = ClockDomain(local=True)
        reset = Signal(init=1, reset_less=True)
        m.d.sync += reset.eq(self.rst)
        m.d.comb += [ClockSignal().eq(self.clk), ResetSignal().eq(reset)]
        m.submodules.core = component = self._component
        inputs, outputs = [], []
        for _, member, value in component.signature.flatten(component):
            (inputs if member.flow is In else outputs).append(value)
        chain = Signal(sum(len(_bits(value)) for value in inputs), reset_less=True)
        with m.If(self.enable):
            m.d.sync += chain.eq(Cat(self.i, chain))
        offset = 0
        for value in inputs:
            target = _bits(value)
            m.d.comb += target.eq(chain[offset : offset + len(target)])
            offset += len(target)

        stage = Signal(sum(len(_bits(value)) for value in outputs), reset_less=True)
        m.d.sync += stage.eq(Cat(_bits(value) for value in outputs))
        while len(stage) > 1:
            folded = Signal(-(-len(stage) // _FOLD), reset_less=True)
            pieces = (stage[n : n + _FOLD] for n in range(0, len(stage), _FOLD))
            m.d.sync += folded.eq(Cat(piece.xor() for piece in pieces))
            stage = folded
        m.d.comb += self.o.eq(stage)
        return m


def _bits(value):
    return value.as_value() if hasattr(value, "as_value") else value
