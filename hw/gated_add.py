"""Addition of a value that can be switched off, at the price of the addition."""

from amaranth.hdl import Const, Instance, Mux, Signal, signed

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
