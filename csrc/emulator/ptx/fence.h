// Order between the two ways to reach shared memory.
#pragma once
#include "ptx/target.h"

namespace ptx {

DEVICE void fence_async() { emulator::running_block->order.fence_async(thread_index()); }

}  // namespace ptx
