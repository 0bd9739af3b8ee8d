#include "instances/softmax_forward.h"

template void softmax_forward<ptx::bf16, 64>(const SoftmaxForwardCall&);
