// The kernels for the instruction set that the compiler assumes by default, and the choice among them all.

#include <cstdlib>
#include <cstring>

#define VECTOR_WIDTH 4
#include "all_kernels.h"

static const Kernels kBaselineKernels = KERNELS;

static const Kernels& chosen() {
#ifdef KERNELS_X86
  // The variable that PyTorch obeys in the choice of its own kernels.
  const char* const most = std::getenv("ATEN_CPU_CAPABILITY");
  const auto excluded = [&](const char* by) { return most && !std::strcmp(most, by); };
  if (excluded("default")) return kBaselineKernels;
  if (!excluded("avx2") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")
      && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")) {
#ifdef KERNELS_BFLOAT16
    if (!excluded("avx512") && __builtin_cpu_supports("avx512bf16")) return kAvx512Bfloat16Kernels;
#endif
    return kAvx512Kernels;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kAvx2Kernels;
#endif
  return kBaselineKernels;
}

const Kernels& kernels() {
  static const Kernels& fastest = chosen();
  return fastest;
}
