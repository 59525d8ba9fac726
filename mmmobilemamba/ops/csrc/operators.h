// What the operators of one file call of those of another.

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

// The scan of u (B, D, L) in two directions, with softplus, where Δ, B and C are projections of u: rows
// (B, L, 2 R + 4 N) as Projected has them, to_delta (2, R, D), A (2, D, N), D and bias (2, D). In float32, laid out
// as u.
at::Tensor projected_scan(const at::Tensor& u, const at::Tensor& rows, const at::Tensor& to_delta, const at::Tensor& A,
                          const at::Tensor& D, const at::Tensor& bias);

// An operator of this library as the dispatcher calls it, which knows tensors without data as well.
template <typename Signature>
auto dispatched(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}
