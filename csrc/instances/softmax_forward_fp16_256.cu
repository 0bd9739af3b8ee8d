#include "instances/softmax_forward.h"

template void softmax_forward<ptx::fp16, 256>(const SoftmaxForwardCall&);
