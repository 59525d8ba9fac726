// One level of the Haar wavelet transform on CPUs, without its factor 1/2, as two PyTorch operators that are
// each other's adjoint.

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "operators.h"

namespace {

// Four numbers at a time: top-left, top-right, bottom-left, bottom-right into LL, HL, LH, HH, or back.
template <typename T, int kFrom, int kTo>
void butterfly(long n, const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ c,
               const T* __restrict__ d, T* __restrict__ p, T* __restrict__ q, T* __restrict__ r,
               T* __restrict__ s) {
  for (long i = 0; i < n; ++i) {
    using Wide = at::opmath_type<T>;  // float for half precision
    const Wide left = a[kFrom * i], right = b[kFrom * i], lower_left = c[kFrom * i], lower_right = d[kFrom * i];
    const Wide top = left + right, top_diff = left - right;
    const Wide bottom = lower_left + lower_right, bottom_diff = lower_left - lower_right;
    p[kTo * i] = top + bottom;
    q[kTo * i] = top - bottom;
    r[kTo * i] = top_diff + bottom_diff;
    s[kTo * i] = top_diff - bottom_diff;
  }
}

// What lies beyond the bottom and the right of an image of odd size: zeros when it is read, nothing when written.
template <typename T>
struct Beyond {
  long size;
  std::vector<T> numbers;
  explicit Beyond(long size) : size(size), numbers(3 * size, T(0)) {}
  T* place(int corner) { return numbers.data() + (corner - 1) * size; }
};

// Between an image (B, C, H, W) and its bands (B, 4C, ceil(H/2), ceil(W/2)), both with channels or both with
// columns next to each other in memory.
template <typename T, bool kAnalysis>
void transform(const at::Tensor& image, const at::Tensor& bands) {
  const long C = image.size(1), H = image.size(2), W = image.size(3), rows = bands.size(2), columns = bands.size(3);
  const bool channels_last = image.stride(1) == 1 && bands.stride(1) == 1;
  T* const x = image.data_ptr<T>();
  T* const y = bands.data_ptr<T>();
  const auto run = [](auto from, auto to, long n, T* const* corners, T* const* band) {
    constexpr int kFrom = decltype(from)::value, kTo = decltype(to)::value;
    if (kAnalysis)
      butterfly<T, kFrom, kTo>(n, corners[0], corners[1], corners[2], corners[3], band[0], band[1], band[2], band[3]);
    else
      butterfly<T, kTo, kFrom>(n, band[0], band[1], band[2], band[3], corners[0], corners[1], corners[2], corners[3]);
  };
  using One = std::integral_constant<int, 1>;
  using Two = std::integral_constant<int, 2>;
  const long grain = std::max(1L, 8192 / std::max(1L, C * columns));
  at::parallel_for(0, image.size(0) * rows, grain, [&](int64_t begin, int64_t end) {
    Beyond<T> beyond(std::max(C, 2 * columns));
    for (int64_t row = begin; row < end; ++row) {
      const long b = row / rows, i = row % rows;
      const auto at = [&](long c, long j, T** corners, T** band) {
        for (int k = 0; k < 4; ++k) {
          const long h = 2 * i + k / 2, w = 2 * j + k % 2;
          corners[k] = h < H && w < W ? x + b * image.stride(0) + c * image.stride(1) + h * image.stride(2)
                                            + w * image.stride(3)
                                      : beyond.place(k);
          band[k] = y + b * bands.stride(0) + (k * C + c) * bands.stride(1) + i * bands.stride(2)
                    + j * bands.stride(3);
        }
      };
      T *corners[4], *band[4];
      if (channels_last) {
        for (long j = 0; j < columns; ++j) {
          at(0, j, corners, band);
          run(One(), One(), C, corners, band);
        }
      } else {
        for (long c = 0; c < C; ++c) {
          at(c, 0, corners, band);
          if (W > 1) run(Two(), One(), W / 2, corners, band);
          if (W % 2 == 0) continue;
          at(c, columns - 1, corners, band);
          run(Two(), One(), 1, corners, band);
        }
      }
    }
  });
}

template <bool kAnalysis>
void dispatch(const at::Tensor& image, const at::Tensor& bands) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, image.scalar_type(), "haar",
                                 [&] { transform<scalar_t, kAnalysis>(image, bands); });
}

at::Tensor empty(at::IntArrayRef sizes, const at::Tensor& like) {
  const auto format = like.stride(1) == 1 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  return at::empty(sizes, like.options().memory_format(format));
}

// x as it is where channels or columns lie next to each other, else copied.
at::Tensor readable(const at::Tensor& x) {
  TORCH_CHECK(x.dim() == 4, "haar: expected (B, C, H, W), given are ", x.dim(), " dimensions");
  return x.stride(1) == 1 || x.stride(3) == 1 ? x : x.contiguous();
}

at::Tensor analysis(const at::Tensor& x) {
  const at::Tensor image = readable(x);
  const at::Tensor bands = empty({x.size(0), 4 * x.size(1), (x.size(2) + 1) / 2, (x.size(3) + 1) / 2}, image);
  dispatch<true>(image, bands);
  return bands;
}

at::Tensor synthesis(const at::Tensor& y, int64_t height, int64_t width) {
  const at::Tensor bands = readable(y);
  TORCH_CHECK(y.size(1) % 4 == 0 && (height + 1) / 2 == y.size(2) && (width + 1) / 2 == y.size(3),
              "haar: bands of shape ", y.sizes(), " do not make an image of ", height, "x", width);
  const at::Tensor image = empty({y.size(0), y.size(1) / 4, height, width}, bands);
  dispatch<false>(image, bands);
  return image;
}

at::Tensor call_analysis(const at::Tensor& x) {
  static const auto op = dispatched<at::Tensor(const at::Tensor&)>("mmmobilemamba::haar_analysis");
  return op.call(x);
}

at::Tensor call_synthesis(const at::Tensor& y, c10::SymInt height, c10::SymInt width) {
  static const auto op = dispatched<at::Tensor(const at::Tensor&, c10::SymInt, c10::SymInt)>(
      "mmmobilemamba::haar_synthesis");
  return op.call(y, std::move(height), std::move(width));
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Analysis : torch::autograd::Function<Analysis> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const at::Tensor bands = call_analysis(x);
    context->saved_data["height"] = x.sym_size(2), context->saved_data["width"] = x.sym_size(3);
    return bands;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    auto& kept = context->saved_data;
    return {call_synthesis(grads[0], kept["height"].toSymInt(), kept["width"].toSymInt())};
  }
};

struct Synthesis : torch::autograd::Function<Synthesis> {
  static at::Tensor forward(AutogradContext*, const at::Tensor& y, c10::SymInt height, c10::SymInt width) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return call_synthesis(y, std::move(height), std::move(width));
  }

  static variable_list backward(AutogradContext*, variable_list grads) { return {call_analysis(grads[0]), {}, {}}; }
};

at::Tensor differentiable_analysis(const at::Tensor& x) { return Analysis::apply(x); }

at::Tensor differentiable_synthesis(const at::Tensor& y, c10::SymInt height, c10::SymInt width) {
  return Synthesis::apply(y, std::move(height), std::move(width));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mmmobilemamba, library) {
  library.def("haar_analysis(Tensor x) -> Tensor");
  library.def("haar_synthesis(Tensor y, SymInt height, SymInt width) -> Tensor");
}

TORCH_LIBRARY_IMPL(mmmobilemamba, CPU, library) {
  library.impl("haar_analysis", &analysis);
  library.impl("haar_synthesis", &synthesis);
}

TORCH_LIBRARY_IMPL(mmmobilemamba, AutogradCPU, library) {
  library.impl("haar_analysis", &differentiable_analysis);
  library.impl("haar_synthesis", &differentiable_synthesis);
}
