// The kernels for processors with AVX2; kernels.cpp asks the processor before it uses them.

#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define VECTOR_WIDTH 8
#include "batch_norm_kernel.h"
#include "depthwise_kernel.h"
#include "product_kernel.h"
#include "scan_kernel.h"
#include "wavelet_kernel.h"

#ifdef __clang__
#pragma clang attribute pop
#endif

extern const Kernels kAvx2Kernels = KERNELS;
#endif
