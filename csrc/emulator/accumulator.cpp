#include "emulator/accumulator.h"

#include <cstring>

#include "emulator/mark.h"
#include "emulator/options.h"
#include "emulator/report.h"

namespace emulator {

namespace {

// Where a lane's register i sits in the matrix.
int row_of(int lane, int i) { return lane / 32 * 16 + lane % 32 / 4 + i / 2 % 2 * 8; }
int column_of(int lane, int i) { return i / 4 * 8 + lane % 4 * 2 + i % 2; }

}  // namespace

bool marks_are_reported() { return options().checks; }

void report_mark(const char* operation) { report(hazard::EARLY_ACCUMULATOR, operation); }

void Accumulator::capture(int lane, float* d) {
    registers_[lane] = d;
    for (int i = 0; i < columns_ / 2; ++i) {
        matrix_[row_of(lane, i) * columns_ + column_of(lane, i)] = d[i];
        std::memcpy(&d[i], &MARK, sizeof(MARK));
    }
}

void Accumulator::land(bool checks) {
    for (int lane = 0; lane < LANES; ++lane) {
        float* d = registers_[lane];
        for (int i = 0; i < columns_ / 2; ++i) {
            if (checks && std::memcmp(&d[i], &MARK, sizeof(MARK)) != 0)
                report(hazard::ACCUMULATOR_MODIFIED, format("register %d of lane %d of the warpgroup", i, lane));
            d[i] = matrix_[row_of(lane, i) * columns_ + column_of(lane, i)];
        }
    }
}

}  // namespace emulator
