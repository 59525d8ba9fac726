// What the operators of one file call of those of another.

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include "kernels.h"
#include "layers.h"

// A scan in two directions, with softplus, where Δ, B and C are projections of what is scanned: A (2, D, N), skip
// (2, D), delta_bias (2, D) and to_delta (2, R, D).
struct ScanWeights {
  at::Tensor A, skip, delta_bias, to_delta;
  long D, N, rank;
  ScanWeights(const at::Tensor& A, const at::Tensor& skip, const at::Tensor& delta_bias, const at::Tensor& to_delta);
  long inputs() const { return 2 * (rank + 2 * N); }  // numbers of a row of projections, as Projected has them
};

// y (B, L, D) for u (B, L, D) and rows (B, L, inputs()), of float or Bfloat16.
template <typename T>
void projected_scan(const ScanWeights& weights, long B, long L, const T* u, const T* rows, float* y, Room& room);

// An operator of this library as the dispatcher calls it, which knows tensors without data as well.
template <typename Signature>
auto dispatched(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}
