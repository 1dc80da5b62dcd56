"""The board's side of :mod:`twillcore.fpga.protocol`."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from twillcore import registers
from twillcore.fpga import protocol
from twillcore.fpga.block_memory import byte_port
from twillcore.fpga.framing import Deframer, Framer
from twillcore.fpga.protocol import Opcode, Status
from twillcore.fpga.uart import Received
from twillcore.hw.axi import Response
from twillcore.hw.axi_lite import axi4_lite


def _layout(fields):
    return data.StructLayout({name: 8 * size for name, size in fields.items()})


_REQUEST, _RESPONSE = _layout(protocol.REQUEST), _layout(protocol.RESPONSE)
_ANSWER_BYTES = max(protocol.REGISTER_BYTES, protocol.HELLO_BYTES)


class Link(wiring.Component):
    """Execute the host's requests: bytes of memory, registers, HELLO.

    A request is kept until its END and executed only if its checksum is right. From then until the
    last byte of its response is out, received bytes are dropped.

    Parameters
    ----------
    memory_bytes : size of the memory

    Members
    -------
    i_valid, i : In(1), In(Received)
        From the receiver; at least two cycles apart.
    o : Out(stream.Signature(8))
        To the transmitter.
    memory : Out(byte_port())
    bus : Out(axi4_lite(registers.ADDRESS_BITS))
    reset : Out(1)
        High for one cycle: accelerator and bus are to be reset.
    """

    def __init__(self, memory_bytes: int):
        self._memory_bytes = memory_bytes
        super().__init__({
            "i_valid": In(1),
            "i": In(Received),
            "o": Out(stream.Signature(8)),
            "memory": Out(byte_port()),
            "bus": Out(axi4_lite(registers.ADDRESS_BITS)),
            "reset": Out(1),
        })  # fmt: skip

    def elaborate(self, platform):
        m = Module()
        m.submodules.deframer = deframer = Deframer()
        m.submodules.framer = framer = Framer()
        wiring.connect(m, wiring.flipped(self.o), framer.o)
        m.d.comb += [deframer.i_valid.eq(self.i_valid), deframer.i.eq(self.i)]

        # A request as it arrives: the header in a register, the payload in a memory.
        header = Signal(_REQUEST)
        count = Signal(range(protocol.LONGEST_REQUEST + 2))  # its last value means too many
        m.submodules.payload = payload = memory.Memory(shape=8, depth=protocol.MAX_PAYLOAD, init=[])
        keep, kept = payload.write_port(), payload.read_port()
        position = Signal(range(protocol.LONGEST_REQUEST + 2))
        m.d.comb += [
            position.eq(count - protocol.REQUEST_BYTES),
            keep.addr.eq(position),
            keep.data.eq(deframer.data),
            keep.en.eq(
                deframer.valid
                & (count >= protocol.REQUEST_BYTES)
                & (position < protocol.MAX_PAYLOAD)
            ),
        ]
        with m.If(deframer.valid):
            with m.If(count <= protocol.LONGEST_REQUEST):
                m.d.sync += count.eq(count + 1)
            with m.If(count < protocol.REQUEST_BYTES):
                bits = header.as_value()
                m.d.sync += bits.eq(Cat(bits[8:], deframer.data))
        with m.If(deframer.end | deframer.clear):
            m.d.sync += count.eq(0)

        # What is executed; what goes back.
        length = Signal(16)
        address = Signal(32)
        received = Signal(range(protocol.LONGEST_REQUEST + 2))  # bytes of payload
        response = Signal(_RESPONSE)
        answer = Signal(8 * _ANSWER_BYTES)  # payload of responses that are not memory
        left = Signal(16)
        # A write of a register is not executed again: see twillcore.fpga.protocol.
        executed = Signal(data.StructLayout({"write": 1, "sequence": 8, "status": 8}))
        repeated = Signal()
        m.d.comb += repeated.eq(executed.write & (executed.sequence == header.sequence))

        def respond(status, size=0):
            m.d.sync += [response.status.eq(status), response.length.eq(size), left.eq(size)]
            m.next = "Header"

        bus, port = self.bus, self.memory
        end_address = Signal(33)
        m.d.comb += [
            end_address.eq(header.address + header.length),
            port.address.eq(address),
            port.write_data.eq(kept.data),
            bus.awaddr.eq(address),
            bus.araddr.eq(address),
            bus.wstrb.eq(~0),
        ]
        in_memory = Signal()
        is_register = Signal()
        one_word = Signal()
        m.d.comb += [
            in_memory.eq(end_address <= self._memory_bytes),
            is_register.eq(
                (header.address[registers.ADDRESS_BITS :] == 0) & (header.address[:2] == 0)
            ),
            one_word.eq(header.length == protocol.REGISTER_BYTES),
        ]

        out = framer.i
        head = Signal(8 * protocol.RESPONSE_BYTES)
        head_left = Signal(range(protocol.RESPONSE_BYTES + 1))
        index = Signal(range(protocol.MAX_PAYLOAD + 1))
        m.d.comb += kept.addr.eq(index)
        with m.FSM() as fsm:
            with m.State("Listen"), m.If(deframer.end & (count != 0)):
                m.d.sync += [
                    response.sequence.eq(header.sequence),
                    length.eq(header.length),
                    address.eq(header.address),
                    received.eq(count - protocol.REQUEST_BYTES - protocol.CRC_BYTES),
                    index.eq(0),
                ]
                respond(Status.BAD_FRAME)
                with m.If(
                    deframer.good & (count >= protocol.REQUEST_BYTES + protocol.CRC_BYTES)
                    & (count <= protocol.LONGEST_REQUEST)
                ):  # fmt: skip
                    m.next = "Decode"

            with m.State("Decode"):
                respond(Status.BAD_REQUEST)
                m.d.sync += [executed.write.eq(0), executed.sequence.eq(header.sequence)]
                with m.Switch(header.opcode):
                    with m.Case(Opcode.HELLO), m.If(received == 0):
                        hello = Signal(_layout(protocol.HELLO))
                        m.d.comb += [
                            hello.version.eq(protocol.VERSION),
                            hello.max_payload.eq(protocol.MAX_PAYLOAD),
                            hello.memory_bytes.eq(self._memory_bytes),
                        ]
                        m.d.sync += answer.eq(hello)
                        respond(Status.OK, protocol.HELLO_BYTES)
                    with m.Case(Opcode.RESET), m.If(received == 0):
                        m.d.comb += self.reset.eq(1)
                        respond(Status.OK)
                    with (
                        m.Case(Opcode.READ_MEMORY),
                        m.If((received == 0) & (length <= protocol.MAX_PAYLOAD)),
                    ):
                        with m.If(in_memory):
                            respond(Status.OK, length)
                        with m.Else():
                            respond(Status.OUT_OF_RANGE)
                    with m.Case(Opcode.WRITE_MEMORY), m.If(received == length):
                        with m.If(~in_memory):
                            respond(Status.OUT_OF_RANGE)
                        with m.Elif(length == 0):
                            respond(Status.OK)
                        with m.Else():
                            m.next = "Fetch byte"
                    with m.Case(Opcode.READ_REGISTER), m.If((received == 0) & one_word):
                        with m.If(is_register):
                            m.next = "Read register"
                        with m.Else():
                            respond(Status.OUT_OF_RANGE)
                    with m.Case(Opcode.WRITE_REGISTER), m.If((received == length) & one_word):
                        with m.If(~is_register):
                            respond(Status.OUT_OF_RANGE)
                        with m.Elif(repeated):
                            m.d.sync += executed.write.eq(1)
                            respond(executed.status)
                        with m.Else():
                            m.next = "Gather"

            with m.State("Fetch byte"):
                m.next = "Write byte"
            with m.State("Write byte"):
                m.d.comb += port.write.eq(1)
                m.d.sync += [index.eq(index + 1), address.eq(address + 1)]
                m.next = "Fetch byte"
                with m.If(index + 1 == length):
                    respond(Status.OK)

            with m.State("Gather"):  # the four bytes of a register, one cycle behind `index`
                m.d.sync += [
                    bus.wdata.eq(Cat(bus.wdata[8:], kept.data)),
                    index.eq(index + 1),
                ]
                with m.If(index == protocol.REGISTER_BYTES):
                    m.d.sync += [bus.awvalid.eq(1), bus.wvalid.eq(1)]
                    m.next = "Write register"
            with m.State("Write register"):
                m.d.comb += bus.bready.eq(1)
                with m.If(bus.awready):
                    m.d.sync += bus.awvalid.eq(0)
                with m.If(bus.wready):
                    m.d.sync += bus.wvalid.eq(0)
                with m.If(bus.bvalid):
                    status = Mux(bus.bresp == Response.OKAY, Status.OK, Status.BUS_ERROR)
                    m.d.sync += [executed.write.eq(1), executed.status.eq(status)]
                    respond(status)

            with m.State("Read register"):
                m.d.comb += bus.arvalid.eq(1)
                with m.If(bus.arready):
                    m.next = "Register data"
            with m.State("Register data"):
                m.d.comb += bus.rready.eq(1)
                with m.If(bus.rvalid):
                    m.d.sync += answer.eq(bus.rdata)
                    with m.If(bus.rresp == Response.OKAY):
                        respond(Status.OK, protocol.REGISTER_BYTES)
                    with m.Else():
                        respond(Status.BUS_ERROR)

            with m.State("Header"):
                m.d.sync += [head.eq(response), head_left.eq(protocol.RESPONSE_BYTES)]
                m.next = "Send header"
            with m.State("Send header"):
                m.d.comb += [
                    out.valid.eq(1),
                    out.payload.data.eq(head[:8]),
                    out.payload.last.eq((head_left == 1) & (left == 0)),
                ]
                with m.If(out.ready):
                    m.d.sync += [head.eq(head >> 8), head_left.eq(head_left - 1)]
                    with m.If(head_left == 1):
                        m.next = "Read byte"
                        with m.If(left == 0):
                            m.next = "Finish"
            is_memory = header.opcode == Opcode.READ_MEMORY
            with m.State("Read byte"):
                m.d.comb += port.read.eq(is_memory)
                m.next = "Hold byte"
            with m.State("Hold byte"):
                with m.If(is_memory):
                    m.d.sync += answer[:8].eq(port.read_data)
                m.next = "Send byte"
            with m.State("Send byte"):
                m.d.comb += [
                    out.valid.eq(1),
                    out.payload.data.eq(answer[:8]),
                    out.payload.last.eq(left == 1),
                ]
                with m.If(out.ready):
                    m.d.sync += [
                        answer.eq(answer >> 8),
                        address.eq(address + 1),
                        left.eq(left - 1),
                    ]
                    m.next = "Read byte"
                    with m.If(left == 1):
                        m.next = "Finish"
            with m.State("Finish"), m.If(~self.o.valid):  # the transmitter has all of it
                m.next = "Listen"
        m.d.comb += deframer.clear.eq(~fsm.ongoing("Listen"))
        return m
