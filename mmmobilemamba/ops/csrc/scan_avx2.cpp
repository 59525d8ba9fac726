// The scan for processors with AVX2; selective_scan.cpp asks the processor before it uses it.

#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define SCAN_VECTOR_WIDTH 8
#include "scan_kernel.h"

#ifdef __clang__
#pragma clang attribute pop
#endif

extern const Kernels kAvx2Kernels = kKernels;
#endif
