"""Choice of one word among many, with the wide multiplexers of the chip."""

from amaranth.hdl import Instance, Mux, Signal

_LUT_INPUTS = 4  # data inputs of the multiplexer that one LUT6 is
_STEPS = ("MUXF7", "MUXF8")  # each joins two of what is before it, in one slice


def instantiates(platform) -> bool:
    """Return whether multiplexers of ``platform`` are instantiated, by Amaranth's ``device``.

    Yosys makes three LUT6 of eight to one on 7-series, where the slice needs two. Other tools
    find the multiplexers by themselves.
    """
    return getattr(platform, "device", "").upper().startswith("XC7")


def select_word(m, platform, words, position, bits, name):
    """Return word ``position`` of ``bits`` bits in ``words``, which has a power of two of them."""
    if not instantiates(platform):
        return words.word_select(position, bits)
    level = [words[n : n + bits] for n in range(0, len(words), bits)]
    for number, choice in enumerate(position):
        pairs = zip(level[::2], level[1::2], strict=True)
        joined = 1 << number
        if joined < _LUT_INPUTS:
            level = [Mux(choice, odd, even) for even, odd in pairs]
            continue
        cell = _STEPS[number - 2]
        level = []
        for place, (even, odd) in enumerate(pairs):
            chosen = Signal(bits, name=f"{name}_{number}_{place}")
            for bit in range(bits):
                m.submodules[f"{name}_{number}_{place}_{bit}"] = Instance(
                    cell, i_I0=even[bit], i_I1=odd[bit], i_S=choice, o_O=chosen[bit]
                )
            level.append(chosen)
    return level[0]
