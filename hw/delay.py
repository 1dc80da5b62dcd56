"""Values some cycles later, in the caller's module."""

from amaranth.hdl import Const, Signal


def delayed(m, value, cycles, *, enables=None, name="delayed"):
    """Return ``value`` and what it was 1 to ``cycles`` cycles ago, in this order.

    For data: the registers have no reset. Stage k moves when ``enables[k]`` is set.
    """
    values = [value]
    for cycle in range(cycles):
        stage = Signal.like(value, reset_less=True, name=f"{name}_{cycle + 1}")
        with m.If(enables[cycle] if enables else Const(1)):
            m.d.sync += stage.eq(values[-1])
        values.append(stage)
    return values


def delay(m, value, cycles, *, enables=None, name="delayed"):
    """Return the last of :func:`delayed`."""
    return delayed(m, value, cycles, enables=enables, name=name)[-1]


def valid_chain(m, valid, stages, name):
    """Return ``[valid, valid one cycle later, ...]``, ``stages + 1`` of them.

    For what must be 0 after a reset: a bit, or a record with such bits.
    """
    chain = [valid]
    for stage in range(stages):
        late = Signal.like(valid, name=f"{name}_{stage + 1}")
        m.d.sync += late.eq(chain[-1])
        chain.append(late)
    return chain
