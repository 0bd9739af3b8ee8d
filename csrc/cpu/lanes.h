// Several vectors of lanes at a time, so that one's sums need not wait for its own.
#pragma once
#include <type_traits>

#include "simd.h"

namespace ISA {

// Calls function(integral constant V, lane) for V vectors of lanes from `lane` on, until all of `width` had their turn.
template <class Function>
INLINE void by_lanes(int width, Function function) {
    int lane = 0;
    for (; lane + 4 * LANES <= width; lane += 4 * LANES) function(std::integral_constant<int, 4>(), lane);
    for (; lane < width; lane += LANES) function(std::integral_constant<int, 1>(), lane);
}

}  // namespace ISA
