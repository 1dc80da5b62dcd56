"""Signed multipliers with registers where each family's multiplier block has its own."""

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

#: Cycles from factors to product: a register in front of the multiplier and one behind it.
LATENCY = 2
WIDE_LATENCY = LATENCY + 1
_ECP5_BITS = 18
_WIDEST_BITS = 25  # of the wider factor, elsewhere: a DSP48E1


def instantiates(platform) -> bool:
    """Return whether the multipliers of ``platform`` are instantiated and not inferred.

    On ECP5 Yosys infers a multiplier without the registers inside the block, so the way to a block
    and back would be in one path. Only a platform that says so, by Amaranth's ``device``, gets the
    vendor's primitive: simulation and plain Verilog (``platform=None``) never do.
    """
    return getattr(platform, "device", "").upper().startswith("LFE5U")


def multiply(m, platform, early, registered, enable, name):
    """Return the product of two signed factors, in a register without reset.

    ``registered`` are the factors in registers, loaded from ``early`` in the cycle before; the
    product is valid in the cycle after ``enable``, which comes with ``registered``. Whoever needs
    several products of a factor shares its register. An instantiated block has input registers of
    its own, loaded from ``early`` in every cycle, and those outside are optimised away. So the
    product of a cycle after one without ``enable`` may differ: it must not be used.

    Factors of up to 18 bits are one block on ECP5.
    """
    bits = [len(factor) for factor in registered]
    product = Signal(signed(sum(bits)), name=name, reset_less=True)
    if not instantiates(platform):
        with m.If(enable):
            m.d.sync += product.eq(registered[0] * registered[1])
        return product
    if max(bits) > _ECP5_BITS:
        raise ValueError(f"a factor may have {_ECP5_BITS} bits, not {max(bits)}")
    wide = Signal(2 * _ECP5_BITS, name=f"{name}_p")
    factors = []
    for factor, port in zip(early, "ab", strict=True):
        extended = Signal(signed(_ECP5_BITS), name=f"{name}_{port}")
        m.d.comb += extended.eq(factor)
        factors.append(extended)
    m.submodules[f"{name}_block"] = _mult18x18d(*factors, wide)
    m.d.comb += product.eq(wide)
    return product


def multiply_parts(m, platform, early, registered, enable, name):
    """Return what adds up to the product of a factor of any width and one of up to 18 bits.

    One or more signed values, the products of parts of the first factor in their places; otherwise
    as :func:`multiply`.
    """
    widest = _ECP5_BITS if instantiates(platform) else _WIDEST_BITS
    pairs = zip(_parts(early[0], widest), _parts(registered[0], widest), strict=True)
    return [
        multiply(
            m, platform, (early_part, early[1]), (part, registered[1]), enable, f"{name}_{n}"
        ).shift_left((widest - 1) * n)
        for n, (early_part, part) in enumerate(pairs)
    ]


def multiply_wide(m, platform, early, registered, enables, name):
    """Return the sum of :func:`multiply_parts` in a register, a cycle after them.

    ``enables`` are those of the products and of the sum.
    """
    bits = len(registered[0]) + len(registered[1])
    parts = multiply_parts(m, platform, early, registered, enables[0], name)
    product = Signal(signed(bits), name=name, reset_less=True)
    with m.If(enables[1]):
        m.d.sync += product.eq(sum(parts[1:], parts[0]))
    return product


def _parts(factor, widest):
    """Cut a signed value into signed parts of at most ``widest`` bits, lowest first."""
    parts = []
    while len(factor) > widest:
        parts.append(Cat(factor[: widest - 1], Const(0, 1)).as_signed())
        factor = factor[widest - 1 :].as_signed()
    return [*parts, factor]


def _mult18x18d(a, b, p):
    """Return the block with input and output registers that always move."""
    registers = {
        f"p_REG_{name}_CLK": "CLK0" if used else "NONE"
        for name, used in (("INPUTA", 1), ("INPUTB", 1), ("PIPELINE", 0), ("OUTPUT", 1))
    }
    return Instance(
        "MULT18X18D",
        p_CLK0_DIV="ENABLED", p_GSR="DISABLED", **registers,
        i_CLK0=ClockSignal(), i_CE0=Const(1), i_RST0=Const(0),
        i_SIGNEDA=Const(1), i_SIGNEDB=Const(1), i_SOURCEA=Const(0), i_SOURCEB=Const(0),
        **{f"i_A{i}": a[i] for i in range(_ECP5_BITS)},
        **{f"i_B{i}": b[i] for i in range(_ECP5_BITS)},
        **{f"o_P{i}": p[i] for i in range(2 * _ECP5_BITS)},
    )  # fmt: skip


class Multiplier(wiring.Component):
    """:func:`multiply` or :func:`multiply_wide` as a component: for tests.

    A pair of factors per cycle; ``product`` is theirs :data:`LATENCY` cycles later, or
    :data:`WIDE_LATENCY` if ``wide``.

    Members
    -------
    a, b : In(signed)
    product : Out(signed)
    """

    def __init__(self, a_bits: int, b_bits: int, wide: bool = False):
        self._wide = wide
        super().__init__({
            "a": In(signed(a_bits)),
            "b": In(signed(b_bits)),
            "product": Out(signed(a_bits + b_bits)),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        a, b = Signal.like(self.a, name="a_near"), Signal.like(self.b, name="b_near")
        m.d.sync += [a.eq(self.a), b.eq(self.b)]
        function, enable = (multiply_wide, [Const(1)] * 2) if self._wide else (multiply, Const(1))
        product = function(m, platform, (self.a, self.b), (a, b), enable, "result")
        m.d.comb += self.product.eq(product)
        return m
