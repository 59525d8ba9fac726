// Depth-wise convolutions on CPUs and the gradient of their weights; the arithmetic is in depthwise_kernel.h.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "kernels.h"

namespace {

constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

void check(const at::Tensor& x, int64_t k) {
  TORCH_CHECK(x.dim() == 4, "depthwise: expected (B, C, H, W), given are ", x.dim(), " dimensions");
  TORCH_CHECK(k == 3 || k == 5 || k == 7, "depthwise: kernels of ", k, " pixels are not supported");
}

at::Tensor convolution(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  const long k = weight.size(-1), C = x.size(1);
  check(x, k);
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16,
              "depthwise: expected float32 or bfloat16, given is ", x.scalar_type());
  TORCH_CHECK(C >= 16, "depthwise: fewer than 16 channels");
  TORCH_CHECK(weight.sizes() == at::IntArrayRef({C, 1, k, k}) && (!bias || bias->sizes() == at::IntArrayRef({C})),
              "depthwise: the weights or the bias do not fit to ", C, " channels");
  const at::Tensor in = x.contiguous(kChannelsLast);
  const at::Tensor w = weight.permute({2, 3, 1, 0}).to(at::kFloat).contiguous();
  const at::Tensor b = bias ? bias->to(at::kFloat).contiguous() : at::Tensor();
  const at::Tensor y = at::empty(x.sizes(), x.options().memory_format(kChannelsLast));
  const Depthwise p{x.size(0), C, x.size(2), x.size(3), k, in.const_data_ptr(), w.const_data_ptr<float>(),
                    bias ? b.const_data_ptr<float>() : nullptr, y.data_ptr(), Activation::kNone, C, C};
  const auto rows = x.scalar_type() == at::kFloat ? kernels().depthwise : kernels().depthwise_bfloat16;
  const long grain = std::max(1L, 65536 / std::max(1L, p.W * C * k * k));
  at::parallel_for(0, p.images * p.H, grain, [&](int64_t begin, int64_t end) { rows(p, begin, end); });
  return y;
}

at::Tensor weight_gradient(const at::Tensor& grad, const at::Tensor& x, int64_t k) {
  check(x, k);
  TORCH_CHECK(grad.sizes() == x.sizes(), "depthwise: the gradient has another shape than the input");
  const at::Tensor dy = grad.to(at::kFloat).contiguous(kChannelsLast), in = x.to(at::kFloat).contiguous(kChannelsLast);
  const at::Tensor dweight = at::empty({x.size(1), 1, k, k}, in.options().memory_format(at::MemoryFormat::Contiguous));
  const DepthwiseGradient p{x.size(0), x.size(1), x.size(2), x.size(3), k, dy.const_data_ptr<float>(),
                            in.const_data_ptr<float>(), dweight.data_ptr<float>()};
  const long blocks = (p.C + p.kChannels - 1) / p.kChannels;
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> room(p.room());
    for (int64_t i = begin; i < end; ++i) kernels().depthwise_gradient(p, i * p.kChannels, room.data());
  });
  return dweight;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mmmobilemamba, library) {
  library.def("depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  library.def("depthwise_weight_gradient(Tensor grad, Tensor x, int kernel_size) -> Tensor");
}

TORCH_LIBRARY_IMPL(mmmobilemamba, CPU, library) {
  library.impl("depthwise_conv2d", &convolution);
  library.impl("depthwise_weight_gradient", &weight_gradient);
}
