// Registers that warpgroups give and take.
#pragma once
#include "ptx/target.h"

namespace ptx {

template <int Count>
DEVICE void give_registers() {
    emulator::running_block->registers.give(Count);
}

template <int Count>
DEVICE void take_registers() {
    emulator::running_block->registers.take(Count);
}

}  // namespace ptx
