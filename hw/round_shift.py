"""Rounding right shift of all lanes, as pipeline stages in the caller's module."""

from amaranth.hdl import Cat, Const, Signal, signed

COARSE = 3  # bits of the shift that the last shift stage takes when there are two


def round_shift_latency(shift_bits):
    """Return the cycles from values to results of :func:`round_shift`."""
    return 2 if shift_bits <= COARSE + 1 else 4


def saturate(m, value, bits, name):
    """Return ``value`` clamped to ``bits``-bit two's complement: one comparison of sign bits."""
    # Signals for what is used more than once: an expression is emitted anew at every use.
    whole = Signal(signed(len(value)), name=f"{name}_whole")
    result = Signal(signed(bits), name=f"{name}_saturated")
    negative = Signal(name=f"{name}_negative")
    m.d.comb += [whole.eq(value), negative.eq(whole[-1])]
    with m.If(whole[bits - 1 :].all() | ~whole[bits - 1 :].any()):
        m.d.comb += result.eq(whole)
    with m.Elif(negative):
        m.d.comb += result.eq(-(1 << bits - 1))
    with m.Else():
        m.d.comb += result.eq((1 << bits - 1) - 1)
    return result


def delay(m, value, cycles, *, enables=None, name="delayed"):
    """Return ``value`` after ``cycles`` registers; stage k moves when ``enables[k]`` is set.

    For data: the registers have no reset.
    """
    for cycle in range(cycles):
        stage = Signal.like(value, reset_less=True, name=f"{name}_{cycle + 1}")
        with m.If(enables[cycle] if enables else Const(1)):
            m.d.sync += stage.eq(value)
        value = stage
    return value


def valid_chain(m, valid, stages, name):
    """Return ``[valid, valid one cycle later, ...]``, ``stages + 1`` of them."""
    chain = [valid]
    for stage in range(stages):
        late = Signal(name=f"{name}_{stage + 1}")
        m.d.sync += late.eq(chain[-1])
        chain.append(late)
    return chain


def round_shift(m, enables, values, shifts, *, output_bits, name):
    """Shift right, round and saturate: :func:`twillcore.numerics.round_shift`, ``saturate``.

    One result per lane and cycle, :func:`round_shift_latency` cycles later; no backpressure.

    Rounding half away from zero needs no wide adder behind the shifter: a negative value is
    decremented before the shift, then the bit below the result's LSB is what must be added, and the
    sum is only ``output_bits`` wide.

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
    bits, shift_bits = len(values[0]) + 1, len(shifts[0])  # the smallest value is decremented too
    short = round_shift_latency(shift_bits) == 2
    shared = len(shifts) == 1

    # stage 0: ties of negative values must fall; stages before the shift carry the shift along
    shift_stages = [shifts] if short else [shifts, []]
    nonzero = [shift.any() for shift in shifts]
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
        lowered = (value - (value[-1] & nonzero[pick]))[:bits].as_signed()
        if short:
            m.d.comb += down.eq(lowered)
            with m.If(enables[0]):
                m.d.sync += guarded.eq(Cat(Const(0, 1), down).as_signed() >> shifts[pick])
        else:
            staged, fine = shift_stages[1][pick]
            coarse = Signal(signed(bits + 1), reset_less=True, name=f"{name}_coarse_{lane}")
            with m.If(enables[0]):
                m.d.sync += down.eq(lowered)
            with m.If(enables[1]):
                far = Cat(Const(0, COARSE), staged[COARSE:])
                m.d.sync += coarse.eq(Cat(Const(0, 1), down).as_signed() >> far)
            with m.If(enables[2]):
                m.d.sync += guarded.eq(coarse >> fine)
        # Saturated first to what rounding may still bring into range, so that the sum is short.
        near = saturate(m, guarded, min(output_bits + 2, bits + 1), f"{name}_near_{lane}")
        rounded = Signal(signed(output_bits + 2), name=f"{name}_rounded_{lane}")
        result = Signal(signed(output_bits), reset_less=True, name=f"{name}_{lane}")
        m.d.comb += rounded.eq((near >> 1) + near[0])
        final = saturate(m, rounded, output_bits, f"{name}_{lane}")
        with m.If(enables[1 if short else 3]):
            m.d.sync += result.eq(final)
        results.append(result)
    return results
