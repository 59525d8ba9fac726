// The kernels for processors with AVX-512; kernels.cpp asks the processor before it uses them.

#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,fma,prefer-vector-width=512")
#endif

#define VECTOR_WIDTH 16
#include "all_kernels.h"

#ifdef __clang__
#pragma clang attribute pop
#endif

extern const Kernels kAvx512Kernels = KERNELS;
#endif
