// One instruction set's kernels; compiled once for each, with ISA its name.
#include "kernels/aoa.h"
#include "kernels/backward.h"
#include "kernels/forward.h"
#include "kernels/mask_gradient.h"
#include "kernels/sample.h"
#include "kernels/sparse_backward.h"
#include "kernels/spin.h"
#include "kernels/weights.h"

namespace ISA {

#define TEXT_OF(name) #name
#define NAME_OF(name) TEXT_OF(name)

extern const Kernels kernels;
const Kernels kernels = {NAME_OF(ISA),     LANES,        &forward,      &sample, &weights, &backward, &mask_gradient,
                         &sparse_backward, &aoa_forward, &aoa_backward, &spin};

}  // namespace ISA
