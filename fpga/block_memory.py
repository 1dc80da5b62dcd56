"""Block RAM in the place of DRAM: an AXI4 subordinate, with a port for the host's bytes."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from twillcore.hw.axi import ADDRESS_BITS, BOUNDARY_BYTES, ID_BITS, Burst, Response, axi4, size_code
from twillcore.hw.streams import Queue

READ_QUEUE = 4  # beats read ahead of RREADY


def byte_port():
    """Return the port for single bytes, seen from the client.

    ``write`` and ``read`` act in the cycle in which they are high, one at a time; what was read
    stands on ``read_data`` in the following cycle. Addresses must be below the size.
    """
    return wiring.Signature({
        "address": Out(ADDRESS_BITS),
        "write": Out(1),
        "write_data": Out(8),
        "read": Out(1),
        "read_data": In(8),
    })  # fmt: skip


class BlockMemory(wiring.Component):
    """A memory of ``size_bytes`` on an AXI4 bus.

    Reads: one burst at a time, the next accepted with the last beat of the one before; a beat per
    cycle, the first two cycles after its address. Writes: one burst at a time, a beat per cycle,
    the response in the cycle after the last. A beat outside the memory, and a burst that is not
    incrementing or not of full width, is answered with SLVERR and writes nothing. An access by
    ``bytes`` takes the cycle from the bus.

    Parameters
    ----------
    data_bits : width of the bus
    size_bytes : a power of two, at least 4 KiB

    Members
    -------
    bus : In(axi4(data_bits))
    bytes : In(byte_port())
    """

    def __init__(self, data_bits: int, size_bytes: int):
        if size_bytes < BOUNDARY_BYTES or size_bytes & (size_bytes - 1):
            raise ValueError(
                f"size must be a power of two and at least {BOUNDARY_BYTES} bytes, not {size_bytes}"
            )
        self._data_bits, self._size_bytes = data_bits, size_bytes
        super().__init__({"bus": In(axi4(data_bits)), "bytes": In(byte_port())})

    def elaborate(self, platform):
        m = Module()
        lanes = self._data_bits // 8
        m.submodules.rows = rows = memory.Memory(
            shape=data.ArrayLayout(8, lanes), depth=self._size_bytes // lanes, init=[]
        )
        write, read = rows.write_port(granularity=1), rows.read_port()
        self._lane_bits = lanes.bit_length() - 1
        self._size_bits = self._size_bytes.bit_length() - 1
        self._write(m, write)
        self._read(m, read)

        lane = Signal(self._lane_bits)
        m.d.sync += lane.eq(self.bytes.address)
        m.d.comb += self.bytes.read_data.eq(read.data[lane])
        row = self.bytes.address[self._lane_bits : self._size_bits]
        with m.If(self.bytes.write):
            m.d.comb += [
                write.addr.eq(row),
                write.data.eq(Cat(self.bytes.write_data.replicate(lanes))),
                write.en.eq(1 << self.bytes.address[: self._lane_bits]),
            ]
        with m.If(self.bytes.read):
            m.d.comb += [read.addr.eq(row), read.en.eq(1)]
        return m

    def _outside(self, address, size, burst):
        """Whether a beat cannot be served."""
        wrong = (size != size_code(self._data_bits)) | (burst != Burst.INCR)
        return wrong | address[self._size_bits :].any()

    def _write(self, m, port):
        bus = self.bus
        active = Signal()
        failed = Signal()
        address = Signal(ADDRESS_BITS)
        wrong = Signal()
        beat = Signal()
        outside = Signal()
        m.d.comb += [
            bus.awready.eq(~active & ~bus.bvalid),
            bus.wready.eq(active & ~self.bytes.write),
            beat.eq(bus.wvalid & bus.wready),
            outside.eq(wrong | address[self._size_bits :].any()),
            port.addr.eq(address[self._lane_bits : self._size_bits]),
            port.data.eq(bus.wdata),
            port.en.eq(Mux(beat & ~outside, bus.wstrb, 0)),
        ]
        with m.If(bus.bready):
            m.d.sync += bus.bvalid.eq(0)
        with m.If(bus.awvalid & bus.awready):
            m.d.sync += [
                active.eq(1),
                failed.eq(0),
                address.eq(bus.awaddr),
                wrong.eq(self._outside(bus.awaddr, bus.awsize, bus.awburst)),
                bus.bid.eq(bus.awid),
            ]
        with m.If(beat):
            m.d.sync += [
                address.eq(address + self._data_bits // 8),
                failed.eq(failed | outside),
            ]
            with m.If(bus.wlast):
                m.d.sync += [
                    active.eq(0),
                    bus.bvalid.eq(1),
                    bus.bresp.eq(Mux(failed | outside, Response.SLVERR, Response.OKAY)),
                ]

    def _read(self, m, port):
        bus = self.bus
        beat = data.StructLayout({
            "data": self._data_bits, "response": 2, "last": 1, "id": ID_BITS,
        })  # fmt: skip
        m.submodules.beats = beats = Queue(beat, READ_QUEUE)

        active = Signal()
        wrong = Signal()
        address = Signal(ADDRESS_BITS)
        left = Signal(8)
        number = Signal(ID_BITS)
        issue = Signal()
        last = Signal()
        outside = Signal()
        issued = Signal()
        issued_last = Signal()
        issued_outside = Signal()
        issued_number = Signal(ID_BITS)
        m.d.comb += [
            # One beat may be on its way from the rows; it needs a place.
            issue.eq(active & ~self.bytes.read & (beats.level + issued < READ_QUEUE)),
            last.eq(issue & (left == 0)),
            bus.arready.eq(~active | last),
            outside.eq(wrong | address[self._size_bits :].any()),
            port.addr.eq(address[self._lane_bits : self._size_bits]),
            port.en.eq(issue),
        ]
        m.d.sync += [
            issued.eq(issue),
            issued_last.eq(last),
            issued_outside.eq(outside),
            issued_number.eq(number),
        ]
        with m.If(issue):
            m.d.sync += [address.eq(address + self._data_bits // 8), left.eq(left - 1)]
        with m.If(bus.arready):
            m.d.sync += [
                active.eq(bus.arvalid),
                address.eq(bus.araddr),
                left.eq(bus.arlen),
                number.eq(bus.arid),
                wrong.eq(self._outside(bus.araddr, bus.arsize, bus.arburst)),
            ]

        m.d.comb += [
            beats.i.valid.eq(issued),
            beats.i.payload.data.eq(Mux(issued_outside, 0, port.data.as_value())),
            beats.i.payload.response.eq(Mux(issued_outside, Response.SLVERR, Response.OKAY)),
            beats.i.payload.last.eq(issued_last),
            beats.i.payload.id.eq(issued_number),
            bus.rvalid.eq(beats.o.valid),
            beats.o.ready.eq(bus.rready),
            bus.rdata.eq(beats.o.payload.data),
            bus.rresp.eq(beats.o.payload.response),
            bus.rlast.eq(beats.o.payload.last),
            bus.rid.eq(beats.o.payload.id),
        ]
        return m
