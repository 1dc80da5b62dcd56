// Clock and serial line of a verilated board design, for fpga/simulation/board.py.
//
// The line is driven and sampled at its pins with a bit time of its own, in clock cycles, which need
// be neither whole nor that of the design. Compiled with -DMODEL=V<module>, -DHEADER="V<module>.h".

#include <cstdint>
#include <deque>
#include <memory>

#include HEADER
#include "verilated.h"

class BoardModel {
  public:
    std::deque<uint8_t> sent;  // by the board
    uint64_t ticks = 0, framing_errors = 0;

    explicit BoardModel(double bit_cycles) : bit_{bit_cycles} {
        top_ = std::make_unique<MODEL>(&context_, "board");
        top_->rx = 1;
    }
    ~BoardModel() { top_->final(); }

    void send(uint8_t byte) { pending_.push_back(byte); }
    unsigned leds() const { return top_->led; }

    // Run until `bytes` have come from the board, or nothing has moved on the line for `idle` cycles.
    void run(uint64_t bytes, uint64_t idle) {
        uint64_t quiet = 0;
        while (sent.size() < bytes && quiet < idle) {
            const bool moves = tick();
            quiet = moves ? 0 : quiet + 1;
        }
    }

    // Run for `cycles`, with the line held low if `broken`.
    void wait(uint64_t cycles, bool broken) {
        broken_ = broken;
        while (cycles--) tick();
        broken_ = false;
    }

  private:
    VerilatedContext context_;
    std::unique_ptr<MODEL> top_;
    double bit_;
    std::deque<uint8_t> pending_;
    bool sending_ = false, receiving_ = false, broken_ = false;
    double send_start_ = 0, receive_start_ = 0;
    unsigned sending_byte_ = 0;  // start bit, data, stop bit
    unsigned received_ = 0, received_bits_ = 0;

    // One clock cycle; return whether the line is in use.
    bool tick() {
        if (!sending_ && !pending_.empty()) {
            sending_ = true;
            send_start_ = static_cast<double>(ticks);
            sending_byte_ = 0x200u | pending_.front() << 1;
            pending_.pop_front();
        }
        if (sending_) {
            const unsigned bit = static_cast<unsigned>((ticks - send_start_) / bit_);
            if (bit >= 10) sending_ = false;
            top_->rx = bit >= 10 ? 1 : sending_byte_ >> bit & 1;
        }
        if (broken_) top_->rx = 0;
        else if (!sending_) top_->rx = 1;

        top_->clk = 0;
        top_->eval();
        top_->clk = 1;
        top_->eval();
        ++ticks;

        if (!receiving_ && !top_->tx) {
            receiving_ = true;
            receive_start_ = static_cast<double>(ticks);
            received_ = received_bits_ = 0;
        }
        if (receiving_ && ticks >= receive_start_ + (received_bits_ + 0.5) * bit_) {
            received_ |= static_cast<unsigned>(top_->tx) << received_bits_;
            if (++received_bits_ == 10) {
                if ((received_ & 1) || !(received_ >> 9)) ++framing_errors;
                else sent.push_back(received_ >> 1 & 0xFF);
                receiving_ = false;
            }
        }
        return sending_ || receiving_ || !pending_.empty();
    }
};

extern "C" {

BoardModel* board_open(double bit_cycles) { return new BoardModel{bit_cycles}; }
void board_close(BoardModel* board) { delete board; }
void board_send(BoardModel* board, const uint8_t* bytes, uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) board->send(bytes[i]);
}
uint64_t board_receive(BoardModel* board, uint8_t* bytes, uint64_t count, uint64_t idle) {
    board->run(count, idle);
    uint64_t taken = 0;
    for (; taken < count && !board->sent.empty(); ++taken) {
        bytes[taken] = board->sent.front();
        board->sent.pop_front();
    }
    return taken;
}
uint64_t board_waiting(const BoardModel* board) { return board->sent.size(); }
void board_wait(BoardModel* board, uint64_t cycles, int broken) { board->wait(cycles, broken); }
unsigned board_leds(const BoardModel* board) { return board->leds(); }
uint64_t board_ticks(const BoardModel* board) { return board->ticks; }
uint64_t board_framing_errors(const BoardModel* board) { return board->framing_errors; }

}  // extern "C"
