#include "instances/sample_forward.h"

template void sample_forward<ptx::bf16, 256>(const SampleForwardCall&);
