// The selective scan on CPUs as two PyTorch operators; the arithmetic is in scan_kernel.h.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <type_traits>

#include "kernels.h"
#include "operators.h"

namespace {

template <typename F>
void for_each_block(const Scan& p, const F& run) {
  at::parallel_for(0, p.images * p.parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const long image = i / p.parts, part = i % p.parts, group = part / p.blocks;
      const long width = p.channels / p.G, offset = part % p.blocks * kLanes;
      const long lanes = width - offset < kLanes ? width - offset : kLanes;
      run(image, group, group * width + offset, lanes, part);
    }
  });
}

View view(const at::Tensor& x) {  // (image, D, L) or (image, K, D, L)
  const long last = x.dim() - 1;
  return {x.const_data_ptr(), x.stride(0), x.dim() == 4 ? x.stride(1) : 0, x.stride(last - 1), x.stride(last)};
}

const float* floats(const std::optional<at::Tensor>& x) {
  return x ? x->const_data_ptr<float>() : nullptr;
}

using Optional = std::optional<at::Tensor>;

void check(const at::Tensor& u, const at::Tensor& delta, const at::Tensor& A, const at::Tensor& B,
           const at::Tensor& C, const Optional& D, const Optional& bias) {
  TORCH_CHECK(u.dim() == 3 && delta.dim() == 4 && A.dim() == 3 && B.dim() == 5, "scan: wrong dimensions");
  TORCH_CHECK(u.scalar_type() == delta.scalar_type()
                  && (u.scalar_type() == at::kFloat || u.scalar_type() == at::kBFloat16),
              "scan: u and delta must both be float32 or both bfloat16");
  for (const Optional& x : {Optional(A), Optional(B), Optional(C), D, bias})
    TORCH_CHECK(!x || (x->is_contiguous() && x->scalar_type() == at::kFloat),
                "scan: A, B, C, D and delta_bias must be contiguous float32");
  TORCH_CHECK(B.sizes() == C.sizes() && B.size(0) == u.size(0) && B.size(1) == A.size(0)
                  && u.size(1) % B.size(2) == 0 && B.size(3) == A.size(2) && B.size(4) == u.size(2)
                  && A.size(1) == u.size(1) && delta.size(0) == u.size(0) && delta.size(1) == A.size(0)
                  && delta.size(2) == u.size(1) && delta.size(3) == u.size(2) && A.size(0) <= 2,
              "scan: shapes do not fit together");
  for (const Optional& x : {D, bias})
    TORCH_CHECK(!x || x->numel() == A.size(0) * A.size(1), "scan: D and delta_bias must be (K, D)");
}

// All but u, delta, B and C.
Scan problem(long images, long L, const at::Tensor& A, const Optional& D, const Optional& bias, bool softplus,
             long groups) {
  Scan p{};
  p.images = images, p.L = L;
  p.K = A.size(0), p.channels = A.size(1), p.N = A.size(2), p.G = groups;
  p.tiles = (p.L + kSteps - 1) / kSteps;
  p.blocks = (p.channels / p.G + kLanes - 1) / kLanes, p.parts = p.G * p.blocks;
  p.softplus = softplus;
  p.A = A.const_data_ptr<float>(), p.D = floats(D), p.bias = floats(bias);
  return p;
}

Scan problem(const at::Tensor& u, const at::Tensor& delta, const at::Tensor& A, const at::Tensor& B,
                const at::Tensor& C, const Optional& D, const Optional& bias, bool softplus) {
  check(u, delta, A, B, C, D, bias);
  Scan p = problem(u.size(0), u.size(2), A, D, bias, softplus, B.size(2));
  p.u = view(u), p.delta = view(delta);
  p.B = B.const_data_ptr<float>(), p.C = C.const_data_ptr<float>();
  return p;
}

at::Tensor like(const at::Tensor& x) { return at::empty_like(x, x.options().dtype(at::kFloat)); }

void run(const Scan& p, bool single) {
  for_each_block(p, [&](long image, long group, long channel, long lanes, long) {
    (single ? kernels().scan : kernels().scan_bfloat16)(p, image, group, channel, lanes);
  });
}

// y in float32, laid out as u, and the states that enter the tiles.
std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& u, const at::Tensor& delta, const at::Tensor& A,
                                           const at::Tensor& B, const at::Tensor& C, const Optional& D,
                                           const Optional& bias, bool softplus) {
  Scan p = problem(u, delta, A, B, C, D, bias, softplus);
  at::Tensor y = like(u);
  at::Tensor states = at::zeros({p.images, p.K, p.tiles, p.N, p.channels}, A.options());
  p.y = y.data_ptr<float>(), p.u_like = view(y), p.states = states.data_ptr<float>();
  run(p, u.scalar_type() == at::kFloat);
  return {y, states};
}

}  // namespace

ScanWeights::ScanWeights(const at::Tensor& A, const at::Tensor& skip, const at::Tensor& delta_bias,
                         const at::Tensor& to_delta)
    : A(A), skip(skip), delta_bias(delta_bias), to_delta(to_delta) {
  for (const at::Tensor& x : {A, skip, delta_bias, to_delta})
    TORCH_CHECK(x.is_contiguous() && x.scalar_type() == at::kFloat && x.dim() > 1 && x.size(0) == 2,
                "scan: expected contiguous float32 weights of two directions");
  TORCH_CHECK(A.dim() == 3 && to_delta.dim() == 3 && to_delta.size(2) == A.size(1) && skip.numel() == 2 * A.size(1)
                  && delta_bias.numel() == skip.numel(),
              "scan: shapes do not fit together");
  D = A.size(1), N = A.size(2), rank = to_delta.size(1);
}

template <typename T>
void projected_scan(const ScanWeights& w, long B, long L, const T* u, const T* rows, float* y, Room& room) {
  Scan p = problem(B, L, w.A, w.skip, w.delta_bias, true, 1);
  p.u = p.u_like = {u, L * w.D, 0, 1, w.D};
  p.projected = {w.rank, w.inputs(), rows, w.to_delta.const_data_ptr<float>()};
  const long states = p.images * p.K * p.tiles * p.N * p.channels;
  p.y = y, p.states = (float*)room.take(states * sizeof(float));
  std::fill_n(p.states, states, 0.0f);
  run(p, std::is_same_v<T, float>);
}

template void projected_scan(const ScanWeights&, long, long, const float*, const float*, float*, Room&);
template void projected_scan(const ScanWeights&, long, long, const Bfloat16*, const Bfloat16*, float*, Room&);

namespace {

// ScanGradients of u and delta in float32; those of A, D and bias per image; those of B and C per image,
// direction and block of channels.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& grad, const at::Tensor& states, const at::Tensor& u, const at::Tensor& delta,
    const at::Tensor& A, const at::Tensor& B, const at::Tensor& C, const Optional& D, const Optional& bias,
    bool softplus) {
  Scan p = problem(u, delta, A, B, C, D, bias, softplus);
  at::Tensor du = like(u), ddelta = like(delta);
  at::Tensor dA = at::zeros({p.images, p.K, p.channels, p.N}, A.options());
  at::Tensor dB = at::zeros({p.images, p.K, p.parts, p.N, p.L}, A.options()), dC = at::empty_like(dB);
  at::Tensor dD = at::zeros({p.images, p.K, p.channels}, A.options()), dbias = at::empty_like(dD);
  at::Tensor carried = at::zeros({p.images, p.K, p.N, p.channels}, A.options());
  p.u_like = view(du), p.delta_like = view(ddelta);
  p.states = states.data_ptr<float>();
  TORCH_CHECK(grad.sizes() == u.sizes() && grad.scalar_type() == at::kFloat, "scan: wrong gradient");
  const ScanGradients g{view(grad), du.data_ptr<float>(), ddelta.data_ptr<float>(),
                    dA.data_ptr<float>(), dB.data_ptr<float>(), dC.data_ptr<float>(), dD.data_ptr<float>(),
                    dbias.data_ptr<float>(), carried.data_ptr<float>()};
  const bool single = u.scalar_type() == at::kFloat;
  for_each_block(p, [&](long image, long group, long channel, long lanes, long part) {
    (single ? kernels().scan_backward : kernels().scan_backward_bfloat16)(p, g, image, group, channel, lanes, part);
  });
  return {du, ddelta, dA, dB, dC, dD, dbias};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mmmobilemamba, library) {
  library.def("native_scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias, "
              "bool delta_softplus) -> (Tensor y, Tensor states)");
  library.def("native_scan_backward(Tensor grad, Tensor states, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, "
              "Tensor? D, Tensor? delta_bias, bool delta_softplus) "
              "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(mmmobilemamba, CPU, library) {
  library.impl("native_scan", &forward);
  library.impl("native_scan_backward", &backward);
}
