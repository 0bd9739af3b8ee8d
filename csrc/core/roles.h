// How a block divides its work: one thread of the first warpgroup brings the data, the others consume it.
#pragma once
#include <ptx/registers.h>
#include <ptx/shuffle.h>
#include <ptx/target.h>

namespace core {

// A kernel has init_rings(), produce(), consume(group), PRODUCER_REGISTERS and CONSUMER_REGISTERS.
template <class Kernel>
DEVICE void run_roles(const Kernel& kernel) {
    kernel.init_rings();
    if (ptx::warpgroup_index() == 0) {
        ptx::give_registers<Kernel::PRODUCER_REGISTERS>();
        if (ptx::warp_index() == 0 && ptx::elect()) kernel.produce();
    } else {
        ptx::take_registers<Kernel::CONSUMER_REGISTERS>();
        kernel.consume(ptx::warpgroup_index() - 1);
    }
}

}  // namespace core
