// D of products in flight. The lanes' registers hold a mark meanwhile, so that reading or writing them early shows.
#pragma once
#include <vector>

namespace emulator {

class Accumulator {
  public:
    static constexpr int LANES = 128, ROWS = 64;

    explicit Accumulator(int columns) : columns_(columns), matrix_(ROWS * columns) {}

    // Takes the numbers out of a lane's registers d.
    void capture(int lane, float* d);

    // Gives the lanes their registers back; reports, where asked to, what they wrote meanwhile.
    void land(bool checks);

    // Whether these are a lane's registers of this accumulator.
    bool is(int lane, const float* d, int columns) const { return registers_[lane] == d && columns_ == columns; }

    // ROWS x columns.
    std::vector<float>& matrix() { return matrix_; }

    int in_flight = 0;  // products

  private:
    int columns_;
    std::vector<float> matrix_;
    float* registers_[LANES] = {};
};

}  // namespace emulator
