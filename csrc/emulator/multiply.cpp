#include "emulator/multiply.h"

#include <cstring>

#include "emulator/operand.h"

namespace emulator {

namespace {

constexpr int ROWS = 64, WIDTH = 8;

// Explicit vectors, so that builds without much optimisation are fast as well.
typedef float Strip __attribute__((vector_size(WIDTH * sizeof(float))));

inline Strip load(const float* from) {
    Strip strip;
    std::memcpy(&strip, from, sizeof(strip));
    return strip;
}

inline void store(float* to, const Strip& strip) { std::memcpy(to, &strip, sizeof(strip)); }

}  // namespace

// Four rows and two strips at a time stay in vector registers over the whole depth.
void multiply(float* d, const float* a, const float* b, int columns) {
    for (int row = 0; row < ROWS; row += 4) {
        for (int first = 0; first < columns; first += 2 * WIDTH) {
            float* at = d + row * columns + first;
            Strip d00 = load(at), d01 = load(at + WIDTH);
            Strip d10 = load(at + columns), d11 = load(at + columns + WIDTH);
            Strip d20 = load(at + 2 * columns), d21 = load(at + 2 * columns + WIDTH);
            Strip d30 = load(at + 3 * columns), d31 = load(at + 3 * columns + WIDTH);
            for (int depth = 0; depth < DEPTH; ++depth) {
                const Strip b0 = load(b + depth * columns + first), b1 = load(b + depth * columns + first + WIDTH);
                const float* factor = a + row * DEPTH + depth;
                d00 += factor[0] * b0, d01 += factor[0] * b1;
                d10 += factor[DEPTH] * b0, d11 += factor[DEPTH] * b1;
                d20 += factor[2 * DEPTH] * b0, d21 += factor[2 * DEPTH] * b1;
                d30 += factor[3 * DEPTH] * b0, d31 += factor[3 * DEPTH] * b1;
            }
            store(at, d00), store(at + WIDTH, d01);
            store(at + columns, d10), store(at + columns + WIDTH, d11);
            store(at + 2 * columns, d20), store(at + 2 * columns + WIDTH, d21);
            store(at + 3 * columns, d30), store(at + 3 * columns + WIDTH, d31);
        }
    }
}

}  // namespace emulator
