// Moves registers from the producer's warpgroup to the consumers': each is a multiple of 8, from 24 to 256.
#pragma once
#include "ptx/target.h"

namespace ptx {

template <int Count>
DEVICE void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}

template <int Count>
DEVICE void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
}

}  // namespace ptx
