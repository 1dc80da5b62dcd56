// Clock loop, memory model and register access around the verilated accelerator, for sim/rtl.py.
//
// The memory behaves as twillcore/dram.py says, word for word; the cycle model relies on it. Every
// cycle is two evaluations: inputs are set (from state only) and settle with the clock low, what the
// rising edge will sample is looked at, then the clock rises.
//
// Of a gated machine (hw/clocks.py), the clocks of parts that sleep do not rise. Inputs are registers
// there, whose clocks rise with what has changed, half a cycle before the others: so each of the two
// evaluations does only what its edges ask for.
//
// Compiled with -DAXI_BYTES=<n>, -DENGINES=<n>, -DGATED=1 for a gated machine, and -DTRACE=1 for the
// build that writes VCD.

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "Vtwillcore.h"
#include "verilated.h"
#if TRACE
#include "verilated_vcd_c.h"
#endif

// Parts of the machine with a clock of their own: `Part` in hw/clocks.py.
#define PARTS(DO) DO(issue) DO(load) DO(store) DO(gemm) DO(drain) DO(vector) DO(move) DO(lut)

namespace {

constexpr uint64_t kNever = ~uint64_t{0};
constexpr uint64_t kPage = 4096;  // no AXI burst crosses it
constexpr unsigned kRead = 0, kWrite = 1, kHost = 2;  // groups of inputs: hw/clocks.py
constexpr unsigned kOkay = 0, kSlaveError = 2;

constexpr unsigned log2_of(unsigned value) { return value < 2 ? 0 : 1 + log2_of(value / 2); }

}  // namespace

// Mirrored field by field by `_Settings` in sim/rtl.py.
struct Settings {
    uint64_t latency, beat_cycles, outstanding;
    uint64_t read_fault, write_fault;  // bytes at which the memory answers with an error, or kNever
    uint64_t hang;                     // cycle of the program from which the memory is dead, or kNever
};

class Machine {
  public:
    uint64_t ticks = 0;    // since reset
    uint64_t cycle = 0;    // of the program: cycles with `busy`
    uint64_t bytes_read = 0, bytes_written = 0;
    std::array<std::vector<uint64_t>, ENGINES> starts, ends;
    std::string problem;   // the first breach of the bus protocol

    // The VCD covers the cycles [trace_from, trace_to) of programs.
    Machine(const char* vcd, uint64_t trace_from, uint64_t trace_to)
        : trace_from_{trace_from}, trace_to_{trace_to} {
        context_.traceEverOn(TRACE);
        top_ = std::make_unique<Vtwillcore>(&context_, "twillcore");
#if TRACE
        if (vcd) {
            top_->trace(&trace_, 99);
            trace_.open(vcd);
        }
#endif
        (void)vcd;
        top_->eval();  // with every clock low, so that the first edge is one
        set(kHost, top_->aresetn, 0);
        for (int i = 0; i < 4; ++i) tick();
        set(kHost, top_->aresetn, 1);
        tick();
        resetting_ = false;
    }

    // Get ready for another program, with another memory: what is counted starts anew.
    void begin(const Settings& settings, uint8_t* memory, uint64_t size) {
        settings_ = settings, memory_ = memory, size_ = size;
        cycle = bytes_read = bytes_written = 0;
        for (auto* events : {&starts, &ends})
            for (auto& of_engine : *events) of_engine.clear();
    }

    // Let transfers end, a memory that hung being alive again; return whether all of them have within so many cycles.
    bool settle(uint64_t cycles) {
        settings_.hang = kNever;
        while (cycles-- && (!reads_.empty() || !writes_.empty() || !responses_.empty())) tick();
        return reads_.empty() && writes_.empty() && responses_.empty();
    }

    ~Machine() {
#if TRACE
        if (trace_.isOpen()) trace_.close();
#endif
        top_->final();
    }

    unsigned write(uint32_t address, uint32_t value) {
        set(kHost, top_->s_axi_awaddr, address);
        set(kHost, top_->s_axi_wdata, value);
        set(kHost, top_->s_axi_wstrb, 0xF);
        set(kHost, top_->s_axi_awvalid, 1);
        set(kHost, top_->s_axi_wvalid, 1);
        set(kHost, top_->s_axi_bready, 1);
        while (top_->s_axi_awvalid || top_->s_axi_wvalid) {
            tick();
            if (took_aw_) set(kHost, top_->s_axi_awvalid, 0);
            if (took_w_) set(kHost, top_->s_axi_wvalid, 0);
        }
        while (!took_b_) tick();
        set(kHost, top_->s_axi_bready, 0);
        return response_;
    }

    uint32_t read(uint32_t address) {
        set(kHost, top_->s_axi_araddr, address);
        set(kHost, top_->s_axi_arvalid, 1);
        set(kHost, top_->s_axi_rready, 1);
        do tick();
        while (!took_ar_);
        set(kHost, top_->s_axi_arvalid, 0);
        while (!took_r_) tick();
        set(kHost, top_->s_axi_rready, 0);
        return value_;
    }

    // Return whether the program has ended.
    bool run(uint64_t cycles) {
        while (cycles--) {
            tick();
            if (done_ || !problem.empty()) return true;
        }
        return false;
    }

  private:
    struct ReadBurst {
        uint64_t address;
        unsigned beats;
        uint64_t from;  // tick from which the first beat may be offered
        unsigned id;
    };
    struct WriteBurst {
        uint64_t address;
        unsigned beats;
        unsigned id;
        unsigned response;
    };
    struct WriteBeat {
        uint8_t data[AXI_BYTES];
        uint64_t strobe;
        bool last;
    };
    struct WriteResponse {
        unsigned response;
        uint64_t from;
        unsigned id;
    };

    Settings settings_{1, 1, 1, kNever, kNever, kNever};
    uint64_t trace_from_, trace_to_;
    uint8_t* memory_ = nullptr;
    uint64_t size_ = 0;
    VerilatedContext context_;
    std::unique_ptr<Vtwillcore> top_;
#if TRACE
    VerilatedVcdC trace_;
#endif

    std::deque<ReadBurst> reads_;
    std::deque<WriteBurst> writes_;
    std::deque<WriteBeat> beats_;
    std::deque<WriteResponse> responses_;
    uint64_t next_read_ = 0, next_write_ = 0;  // ticks from which the next data beat may pass
    bool done_ = false;
    bool resetting_ = true;
    unsigned changed_ = ~0u;  // groups of inputs

    bool took_aw_ = false, took_w_ = false, took_b_ = false, took_ar_ = false, took_r_ = false;
    unsigned response_ = 0;
    uint32_t value_ = 0;

    bool stalled_ar_ = false, stalled_w_ = false;
    uint32_t ar_address_ = 0;
    unsigned ar_length_ = 0;
    WriteBeat stalled_beat_{};

    void tick() {
        drive();
        top_->aclk = 0;
#if GATED
#define FALL(part) top_->part##_clock = 0;
        PARTS(FALL)
        top_->read_inputs_clock = changed_ >> kRead & 1;
        top_->write_inputs_clock = changed_ >> kWrite & 1;
        top_->host_inputs_clock = changed_ >> kHost & 1;
        changed_ = 0;
#endif
        top_->eval();
#if TRACE
        const bool traced = trace_.isOpen() && in_window();
        if (traced) trace_.dump(ticks * 10);
#endif
        sample();
        top_->aclk = 1;
#if GATED
        top_->read_inputs_clock = top_->write_inputs_clock = top_->host_inputs_clock = 0;
#define RISE(part) top_->part##_clock = top_->part##_awake | resetting_;
        PARTS(RISE)
#endif
        top_->eval();
#if TRACE
        if (traced) trace_.dump(ticks * 10 + 5);
#endif
        ++ticks;
    }

    bool in_window() const {
        if (trace_from_ == 0 && trace_to_ == kNever) return true;
        return top_->busy && trace_from_ <= cycle && cycle < trace_to_;
    }

    bool hangs() const { return cycle >= settings_.hang; }

    // The memory's outputs in this cycle, from its state alone.
    void drive() {
        const bool alive = !hangs();
        set(kRead, top_->m_axi_arready, alive && reads_.size() < settings_.outstanding);
        const bool offer = alive && !reads_.empty() && ticks >= reads_.front().from && ticks >= next_read_;
        set(kRead, top_->m_axi_rvalid, offer);
        if (offer) {
            const ReadBurst& burst = reads_.front();
            const bool good = burst.address + AXI_BYTES <= size_ && !covers(burst.address, settings_.read_fault);
            if (good) std::memcpy(&top_->m_axi_rdata, memory_ + burst.address, AXI_BYTES);
            else std::memset(&top_->m_axi_rdata, 0, AXI_BYTES);
            changed_ |= 1u << kRead;
            set(kRead, top_->m_axi_rresp, good ? kOkay : kSlaveError);
            set(kRead, top_->m_axi_rlast, burst.beats == 1);
            set(kRead, top_->m_axi_rid, burst.id);
        }
        set(kWrite, top_->m_axi_awready, alive);
        set(kWrite, top_->m_axi_wready, alive && ticks >= next_write_);
        const bool answer = alive && !responses_.empty() && ticks >= responses_.front().from;
        set(kWrite, top_->m_axi_bvalid, answer);
        if (answer) {
            set(kWrite, top_->m_axi_bresp, responses_.front().response);
            set(kWrite, top_->m_axi_bid, responses_.front().id);
        }
    }

    // Set an input, and remember in which group (`Inputs` in hw/clocks.py) something has changed.
    template <typename Port>
    void set(unsigned group, Port& port, unsigned value) {
        if (port == value) return;
        port = value;
        changed_ |= 1u << group;
    }

    // What the rising edge at the end of this cycle sees.
    void sample() {
        took_aw_ = top_->s_axi_awvalid && top_->s_axi_awready;
        took_w_ = top_->s_axi_wvalid && top_->s_axi_wready;
        took_b_ = top_->s_axi_bvalid && top_->s_axi_bready;
        took_ar_ = top_->s_axi_arvalid && top_->s_axi_arready;
        took_r_ = top_->s_axi_rvalid && top_->s_axi_rready;
        if (took_b_) response_ = top_->s_axi_bresp;
        if (took_r_) value_ = top_->s_axi_rdata;

        if (top_->aresetn) {
            sample_reads();
            sample_writes();
        }
        if (top_->trace_start) record(starts, top_->trace_start);
        if (top_->trace_end) record(ends, top_->trace_end);
        done_ = top_->done;
        if (top_->busy) ++cycle;
    }

    void record(std::array<std::vector<uint64_t>, ENGINES>& events, unsigned mask) {
        for (unsigned engine = 0; engine < ENGINES; ++engine)
            if (mask >> engine & 1) events[engine].push_back(cycle);
    }

    void sample_reads() {
        // The beat first: a burst accepted in this cycle cannot offer one before the next.
        if (top_->m_axi_rvalid && top_->m_axi_rready) {
            ReadBurst& burst = reads_.front();
            burst.address += AXI_BYTES;
            if (top_->busy) bytes_read += AXI_BYTES;  // FETCH reads ahead, even beyond HALT
            next_read_ = ticks + settings_.beat_cycles;
            if (--burst.beats == 0) reads_.pop_front();
        }
        const bool valid = top_->m_axi_arvalid, ready = top_->m_axi_arready;
        if (stalled_ar_ && !(valid && top_->m_axi_araddr == ar_address_ && top_->m_axi_arlen == ar_length_))
            complain("ARVALID withdrawn, or its address changed, before ARREADY");
        if (valid && ready) {
            const unsigned beats = top_->m_axi_arlen + 1u;
            check_burst("read", top_->m_axi_araddr, beats, top_->m_axi_arsize, top_->m_axi_arburst);
            reads_.push_back({top_->m_axi_araddr, beats, ticks + settings_.latency, top_->m_axi_arid});
        }
        stalled_ar_ = valid && !ready;
        ar_address_ = top_->m_axi_araddr;
        ar_length_ = top_->m_axi_arlen;
    }

    void sample_writes() {
        if (top_->m_axi_bvalid && top_->m_axi_bready) responses_.pop_front();
        if (top_->m_axi_awvalid && top_->m_axi_awready) {
            const unsigned beats = top_->m_axi_awlen + 1u;
            check_burst("write", top_->m_axi_awaddr, beats, top_->m_axi_awsize, top_->m_axi_awburst);
            writes_.push_back({top_->m_axi_awaddr, beats, top_->m_axi_awid, kOkay});
        }
        if (top_->m_axi_wvalid) {
            WriteBeat beat{};
            std::memcpy(beat.data, &top_->m_axi_wdata, AXI_BYTES);
            std::memcpy(&beat.strobe, &top_->m_axi_wstrb, (AXI_BYTES + 7) / 8);
            beat.last = top_->m_axi_wlast;
            if (stalled_w_ && (std::memcmp(beat.data, stalled_beat_.data, AXI_BYTES) != 0 ||
                               beat.strobe != stalled_beat_.strobe || beat.last != stalled_beat_.last))
                complain("WDATA changed before WREADY");
            stalled_w_ = !top_->m_axi_wready;
            if (stalled_w_) {
                stalled_beat_ = beat;
            } else {
                bytes_written += AXI_BYTES;
                next_write_ = ticks + settings_.beat_cycles;
                beats_.push_back(beat);
            }
        } else if (stalled_w_) {
            complain("WVALID withdrawn before WREADY");
        }
        while (!writes_.empty() && !beats_.empty()) {
            store(writes_.front(), beats_.front());
            beats_.pop_front();
        }
    }

    void store(WriteBurst& burst, const WriteBeat& beat) {
        if (burst.address + AXI_BYTES > size_ || covers(burst.address, settings_.write_fault)) {
            burst.response = kSlaveError;
        } else {
            for (unsigned i = 0; i < AXI_BYTES; ++i)
                if (beat.strobe >> i & 1) memory_[burst.address + i] = beat.data[i];
        }
        burst.address += AXI_BYTES;
        if (beat.last != (burst.beats == 1)) complain("WLAST at the wrong beat");
        if (--burst.beats == 0) {
            responses_.push_back({burst.response, ticks + settings_.latency, burst.id});
            writes_.pop_front();
        }
    }

    static bool covers(uint64_t address, uint64_t fault) {
        return fault != kNever && address <= fault && fault < address + AXI_BYTES;
    }

    void check_burst(const char* what, uint64_t address, unsigned beats, unsigned size, unsigned burst) {
        char text[160];
        const uint64_t end = address + uint64_t{beats} * AXI_BYTES;
        const char* wrong = address % AXI_BYTES               ? "is not aligned"
                            : address / kPage != (end - 1) / kPage ? "crosses 4 KiB"
                            : size != log2_of(AXI_BYTES)      ? "is not of full width"
                            : burst != 1                      ? "is not incrementing"
                                                              : nullptr;
        if (!wrong) return;
        std::snprintf(text, sizeof text, "%s burst of %u beats at 0x%llx %s", what, beats,
                      static_cast<unsigned long long>(address), wrong);
        complain(text);
    }

    void complain(const char* text) {
        if (problem.empty()) problem = std::string{text} + " (tick " + std::to_string(ticks) + ")";
    }
};

extern "C" {

Machine* machine_open(const char* vcd, uint64_t trace_from, uint64_t trace_to) {
    return new Machine{vcd, trace_from, trace_to};
}
void machine_begin(Machine* machine, const Settings* settings, uint8_t* memory, uint64_t size) {
    machine->begin(*settings, memory, size);
}
int machine_settle(Machine* machine, uint64_t cycles) { return machine->settle(cycles); }
void machine_close(Machine* machine) { delete machine; }
uint32_t machine_read(Machine* machine, uint32_t address) { return machine->read(address); }
uint32_t machine_write(Machine* machine, uint32_t address, uint32_t value) {
    return machine->write(address, value);
}
int machine_run(Machine* machine, uint64_t cycles) { return machine->run(cycles); }
uint64_t machine_cycle(const Machine* machine) { return machine->cycle; }
uint64_t machine_bytes_read(const Machine* machine) { return machine->bytes_read; }
uint64_t machine_bytes_written(const Machine* machine) { return machine->bytes_written; }
const char* machine_problem(const Machine* machine) { return machine->problem.c_str(); }

uint64_t machine_events(const Machine* machine, int ends, unsigned engine, const uint64_t** cycles) {
    const auto& events = (ends ? machine->ends : machine->starts)[engine];
    *cycles = events.data();
    return events.size();
}

}  // extern "C"
