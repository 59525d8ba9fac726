// Vectors for kernels that are compiled once for every instruction set; see kernels.h.

#pragma once

#include "kernels.h"

#if VECTOR_WIDTH > 4
#include <immintrin.h>
#endif

namespace {

// Vectors of GCC and clang: they compile to the widest instructions of the target, or to several of them.
typedef float Vec __attribute__((vector_size(4 * VECTOR_WIDTH)));
typedef int IntVec __attribute__((vector_size(4 * VECTOR_WIDTH)));
typedef float Vec8 __attribute__((vector_size(32)));
typedef int IntVec8 __attribute__((vector_size(32)));
typedef unsigned short ShortVec __attribute__((vector_size(2 * VECTOR_WIDTH)));
typedef unsigned short ShortVec8 __attribute__((vector_size(16)));

constexpr long kWidth = VECTOR_WIDTH;

static inline Vec load_vec(const float* p) {
  Vec x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}

static inline void store_vec(float* p, Vec x) { __builtin_memcpy(p, &x, sizeof x); }

static inline Vec load_vec(const Bfloat16* p) {
  ShortVec x;
  __builtin_memcpy(&x, p, sizeof x);
  return (Vec)(__builtin_convertvector(x, IntVec) << 16);
}

static inline void store_vec(Bfloat16* p, Vec x) {
#ifdef BFLOAT16_INSTRUCTIONS
  const ShortVec y = (ShortVec)_mm512_cvtneps_pbh((__m512)x);
#else
  const IntVec bits = (IntVec)x, odd = (bits >> 16) & 1;
  const IntVec rounded = ((bits + 0x7fff + odd) >> 16) & 0xffff;
  const ShortVec y = __builtin_convertvector(x == x ? rounded : IntVec{} + 0x7fc0, ShortVec);
#endif
  __builtin_memcpy(p, &y, sizeof y);
}

static inline Vec8 load8(const float* p) {
  Vec8 x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}

static inline Vec8 load8(const Bfloat16* p) {
  ShortVec8 x;
  __builtin_memcpy(&x, p, sizeof x);
  return (Vec8)(__builtin_convertvector(x, IntVec8) << 16);
}

static inline float load1(const float* p) { return *p; }
static inline float load1(const Bfloat16* p) {
  union { unsigned int i; float f; } bits = {(unsigned int)p->bits << 16};
  return bits.f;
}

#define UNROLL _Pragma("GCC unroll 14")

// The first n numbers of a vector, or all of it.
template <typename T>
static inline Vec load_part(const T* p, long n) {
  if (n >= kWidth) return load_vec(p);
  Vec x = {};
  for (long i = 0; i < n; ++i) x[i] = load1(p + i);
  return x;
}

// The larger and the smaller one, b where one is nan: one instruction, of which compilers make two otherwise.
static inline Vec larger(Vec a, Vec b) {
#if VECTOR_WIDTH == 16
  return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif VECTOR_WIDTH == 8
  return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

static inline Vec smaller(Vec a, Vec b) {
#if VECTOR_WIDTH == 16
  return (Vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif VECTOR_WIDTH == 8
  return (Vec)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

// e^x within 2 ulp, as 2^k · e^r with |r| ≤ ln2/2; nan stays nan. Adding 1.5·2^23 rounds x·log2(e) to the
// integer k, and the 127 besides makes the low bits of the sum the exponent field of 2^k. The bounds on x
// make that field 0 and 255 at the ends: e^x is 0 or infinity there.
static inline Vec exp_(Vec x) {
  const Vec low = Vec{} - 88.0f, high = Vec{} + 88.8f;
  x = larger(low, smaller(high, x));
  const Vec shifted = x * 1.44269504f + 12583039.0f;
  const Vec k = shifted - 12583039.0f;
  const Vec r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  Vec p = r * 1.3813144760e-3f + 8.3694187924e-3f;
  p = p * r + 4.1668456048e-2f;
  p = p * r + 1.6666515172e-1f;
  p = p * r + 4.9999994040e-1f;
  p = p * (r * r) + r + 1.0f;
  return p * (Vec)((IntVec)shifted << 23);
}

static inline Vec activated(Vec x, Activation activation) {
  if (activation == Activation::kRelu) return larger(Vec{}, x);
  if (activation == Activation::kSwish) return x / (1.0f + exp_(-x));
  return x;
}

}  // namespace
