#include "instances/softmax_forward.h"

template void softmax_forward<ptx::fp16, 128>(const SoftmaxForwardCall&);
