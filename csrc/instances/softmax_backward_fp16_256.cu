#include "instances/softmax_backward.h"

template void softmax_backward<ptx::fp16, 256>(const SoftmaxBackwardCall&);
