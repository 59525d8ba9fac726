// The kernels for the instruction set that the compiler assumes by default, and the choice among them all.

#include <cstdlib>
#include <cstring>

#define VECTOR_WIDTH 4
#include "batch_norm_kernel.h"
#include "depthwise_kernel.h"
#include "product_kernel.h"
#include "scan_kernel.h"
#include "wavelet_kernel.h"

static const Kernels kBaselineKernels = KERNELS;

static const Kernels& chosen() {
#ifdef KERNELS_X86
  // The variable that PyTorch obeys in the choice of its own kernels.
  const char* const most = std::getenv("ATEN_CPU_CAPABILITY");
  const bool allowed = !most || std::strcmp(most, "default");
  if (allowed && (!most || std::strcmp(most, "avx2")) && __builtin_cpu_supports("avx512f")
      && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
    return kAvx512Kernels;
  if (allowed && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kAvx2Kernels;
#endif
  return kBaselineKernels;
}

const Kernels& kernels() {
  static const Kernels& fastest = chosen();
  return fastest;
}
