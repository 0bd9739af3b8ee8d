#include "instances/softmax_forward.h"

template void softmax_forward<ptx::bf16, 256>(const SoftmaxForwardCall&);
