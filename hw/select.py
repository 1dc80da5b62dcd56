"""Choice of one word among many, with the wide multiplexers of the chip."""

from typing import NamedTuple

from amaranth.hdl import Cat, Instance, Mux, Signal


class _Family(NamedTuple):
    """Multiplexers in a slice: steps of two to one that LUTs make, and cells for those after."""

    device: str  # start of Amaranth's name
    lut_steps: int
    cells: tuple[str, ...]


_FAMILIES = (
    _Family("XC7", 2, ("MUXF7", "MUXF8")),
    _Family("LFE5U", 1, ("PFUMX", "L6MUX21", "L6MUX21")),
)
#: Inputs at 0 and 1 of the third, and output.
_PORTS = {
    "MUXF7": ("i_I0", "i_I1", "i_S", "o_O"),
    "MUXF8": ("i_I0", "i_I1", "i_S", "o_O"),
    "PFUMX": ("i_BLUT", "i_ALUT", "i_C0", "o_Z"),
    "L6MUX21": ("i_D0", "i_D1", "i_SD", "o_Z"),
}


def select_word(m, platform, words, position, bits, name):
    """Return word ``position`` of ``bits`` bits in ``words``, which has a power of two of them.

    Yosys makes three LUT6 of a bit's eight to one on 7-series, where the slice needs two, and seven
    LUT4 on ECP5, where it needs four: on those platforms the slice's multiplexers are instantiated.
    Other tools find them by themselves.
    """
    family = _family(platform)
    if family is None:
        return words.word_select(position, bits)
    values = [words[n : n + bits] for n in range(0, len(words), bits)]
    return _tree(m, family, values, position, name)


def select_value(m, platform, values, position, name):
    """Return value ``position`` of a power of two of them, all of one width; as above."""
    family = _family(platform)
    if family is not None:
        return _tree(m, family, values, position, name)
    chosen = Signal(len(values[0]), name=name)  # a Switch simulates faster than one long shift
    with m.Switch(position):
        for number, value in enumerate(values):
            with m.Case(number):
                m.d.comb += chosen.eq(value)
    return chosen


def in_slot(slots, values):
    """Return that of ``values``, by slot, whose bit in ``slots`` is 1; any if there is none.

    At most one bit is 1.
    """
    if len(values) == 1:
        return next(iter(values.values()))
    items = list(values.items())
    half = len(items) // 2
    low, high = dict(items[:half]), dict(items[half:])
    chosen = Cat(slots[slot] for slot in low).any()
    return Mux(chosen, in_slot(slots, low), in_slot(slots, high))


def _family(platform):
    device = getattr(platform, "device", "").upper()
    return next((f for f in _FAMILIES if device.startswith(f.device)), None)


def _tree(m, family, level, position, name):
    bits = len(level[0])
    for step, choice in enumerate(position):
        pairs = list(zip(level[::2], level[1::2], strict=True))
        if step < family.lut_steps:
            level = [Mux(choice, odd, even) for even, odd in pairs]
            continue
        cell = family.cells[step - family.lut_steps]
        zero, one, select, output = _PORTS[cell]
        level = [Signal(bits, name=f"{name}_{step}_{place}") for place in range(len(pairs))]
        for place, (even, odd) in enumerate(pairs):
            for bit in range(bits):
                m.submodules[f"{name}_{step}_{place}_{bit}"] = Instance(
                    cell,
                    **{zero: even[bit], one: odd[bit], select: choice, output: level[place][bit]},
                )
    return level[0]
