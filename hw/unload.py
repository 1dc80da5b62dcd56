"""Which column of a tile leaves the shadow of an array, in the array's module."""

from amaranth.hdl import Signal


def unload(m, shift, rewind, capture, columns, group):
    """Return when a column leaves the shadow, and the number of the group that it is from.

    ``rewind`` makes column 0 the next one; ``capture``, in the cycle after, moves it to the port
    with the tile's first sums, and ``shift`` another in any later cycle. A group's columns, of
    which there are ``group`` (a power of two), leave one after the other.
    """
    following = Signal(range(columns + 1))  # column that leaves next
    leave = Signal()
    m.d.comb += leave.eq(shift | capture)
    with m.If(rewind):
        m.d.sync += following.eq(0)
    with m.Elif(leave):
        m.d.sync += following.eq(following + 1)
    return leave, following[group.bit_length() - 1 :]
