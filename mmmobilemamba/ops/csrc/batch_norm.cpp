// Batch normalisation on CPUs, with the activation behind it or a sum, and its gradient; the arithmetic is in
// batch_norm_kernel.h.

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/native_batch_norm_backward.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <vector>

#include "kernels.h"

namespace {

using Optional = std::optional<at::Tensor>;
constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

// What the normalisation came to: y = (x - mean) · scale + bias.
struct Normalisation {
  at::Tensor numbers, bias;  // numbers: (3, C)
  long C() const { return numbers.size(1); }
  float* mean() const { return numbers.data_ptr<float>(); }
  float* invstd() const { return mean() + C(); }
  float* scale() const { return mean() + 2 * C(); }
};

void check(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  TORCH_CHECK(x.dim() == 4 && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16),
              "batch_norm: expected (B, C, H, W) in float32 or bfloat16, given are ", x.sizes(), " in ",
              x.scalar_type());
  for (const at::Tensor& p : {weight, bias})
    TORCH_CHECK(p.scalar_type() == at::kFloat && p.is_contiguous() && p.sizes() == at::IntArrayRef({x.size(1)}),
                "batch_norm: weight and bias must be contiguous float32 of ", x.size(1), " channels");
  TORCH_CHECK(x.size(1) >= 16, "batch_norm: fewer than 16 channels");
}

// run(begin, end, i) for the rows of each thread.
template <typename F>
void for_rows(long rows, long C, const F& run) {
  const long parts = std::max(1L, std::min<long>(at::get_num_threads(), rows * C / 16384));
  at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) run(rows * i / parts, rows * (i + 1) / parts, i);
  });
}

// Mean and biased variance of the channels of rows.
void moments(const at::Tensor& x, long rows, long C, float* mean, float* variance) {
  const long most = at::get_num_threads();
  std::vector<float> parts(2 * most * C);
  std::vector<long> counts(most);
  const bool single = x.scalar_type() == at::kFloat;
  for_rows(rows, C, [&](long begin, long end, long i) {
    counts[i] = end - begin;
    const void* from = (const char*)x.const_data_ptr() + begin * C * x.element_size();
    (single ? kernels().moments : kernels().moments_bfloat16)(from, end - begin, C, &parts[2 * i * C],
                                                              &parts[(2 * i + 1) * C]);
  });
  for (long c = 0; c < C; ++c) {
    double m = 0, squares = 0, count = 0;
    for (long i = 0; i < most && counts[i]; ++i) {
      const double n = counts[i], away = parts[2 * i * C + c] - m;
      count += n;
      m += away * n / count;
      squares += parts[(2 * i + 1) * C + c] + away * away * n * (count - n) / count;
    }
    mean[c] = m, variance[c] = squares / count;
  }
}

void track(const at::Tensor& running, const float* values, double momentum, double factor) {
  float* const to = running.data_ptr<float>();
  for (long c = 0; c < running.numel(); ++c) to[c] += momentum * (factor * values[c] - to[c]);
}

Normalisation normalisation(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                            const Optional& running_mean, const Optional& running_var, bool training,
                            double momentum, double eps) {
  const long C = x.size(1), rows = x.numel() / C;
  for (const Optional* r : {&running_mean, &running_var})
    TORCH_CHECK(!*r || ((*r)->scalar_type() == at::kFloat && (*r)->is_contiguous() && (*r)->numel() == C),
                "batch_norm: running statistics must be contiguous float32 of ", C, " channels");
  TORCH_CHECK(training || (running_mean && running_var), "batch_norm: no running statistics to normalise with");
  const Normalisation n{at::empty({3, C}, weight.options()), bias};
  float *const mean = n.mean(), *const invstd = n.invstd(), *const scale = n.scale();
  const float* const weights = weight.const_data_ptr<float>();
  if (training) {
    moments(x, rows, C, mean, invstd);
    if (running_mean) track(*running_mean, mean, momentum, 1.0);
    if (running_var) track(*running_var, invstd, momentum, rows / std::max(1.0, rows - 1.0));
  } else {
    std::copy_n(running_mean->const_data_ptr<float>(), C, mean);
    std::copy_n(running_var->const_data_ptr<float>(), C, invstd);
  }
  for (long c = 0; c < C; ++c) invstd[c] = 1.0f / std::sqrt(invstd[c] + (float)eps);
  for (long c = 0; c < C; ++c) scale[c] = weights[c] * invstd[c];
  return n;
}

Activation activation(bool relu) { return relu ? Activation::kRelu : Activation::kNone; }

at::Tensor normalised(const at::Tensor& x, const Normalisation& n, bool relu, const Optional& add) {
  const at::Tensor y = at::empty(x.sizes(), x.options().memory_format(kChannelsLast));
  const at::Tensor rest = add ? add->contiguous(kChannelsLast) : at::Tensor();
  TORCH_CHECK(!add || (rest.sizes() == x.sizes() && rest.scalar_type() == x.scalar_type()),
              "batch_norm: what is added does not fit to the input");
  const Scaled p{x.size(1), x.const_data_ptr(), n.mean(), n.scale(), n.bias.const_data_ptr<float>(), activation(relu),
                 add ? rest.const_data_ptr() : nullptr, y.data_ptr()};
  const bool single = x.scalar_type() == at::kFloat;
  for_rows(x.numel() / p.C, p.C, [&](long begin, long end, long) {
    (single ? kernels().scale : kernels().scale_bfloat16)(p, begin, end);
  });
  return y;
}

// Gradients of x, weight and bias.
std::array<at::Tensor, 3> gradients(const at::Tensor& grad, const at::Tensor& given, const Normalisation& n,
                                    bool training, bool relu) {
  const at::Tensor x = given.contiguous(kChannelsLast);
  const long C = x.size(1), rows = x.numel() / C, most = at::get_num_threads();
  const at::Tensor dy = grad.to(x.scalar_type()).contiguous(kChannelsLast);
  const at::Tensor dx = at::empty(x.sizes(), x.options().memory_format(kChannelsLast));
  const at::Tensor dweight = at::empty_like(n.bias), dbias = at::empty_like(n.bias);
  std::vector<float> parts(2 * most * C), of_x(C), rest(C);
  const ScaledGradient p{C, dy.const_data_ptr(), x.const_data_ptr(), n.mean(), n.scale(),
                         n.bias.const_data_ptr<float>(), activation(relu), of_x.data(), rest.data(), dx.data_ptr()};
  const bool single = x.scalar_type() == at::kFloat;
  for_rows(rows, C, [&](long begin, long end, long i) {
    (single ? kernels().gradient_sums : kernels().gradient_sums_bfloat16)(p, begin, end, &parts[2 * i * C],
                                                                          &parts[(2 * i + 1) * C]);
  });
  for (long c = 0; c < C; ++c) {
    double sum = 0, product = 0;
    for (long i = 0; i < most; ++i) sum += parts[2 * i * C + c], product += parts[(2 * i + 1) * C + c];
    const double invstd = n.invstd()[c];
    dbias.data_ptr<float>()[c] = sum;
    dweight.data_ptr<float>()[c] = product * invstd;
    // The mean and the variance of the batch depend on x as well.
    of_x[c] = training ? -p.scale[c] * invstd * invstd * product / rows : 0.0;
    rest[c] = training ? -p.scale[c] * sum / rows : 0.0;
  }
  for_rows(rows, C, [&](long begin, long end, long) {
    (single ? kernels().scale_gradient : kernels().scale_gradient_bfloat16)(p, begin, end);
  });
  return {dx, dweight, dbias};
}

at::Tensor forward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const Optional& running_mean,
                   const Optional& running_var, bool training, double momentum, double eps, bool relu,
                   const Optional& add) {
  check(x, weight, bias);
  const at::Tensor in = x.contiguous(kChannelsLast);
  return normalised(in, normalisation(in, weight, bias, running_mean, running_var, training, momentum, eps), relu, add);
}

struct BatchNorm : torch::autograd::Function<BatchNorm> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& bias, const Optional& running_mean, const Optional& running_var,
                            bool training, double momentum, double eps, bool relu, const Optional& add) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    check(x, weight, bias);
    const at::Tensor in = x.contiguous(kChannelsLast);
    const Normalisation n = normalisation(in, weight, bias, running_mean, running_var, training, momentum, eps);
    context->save_for_backward({x, weight, n.numbers, bias});
    auto& kept = context->saved_data;
    kept["training"] = training, kept["eps"] = eps, kept["relu"] = relu, kept["add"] = add.has_value();
    return normalised(in, n, relu, add);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const auto saved = context->get_saved_variables();
    auto& kept = context->saved_data;
    const bool training = kept["training"].toBool(), relu = kept["relu"].toBool();
    const at::Tensor &x = saved[0], &weight = saved[1];
    const Normalisation n{saved[2], saved[3]};
    std::array<at::Tensor, 3> d;
    if (at::GradMode::is_enabled()) {  // differentiable again
      const at::Tensor mean = n.numbers[0], invstd = n.numbers[1];
      const double eps = kept["eps"].toDouble();
      const auto wide = [](const at::Tensor& t) { return t.detach().view({1, -1, 1, 1}); };
      const at::Tensor passed = (x.detach() - wide(mean)) * wide(n.numbers[2]) + wide(n.bias) > 0;
      std::tie(d[0], d[1], d[2]) = at::native_batch_norm_backward(
          relu ? grads[0] * passed : grads[0], x, weight, mean, invstd.pow(-2) - eps, mean, invstd, training, eps,
          {true, true, true});
    } else {
      d = gradients(grads[0], x, n, training, relu);
    }
    const at::Tensor none;
    return {d[0], d[1], d[2], none, none, none, none, none, none, kept["add"].toBool() ? grads[0] : none};
  }
};

at::Tensor differentiable(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                          const Optional& running_mean, const Optional& running_var, bool training, double momentum,
                          double eps, bool relu, const Optional& add) {
  if (!at::GradMode::is_enabled()) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return forward(x, weight, bias, running_mean, running_var, training, momentum, eps, relu, add);
  }
  return BatchNorm::apply(x, weight, bias, running_mean, running_var, training, momentum, eps, relu, add);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mmmobilemamba, library) {
  library.def("batch_norm(Tensor x, Tensor weight, Tensor bias, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
              "bool training, float momentum, float eps, bool relu, Tensor? add) -> Tensor");
}

TORCH_LIBRARY_IMPL(mmmobilemamba, CPU, library) { library.impl("batch_norm", &forward); }

TORCH_LIBRARY_IMPL(mmmobilemamba, AutogradCPU, library) { library.impl("batch_norm", &differentiable); }
