// The kernels for processors with AVX2; kernels.cpp asks the processor before it uses them.

#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define VECTOR_WIDTH 8
#include "all_kernels.h"

#ifdef __clang__
#pragma clang attribute pop
#endif

extern const Kernels kAvx2Kernels = KERNELS;
#endif
