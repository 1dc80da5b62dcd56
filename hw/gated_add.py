"""Additions of what a LUT makes of a few signals, at the price of the addition."""

from amaranth.hdl import Cat, Const, Instance, Mux, Signal, signed

from twillcore.hw.multiplier import instantiates

#: With D = 1: the sum of A and B while C is 1, else A. Both halves of a CCU2C.
_CCU2C_INIT = 0x6AAA


def gated_add(m, platform, a, b, gate, name):
    """Return signed ``a + (b if gate else 0)`` in the bits of ``b``, which has at least those of a.

    On Xilinx families the gate is in the LUT of each bit's sum, if ``a`` comes from registers.
    Yosys does not find that for ECP5: there the carry cells are instantiated.
    """
    if not instantiates(platform):
        return (a + Mux(gate, b, 0))[: len(b)].as_signed()
    bits = len(b) + len(b) % 2
    wide_a, wide_b = Signal(signed(bits), name=f"{name}_a"), Signal(signed(bits), name=f"{name}_b")
    m.d.comb += [wide_a.eq(a), wide_b.eq(b)]
    total = Signal(bits, name=f"{name}_total")
    carry = Const(0)
    for low in range(0, bits, 2):
        after = Signal(name=f"{name}_carry_{low}")
        m.submodules[f"{name}_{low}"] = Instance(
            "CCU2C",
            p_INIT0=Const(_CCU2C_INIT, 16), p_INIT1=Const(_CCU2C_INIT, 16),
            p_INJECT1_0="NO", p_INJECT1_1="NO",
            i_CIN=carry, o_COUT=after,
            i_A0=wide_a[low], i_B0=wide_b[low], i_C0=gate, i_D0=Const(1), o_S0=total[low],
            i_A1=wide_a[low + 1], i_B1=wide_b[low + 1], i_C1=gate, i_D1=Const(1),
            o_S1=total[low + 1],
        )  # fmt: skip
        carry = after
    return total[: len(b)].as_signed()


def chain_add(m, platform, a, b, bits, name):
    """Return ``a + b``, both signed, in ``bits`` bits, of which ``a`` comes from registers.

    Every bit of ``b`` may be a function of five signals: on 7-series the LUT in front of the carry
    chain makes it. Yosys gives the chain the narrower operand as it is, be it a register or not;
    there the carry cells are instantiated.
    """
    if not getattr(platform, "device", "").upper().startswith("XC7"):
        return (a + b)[:bits].as_signed()
    padded = bits + -bits % 4
    wide_a = Signal(signed(padded), name=f"{name}_a")
    wide_b = Signal(signed(padded), name=f"{name}_b")
    total = Signal(padded, name=f"{name}_total")
    m.d.comb += [wide_a.eq(a), wide_b.eq(b)]
    carry = Const(0, 1)
    for low in range(0, padded, 4):
        after = Signal(4, name=f"{name}_carry_{low}")
        part = slice(low, low + 4)
        m.submodules[f"{name}_{low}"] = Instance(
            "CARRY4",
            i_CI=carry, i_CYINIT=Const(0, 1), i_DI=wide_a[part],
            i_S=Cat(x ^ y for x, y in zip(wide_a[part], wide_b[part], strict=True)),
            o_O=total[part], o_CO=after,
        )  # fmt: skip
        carry = after[3]
    return total[:bits].as_signed()
