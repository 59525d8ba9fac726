// The selective scan on CPUs as two PyTorch operators; the arithmetic is in scan_kernel.h.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

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

// All but delta, B and C.
Scan problem(const at::Tensor& u, const at::Tensor& A, const Optional& D, const Optional& bias, bool softplus,
             long groups) {
  Scan p{};
  p.images = u.size(0), p.channels = u.size(1), p.L = u.size(2);
  p.K = A.size(0), p.N = A.size(2), p.G = groups;
  p.tiles = (p.L + kSteps - 1) / kSteps;
  p.blocks = (p.channels / p.G + kLanes - 1) / kLanes, p.parts = p.G * p.blocks;
  p.softplus = softplus;
  p.u = view(u);
  p.A = A.const_data_ptr<float>(), p.D = floats(D), p.bias = floats(bias);
  return p;
}

Scan problem(const at::Tensor& u, const at::Tensor& delta, const at::Tensor& A, const at::Tensor& B,
                const at::Tensor& C, const Optional& D, const Optional& bias, bool softplus) {
  check(u, delta, A, B, C, D, bias);
  Scan p = problem(u, A, D, bias, softplus, B.size(2));
  p.delta = view(delta);
  p.B = B.const_data_ptr<float>(), p.C = C.const_data_ptr<float>();
  return p;
}

at::Tensor like(const at::Tensor& x) { return at::empty_like(x, x.options().dtype(at::kFloat)); }

// y in float32, laid out as u, and the states that enter the tiles.
std::tuple<at::Tensor, at::Tensor> run(Scan& p, const at::Tensor& u, const at::Tensor& A) {
  at::Tensor y = like(u);
  at::Tensor states = at::zeros({p.images, p.K, p.tiles, p.N, p.channels}, A.options());
  p.y = y.data_ptr<float>(), p.u_like = view(y), p.states = states.data_ptr<float>();
  const bool single = u.scalar_type() == at::kFloat;
  for_each_block(p, [&](long image, long group, long channel, long lanes, long) {
    (single ? kernels().scan : kernels().scan_bfloat16)(p, image, group, channel, lanes);
  });
  return {y, states};
}

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& u, const at::Tensor& delta, const at::Tensor& A,
                                           const at::Tensor& B, const at::Tensor& C, const Optional& D,
                                           const Optional& bias, bool softplus) {
  Scan p = problem(u, delta, A, B, C, D, bias, softplus);
  return run(p, u, A);
}

}  // namespace

at::Tensor projected_scan(const at::Tensor& u, const at::Tensor& rows, const at::Tensor& to_delta, const at::Tensor& A,
                          const at::Tensor& D, const at::Tensor& bias) {
  for (const at::Tensor& x : {to_delta, A, D, bias})
    TORCH_CHECK(x.is_contiguous() && x.scalar_type() == at::kFloat && x.dim() > 1 && x.size(0) == 2,
                "scan: expected contiguous float32 weights of two directions");
  const long K = A.size(0), channels = A.size(1), N = A.size(2), rank = to_delta.size(1);
  TORCH_CHECK(u.dim() == 3 && u.size(1) == channels && to_delta.size(2) == channels && D.numel() == K * channels
                  && bias.numel() == K * channels && rows.is_contiguous() && rows.scalar_type() == u.scalar_type()
                  && rows.sizes() == at::IntArrayRef({u.size(0), u.size(2), K * (rank + 2 * N)}),
              "scan: shapes do not fit together");
  Scan p = problem(u, A, D, bias, true, 1);
  p.projected = {rank, rows.size(2), rows.const_data_ptr(), to_delta.const_data_ptr<float>()};
  return std::get<0>(run(p, u, A));
}

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
