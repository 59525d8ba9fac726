// Depth-wise convolutions on CPUs, and their gradient; the arithmetic is in depthwise_kernel.h.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "kernels.h"
#include "operators.h"

namespace {

using Optional = std::optional<at::Tensor>;
constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

void check(const at::Tensor& x, int64_t k) {
  TORCH_CHECK(x.dim() == 4, "depthwise: expected (B, C, H, W), given are ", x.dim(), " dimensions");
  TORCH_CHECK(k == 3 || k == 5 || k == 7, "depthwise: kernels of ", k, " pixels are not supported");
}

at::Tensor convolution(const at::Tensor& x, const at::Tensor& weight, const Optional& bias) {
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

at::Tensor call(const at::Tensor& x, const at::Tensor& weight, const Optional& bias) {
  static const auto op = dispatched<at::Tensor(const at::Tensor&, const at::Tensor&, const Optional&)>(
      "mmmobilemamba::depthwise_conv2d");
  return op.call(x, weight, bias);
}

at::Tensor call_weight_gradient(const at::Tensor& grad, const at::Tensor& x, int64_t k) {
  static const auto op = dispatched<at::Tensor(const at::Tensor&, const at::Tensor&, int64_t)>(
      "mmmobilemamba::depthwise_weight_gradient");
  return op.call(grad, x, k);
}

struct DepthwiseConv : torch::autograd::Function<DepthwiseConv> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const Optional& bias) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({x, weight});
    context->saved_data["bias"] = bias.has_value();
    return call(x, weight, bias);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], &grad = grads[0];
    const long k = weight.size(-1);
    at::Tensor dx, dweight, dbias;
    // Of odd kernels without stride the transposed convolution is one with the kernels turned round.
    if (context->needs_input_grad(0)) dx = call(grad, weight.flip({2, 3}), {});
    if (context->needs_input_grad(1)) {
      if (at::GradMode::is_enabled())  // differentiable again
        dweight = std::get<1>(at::convolution_backward(grad, x, weight, {}, {1, 1}, {k / 2, k / 2}, {1, 1}, false,
                                                       {0, 0}, x.size(1), {false, true, false}));
      else
        dweight = call_weight_gradient(grad, x, k).to(weight.scalar_type());
    }
    if (context->saved_data["bias"].toBool() && context->needs_input_grad(2)) dbias = grad.sum({0, 2, 3});
    return {dx, dweight, dbias};
  }
};

at::Tensor differentiable(const at::Tensor& x, const at::Tensor& weight, const Optional& bias) {
  return DepthwiseConv::apply(x, weight, bias);
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

TORCH_LIBRARY_IMPL(mmmobilemamba, AutogradCPU, library) { library.impl("depthwise_conv2d", &differentiable); }
