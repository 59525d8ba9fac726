// The kernels for the instruction set that the compiler assumes by default, and the choice among them all.

#define VECTOR_WIDTH 4
#include "depthwise_kernel.h"
#include "scan_kernel.h"

static const Kernels kBaselineKernels = KERNELS;

const Kernels& kernels() {
#ifdef X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")
      && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
    return kAvx512Kernels;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kAvx2Kernels;
#endif
  return kBaselineKernels;
}
