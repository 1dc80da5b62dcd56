"""Signatures of the AXI4 memory port, seen from the manager; signal names are AXI's own.

The handshake of each channel is that of a stream: a transfer in a cycle with valid and ready, and a
valid that stays with its payload until then.
"""

from enum import IntEnum

from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

ADDRESS_BITS = 32
ID_BITS = 1
BOUNDARY_BYTES = 4096  # no burst may cross a multiple of this


class ReadId(IntEnum):
    """ARID and RID: who reads. The memory may reorder between them, not within one."""

    FETCH = 0
    LOAD = 1


class Burst(IntEnum):
    """ARBURST and AWBURST."""

    FIXED = 0
    INCR = 1
    WRAP = 2


class Response(IntEnum):
    """RRESP and BRESP; everything but OKAY is an error for us."""

    OKAY = 0
    EXOKAY = 1
    SLVERR = 2
    DECERR = 3


def size_code(data_bits):
    """Return ARSIZE or AWSIZE of beats as wide as the port: log2 of the bytes."""
    return (data_bits // 8).bit_length() - 1


def _read_members(data_bits):
    return {
        "arid": Out(ID_BITS),
        "araddr": Out(ADDRESS_BITS),
        "arlen": Out(8),
        "arsize": Out(3),
        "arburst": Out(2),
        "arvalid": Out(1),
        "arready": In(1),
        "rid": In(ID_BITS),
        "rdata": In(data_bits),
        "rresp": In(2),
        "rlast": In(1),
        "rvalid": In(1),
        "rready": Out(1),
    }


def _write_members(data_bits):
    return {
        "awid": Out(ID_BITS),
        "awaddr": Out(ADDRESS_BITS),
        "awlen": Out(8),
        "awsize": Out(3),
        "awburst": Out(2),
        "awvalid": Out(1),
        "awready": In(1),
        "wdata": Out(data_bits),
        "wstrb": Out(data_bits // 8),
        "wlast": Out(1),
        "wvalid": Out(1),
        "wready": In(1),
        "bid": In(ID_BITS),
        "bresp": In(2),
        "bvalid": In(1),
        "bready": Out(1),
    }


def axi4_read(data_bits):
    """Return the read channels (AR, R) of an AXI4 port."""
    return wiring.Signature(_read_members(data_bits))


def axi4_write(data_bits):
    """Return the write channels (AW, W, B) of an AXI4 port."""
    return wiring.Signature(_write_members(data_bits))


def axi4(data_bits):
    """Return a whole AXI4 port: all five channels."""
    return wiring.Signature(_read_members(data_bits) | _write_members(data_bits))
