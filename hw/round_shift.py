"""Rounding right shift of all lanes, as pipeline stages in the caller's module."""

from amaranth.hdl import Cat, Const, Signal, signed

COARSE = 3  # bits of the shift that the last shift stage takes when there are two


def round_shift_latency(shift_bits):
    """Return the cycles from values to results of :func:`round_shift`."""
    return 2 if shift_bits <= COARSE + 1 else 4


def round_shift(m, enables, values, shifts, *, output_bits, name):
    """Shift right, round and saturate: :func:`twillcore.numerics.round_shift`, ``saturate``.

    One result per lane and cycle, :func:`round_shift_latency` cycles later; no backpressure.

    Rounding half away from zero needs no wide adder behind the shifter: the bit below the result's
    LSB is what must be added, and the sum is only ``output_bits`` wide. Ties of negative values do
    not count: where the shift has a stage of its own, the value is decremented before it; a short
    shift looks at the bits that are lost below that bit, beside the shifter.

    Parameters
    ----------
    m : Module
    enables : list of Value
        ``enables[k]``: stage k holds a value. Registers of idle stages keep still.
    values : list of Value
        One signed value per lane.
    shifts : list of Value
        One shift per lane, or a single one for all.
    output_bits : int
    name : str
        Prefix of the registers.

    Returns
    -------
    list of Signal
    """
    bits, shift_bits = len(values[0]) + 1, len(shifts[0])  # the smallest value may be decremented
    short = round_shift_latency(shift_bits) == 2
    shared = len(shifts) == 1

    # stages before the shift carry it along
    shift_stages = [shifts] if short else [shifts, []]
    if not short:
        for lane, shift in enumerate(shifts):
            staged = Signal.like(shift, reset_less=True, name=f"{name}_shift_{lane}")
            fine = Signal(COARSE, reset_less=True, name=f"{name}_fine_{lane}")
            with m.If(enables[0]):
                m.d.sync += staged.eq(shift)
            with m.If(enables[1]):
                m.d.sync += fine.eq(staged[:COARSE])
            shift_stages[1].append((staged, fine))

    results = []
    for lane, value in enumerate(values):
        pick = 0 if shared else lane
        down = Signal(signed(bits), reset_less=True, name=f"{name}_down_{lane}")
        guarded = Signal(
            signed(bits + 1), reset_less=True, name=f"{name}_guarded_{lane}"
        )  # LSB: the rounding bit
        if short:
            shifted = Signal(signed(bits + 1), name=f"{name}_shifted_{lane}")
            lost = Signal(name=f"{name}_lost_{lane}")  # a bit below the rounding bit
            below = min(len(value), (1 << shift_bits) - 2)
            m.d.comb += [
                down.eq(value),
                shifted.eq(Cat(Const(0, 1), down).as_signed() >> shifts[pick]),
                lost.eq(Cat(value[i] & (shifts[pick] > i + 1) for i in range(below)).any()),
            ]
            with m.If(enables[0]):
                m.d.sync += guarded.eq(Cat(shifted[0] & (~value[-1] | lost), shifted[1:]))
        else:
            lowered = (value - (value[-1] & shifts[pick].any()))[:bits].as_signed()
            staged, fine = shift_stages[1][pick]
            coarse = Signal(signed(bits + 1), reset_less=True, name=f"{name}_coarse_{lane}")
            with m.If(enables[0]):
                m.d.sync += down.eq(lowered)
            with m.If(enables[1]):
                far = Cat(Const(0, COARSE), staged[COARSE:])
                m.d.sync += coarse.eq(Cat(Const(0, 1), down).as_signed() >> far)
            with m.If(enables[2]):
                m.d.sync += guarded.eq(coarse >> fine)
        # What fits can only pass the upper end by rounding, and by one; what does not, stays out.
        whole = Signal(signed(max(bits, output_bits)), name=f"{name}_whole_{lane}")
        rounded = Signal(signed(output_bits + 1), name=f"{name}_rounded_{lane}")
        fits = Signal(name=f"{name}_fits_{lane}")
        result = Signal(signed(output_bits), reset_less=True, name=f"{name}_{lane}")
        final = Signal(signed(output_bits), name=f"{name}_final_{lane}")
        upper = whole[output_bits - 1 :]
        m.d.comb += [
            whole.eq(guarded >> 1),
            rounded.eq(whole[:output_bits].as_signed() + guarded[0]),
            fits.eq(upper.all() | ~upper.any()),
        ]
        with m.If(~fits & whole[-1]):
            m.d.comb += final.eq(-(1 << output_bits - 1))
        with m.Elif(~fits | (rounded[-1] != rounded[-2])):
            m.d.comb += final.eq((1 << output_bits - 1) - 1)
        with m.Else():
            m.d.comb += final.eq(rounded)
        with m.If(enables[1 if short else 3]):
            m.d.sync += result.eq(final)
        results.append(result)
    return results
