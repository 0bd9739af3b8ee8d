#include "instances/softmax_backward.h"

template void softmax_backward<ptx::bf16, 256>(const SoftmaxBackwardCall&);
