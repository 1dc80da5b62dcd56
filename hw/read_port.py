"""The read channels of the memory port, shared by FETCH and LOAD."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from twillcore.config import Config
from twillcore.hw.axi import ReadId, axi4_read


class ReadPort(wiring.Component):
    """Merge the addresses of FETCH and LOAD, and route the data back by their id.

    Addresses pass one register: an address taken in one cycle stands on ``memory`` in the next.
    Throughput is one address per cycle; the register takes one whenever it is empty or being
    emptied, and that of FETCH if both wait (FETCH asks for a few bursts at a time and then stops,
    so LOAD always gets through). Data are routed in the same cycle; there is no buffer, so whoever
    does not take a beat stalls the other's beats behind it.

    Members
    -------
    fetch, load : In(axi4_read(axi_data_bits)), the clients; their ids are ignored
    memory : Out(axi4_read(axi_data_bits))
    """

    def __init__(self, config: Config):
        signature = axi4_read(config.axi_data_bits)
        super().__init__({"fetch": In(signature), "load": In(signature), "memory": Out(signature)})

    def elaborate(self, platform):
        m = Module()
        memory = self.memory
        clients = {ReadId.FETCH: self.fetch, ReadId.LOAD: self.load}

        free = Signal()
        m.d.comb += free.eq(~memory.arvalid | memory.arready)
        with m.If(free):
            m.d.sync += memory.arvalid.eq(self.fetch.arvalid | self.load.arvalid)
        m.d.comb += [
            self.fetch.arready.eq(free),
            self.load.arready.eq(free & ~self.fetch.arvalid),
        ]
        for client_id, client in clients.items():
            with m.If(client.arvalid & client.arready):
                m.d.sync += [
                    memory.arid.eq(client_id),
                    memory.araddr.eq(client.araddr),
                    memory.arlen.eq(client.arlen),
                    memory.arsize.eq(client.arsize),
                    memory.arburst.eq(client.arburst),
                ]
            m.d.comb += [
                client.rid.eq(memory.rid),
                client.rdata.eq(memory.rdata),
                client.rresp.eq(memory.rresp),
                client.rlast.eq(memory.rlast),
                client.rvalid.eq(memory.rvalid & (memory.rid == client_id)),
            ]
            with m.If(memory.rid == client_id):
                m.d.comb += memory.rready.eq(client.rready)
        return m
