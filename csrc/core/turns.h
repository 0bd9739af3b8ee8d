// Warpgroups that take turns: while one feeds the matrix unit, the others compute their softmax.
#pragma once
#include <ptx/named_barrier.h>

namespace core {

// Uses the named barriers first ... first + Groups - 1.
template <int Groups, int First>
struct Turns {
    static constexpr int THREADS = 2 * ptx::WARPGROUP;  // the one that waits and the one before it
    int group;

    // Group 0 goes first.
    DEVICE explicit Turns(int group) : group(group) {
        if (group == Groups - 1) pass();
    }
    DEVICE void wait() const { ptx::named_barrier_sync(First + group, THREADS); }
    DEVICE void pass() const { ptx::named_barrier_arrive(First + (group + 1) % Groups, THREADS); }
};

}  // namespace core
