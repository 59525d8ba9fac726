// Products of matrices with packed weights, and how loops over pixels are cut into pieces.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <type_traits>
#include <vector>

#include "kernels.h"

// Weights of a convolution as pack_weights gives them, with what the packed form does not tell.
struct Linear {
  at::Tensor weight, bias;
  long K, N;
};

// Packed `weight` and float32 `bias` (N) of a product with K inputs.
Linear linear(const at::Tensor& weight, const at::Tensor& bias, long K);

// Rows of p.x times the weights to rows of p.y. Not in a parallel region, threads share the columns.
void multiply(const Linear& weights, Product p, long rows, float);
void multiply(const Linear& weights, Product p, long rows, Bfloat16);

// From one row of K numbers to the next, with room for zeros where those make products faster.
long padded_stride(long K, float);
long padded_stride(long K, Bfloat16);

// Memory of this thread that the next call with the same slot overwrites.
enum class Slot { kProduct, kWide, kInput, kHidden };
void* scratch(Slot slot, size_t bytes);

template <typename T>
T* scratch(Slot slot, long numbers) {
  return (T*)scratch(slot, numbers * sizeof(T));
}

// run(begin, end) for all rows of images, in strips whose intermediate results stay in the second-level cache.
// Where there are too `few` pixels for each thread, one strip: the loops inside of it are parallel then, and every
// thread reads its part of the weights only.
template <typename F>
void for_strips(long rows, long pixels_per_row, const F& run, long few = 96) {
  constexpr long kPixels = 128;
  const long threads = at::get_num_threads(), pixels = rows * pixels_per_row;
  if (rows < threads || pixels < threads * few) return run(0, rows);
  const long least = (pixels + kPixels - 1) / kPixels;
  const long strips = std::min(rows, (least + threads - 1) / threads * threads);
  at::parallel_for(0, strips, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run(rows * i / strips, rows * (i + 1) / strips);
  });
}
