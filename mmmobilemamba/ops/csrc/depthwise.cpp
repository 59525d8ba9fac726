// Gradient of the kernels of a depth-wise convolution on CPUs.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

// The loader picks the fastest version that the processor can run.
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("default", "arch=haswell", "arch=skylake-avx512")))
#define INLINE inline __attribute__((always_inline))
#else
#define FOR_EACH_PROCESSOR
#define INLINE inline
#endif

namespace {

constexpr long kLanes = 16;  // channels that are worked on together

// sums[j] += the products of g (rows, columns) and of x (rows, columns + k - 1) shifted by j, all of kLanes.
template <int k>
INLINE void correlate(long rows, long columns, const float* g, const float* x, float* sums) {
  float s[k][kLanes] = {};
  for (long y = 0; y < rows; ++y, x += (k - 1) * kLanes)
    for (long i = 0; i < columns; ++i, g += kLanes, x += kLanes)
      for (int j = 0; j < k; ++j)
        for (long c = 0; c < kLanes; ++c) s[j][c] += g[c] * x[j * kLanes + c];
  for (int j = 0; j < k; ++j)
    for (long c = 0; c < kLanes; ++c) sums[j * kLanes + c] += s[j][c];
}

FOR_EACH_PROCESSOR
void correlate(long k, long rows, long columns, const float* g, const float* x, float* sums) {
  if (k == 3) correlate<3>(rows, columns, g, x, sums);
  else if (k == 5) correlate<5>(rows, columns, g, x, sums);
  else correlate<7>(rows, columns, g, x, sums);
}

// `lanes` channels of an image (H, W, C) into the middle of (H + 2p, W + 2p, kLanes).
void pack(long H, long W, long C, long lanes, long p, const float* from, float* to) {
  for (long y = 0; y < H; ++y) {
    float* row = to + ((y + p) * (W + 2 * p) + p) * kLanes;
    for (long i = 0; i < W; ++i, from += C, row += kLanes) std::copy_n(from, lanes, row);
  }
}

// For y = conv(x), stride 1 and as many pixels out as in: dL/dy, x (B, C, H, W) -> dL/dw (C, 1, k, k).
at::Tensor weight_gradient(const at::Tensor& grad, const at::Tensor& x, int64_t k) {
  TORCH_CHECK(grad.dim() == 4 && grad.sizes() == x.sizes() && x.scalar_type() == at::kFloat
                  && grad.scalar_type() == at::kFloat, "depthwise: expected two float32 (B, C, H, W)");
  TORCH_CHECK(k == 3 || k == 5 || k == 7, "depthwise: kernels of ", k, " pixels are not supported");
  const at::Tensor g_ = grad.contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor x_ = x.contiguous(at::MemoryFormat::ChannelsLast);
  const long B = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), p = k / 2, size = H * W * C;
  const at::Tensor out = at::empty({C, 1, k, k}, x.options());
  const float *const g = g_.const_data_ptr<float>(), *const in = x_.const_data_ptr<float>();
  float* const result = out.data_ptr<float>();
  at::parallel_for(0, (C + kLanes - 1) / kLanes, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> g_block(H * W * kLanes), x_block((H + 2 * p) * (W + 2 * p) * kLanes);
    for (int64_t block = begin; block < end; ++block) {
      const long first = block * kLanes, lanes = std::min(kLanes, C - first);
      std::vector<float> sums(k * k * kLanes);
      for (long b = 0; b < B; ++b) {
        pack(H, W, C, lanes, 0, g + b * size + first, g_block.data());
        pack(H, W, C, lanes, p, in + b * size + first, x_block.data());
        for (long i = 0; i < k; ++i)
          correlate(k, H, W, g_block.data(), x_block.data() + i * (W + 2 * p) * kLanes, &sums[i * k * kLanes]);
      }
      for (long c = 0; c < lanes; ++c)
        for (long i = 0; i < k * k; ++i) result[(first + c) * k * k + i] = sums[i * kLanes + c];
    }
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mmmobilemamba, library) {
  library.def("depthwise_weight_gradient(Tensor grad, Tensor x, int kernel_size) -> Tensor");
}

TORCH_LIBRARY_IMPL(mmmobilemamba, CPU, library) {
  library.impl("depthwise_weight_gradient", &weight_gradient);
}
