#include "instances/sample_forward.h"

template void sample_forward<ptx::fp16, 256>(const SampleForwardCall&);
