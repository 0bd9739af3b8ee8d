// Order between the two ways to reach shared memory.
#pragma once
#include "ptx/target.h"

namespace ptx {

// This thread's ordinary stores to shared memory become visible to the copy engine and the matrix unit;
// the threads still synchronise afterwards.
DEVICE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

}  // namespace ptx
