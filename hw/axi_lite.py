"""Signature of the AXI4-Lite control port, seen from the manager; signal names are AXI's own."""

from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

DATA_BITS = 32


def axi4_lite(address_bits):
    """Return all five channels; PROT is left out, since our subordinate does not look at it."""
    return wiring.Signature({
        "awaddr": Out(address_bits),
        "awvalid": Out(1),
        "awready": In(1),
        "wdata": Out(DATA_BITS),
        "wstrb": Out(DATA_BITS // 8),
        "wvalid": Out(1),
        "wready": In(1),
        "bresp": In(2),
        "bvalid": In(1),
        "bready": Out(1),
        "araddr": Out(address_bits),
        "arvalid": Out(1),
        "arready": In(1),
        "rdata": In(DATA_BITS),
        "rresp": In(2),
        "rvalid": In(1),
        "rready": Out(1),
    })  # fmt: skip
