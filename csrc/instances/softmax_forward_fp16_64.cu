#include "instances/softmax_forward.h"

template void softmax_forward<ptx::fp16, 64>(const SoftmaxForwardCall&);
