// The kernels for processors with AVX-512 and its instructions for bfloat16, which round as many numbers at once.

#include "kernels.h"

#ifdef KERNELS_BFLOAT16
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx512bf16,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx512bf16,fma,prefer-vector-width=512")
#endif

#define VECTOR_WIDTH 16
#define BFLOAT16_INSTRUCTIONS
#include "all_kernels.h"

#ifdef __clang__
#pragma clang attribute pop
#endif

extern const Kernels kAvx512Bfloat16Kernels = KERNELS;
#endif
