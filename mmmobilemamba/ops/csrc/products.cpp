// Products of matrices on CPUs by product_kernel.h. Those in bfloat16 are by oneDNN where the processor has registers
// for matrices (AMX), and in float32 where it has no instructions for bfloat16 or the number of inputs is odd. The
// operator packs weights for them.

#include "products.h"

#include <ATen/native/CPUBlas.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>
#include <torch/version.h>

#include <cstddef>
#include <optional>

#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 6
#define BRGEMM
#endif

namespace {

namespace blas = at::native::cpublas;

// Of a product by oneDNN: one that the first-level cache holds, and oneDNN is slow for numbers of inputs in between.
constexpr long kRows = 64, kColumns = 128, kInputs = 32;

bool by_onednn() {
#ifdef BRGEMM
  return blas::could_pack(at::kBFloat16);
#else
  return false;
#endif
}

long count(long n, long size) { return (n + size - 1) / size; }

// Pieces that are worth a thread's while: of 2^18 multiply-adds.
long grain(long cost) { return std::max(1L, (1L << 18) / std::max(1L, cost)); }

long padded(long K) { return count(K, kInputs) * kInputs; }

#ifdef BRGEMM
// One block of rows and columns begin ... end - 1.
void multiply_by_onednn(const Linear& w, const Product& p, long rows, long begin, long end) {
  const long columns = end - begin, K = padded(w.K);
  const at::BFloat16* x = (const at::BFloat16*)p.x;
  long stride = p.x_stride;
  if (K > w.K && !p.padded) {
    at::BFloat16* const wide = scratch<at::BFloat16>(Slot::kWide, rows * K);
    for (long r = 0; r < rows; ++r)
      std::fill(std::copy_n(x + r * stride, w.K, wide + r * K), wide + (r + 1) * K, at::BFloat16());
    x = wide, stride = K;
  }
  float* const product = scratch<float>(Slot::kProduct, rows * columns);
  blas::brgemm(rows, columns, K, stride, w.N, columns, false, x,
               w.weight.const_data_ptr<at::BFloat16>() + 2 * begin, product, true);
  Product q = p;
  q.N = columns;
  q.bias = p.bias ? p.bias + begin : nullptr;
  for (auto& add : q.add)
    if (add.data) add.data = (const Bfloat16*)add.data + begin;
  q.y = (Bfloat16*)p.y + begin;
  kernels().finish_bfloat16(q, product, rows);
}

// The registers of oneDNN's products, given back at the end of a loop.
struct Release {
  ~Release() { blas::brgemm_release(); }
};
#else
struct Release {};

void multiply_by_onednn(const Linear&, const Product&, long, long, long) {}
#endif

// The same in float32, all columns.
void multiply_converted(const Product& p, long rows) {
  float *const x = scratch<float>(Slot::kWide, rows * p.K), *to = x;
  for (long r = 0; r < rows; ++r) {
    const at::BFloat16* from = (const at::BFloat16*)p.x + r * p.x_stride;
    to = std::copy(from, from + p.K, to);
  }
  Product q = p;
  q.x = x, q.x_stride = p.K;
  q.bias = nullptr, q.add[0] = q.add[1] = {}, q.activation = Activation::kNone;
  float* const product = scratch<float>(Slot::kProduct, rows * p.N);
  q.y = product, q.y_stride = p.N;
  kernels().product(q, 0, rows, 0, count(p.N, kernels().panel));
  kernels().finish_bfloat16(p, product, rows);
}

Product from_row(Product p, long row) {
  p.x = (const Bfloat16*)p.x + row * p.x_stride;
  for (auto& add : p.add)
    if (add.data) add.data = (const Bfloat16*)add.data + row * add.stride;
  p.y = (Bfloat16*)p.y + row * p.y_stride;
  return p;
}

Product completed(const Linear& w, Product p) {
  p.K = w.K, p.N = w.N;
  p.weight = (const float*)w.weight.const_data_ptr();
  p.bias = w.bias.const_data_ptr<float>();
  return p;
}

long packed_size(long N, long K) { return count(N, kernels().panel / 2) * (kernels().panel / 2) * K; }

// Whether product_kernel.h reads weights in bfloat16.
bool in_pairs(long K) { return kernels().product_bfloat16 && K % 2 == 0; }

bool for_onednn(const at::Tensor& weight) { return weight.dim() == 3; }

bool fits(const at::Tensor& weight, long N, long K) {
  if (weight.numel() == 0) return false;
  if (for_onednn(weight))
    return weight.scalar_type() == at::kBFloat16 && by_onednn()
           && weight.sizes() == at::IntArrayRef({padded(K) / 2, N, 2});
  return (weight.scalar_type() == at::kFloat || (weight.scalar_type() == at::kBFloat16 && in_pairs(K)))
         && weight.sizes() == at::IntArrayRef({packed_size(N, K)});
}

// Blocks of rows, panel after panel.
void multiply_panels(Kernels::Panels* run, const Product& p, long rows) {
  // In units of half a block, for those of the last panel may be no more.
  const long half = kernels().panel / 2, halves = count(p.N, half), blocks = count(rows, kernels().block);
  const long full = halves / 2 * blocks;
  const auto block = [&](long unit) { return unit < 2 * full ? unit / 2 : unit - full; };
  constexpr long kReading = 16;  // rows whose products take as long as it takes to read the weights
  const long cost = count(std::max(rows, kReading), std::max(1L, blocks)) * p.K * half;
  at::parallel_for(0, halves * blocks, grain(cost), [&](int64_t begin, int64_t end) {
    for (long at = block(begin), last = block(end); at < last;) {
      // Whole panels at once, else what there is of one.
      const long panel = at / blocks, first = at % blocks, n = std::min(blocks - first, last - at);
      const long panels = n == blocks ? (last - at) / blocks : 1;
      run(p, rows * first / blocks, rows * (first + n) / blocks, panel, panel + panels);
      at += n * panels;
    }
  });
}

}  // namespace

void* scratch(Slot slot, size_t bytes) {
  thread_local std::array<std::vector<std::max_align_t>, 4> memory;
  auto& here = memory[(size_t)slot];
  const size_t size = bytes / sizeof(std::max_align_t) + 1;
  if (here.size() < size) here = std::vector<std::max_align_t>(size);
  return here.data();
}

long padded_stride(long K, float) { return K; }

long padded_stride(long K, Bfloat16) { return by_onednn() ? padded(K) : K; }

Linear linear(const at::Tensor& weight, const at::Tensor& bias, long K) {
  const long N = bias.numel();
  TORCH_CHECK(bias.scalar_type() == at::kFloat && bias.is_contiguous() && weight.is_contiguous(),
              "product: the bias must be contiguous float32, the weights packed");
  TORCH_CHECK(fits(weight, N, K), "product: the packed weights do not fit to ", K, " inputs and ", N, " outputs");
  return {weight, bias, K, N};
}

void multiply(const Linear& w, Product p, long rows, float) {
  TORCH_CHECK(w.weight.scalar_type() == at::kFloat, "product: weights in bfloat16 for pixels in float32");
  multiply_panels(kernels().product, completed(w, p), rows);
}

void multiply(const Linear& w, Product p, long rows, Bfloat16) {
  p = completed(w, p);
  const bool converted = w.weight.scalar_type() == at::kFloat;
  if (!converted && !for_onednn(w.weight)) return multiply_panels(kernels().product_bfloat16, p, rows);
  const long threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  const long tiles = count(rows, kRows), share = count(count(w.N, threads), 64) * 64;
  const long columns = converted ? w.N : std::min(kColumns, share), pieces = count(w.N, columns);
  at::parallel_for(0, tiles * pieces, 1, [&](int64_t begin, int64_t end) {
    std::optional<Release> release;
    if (!converted) release.emplace();
    for (int64_t i = begin; i < end; ++i) {
      const long row = i % tiles * kRows, n = std::min(kRows, rows - row), column = i / tiles * columns;
      if (converted) multiply_converted(from_row(p, row), n);
      else multiply_by_onednn(w, from_row(p, row), n, column, std::min(w.N, column + columns));
    }
  });
}

namespace {

// Weights (N, K) as the products of this processor read them.
at::Tensor pack_weights(const at::Tensor& weight) {
  TORCH_CHECK(weight.dim() == 2, "product: expected weights (N, K), given are ", weight.dim(), " dimensions");
  const long N = weight.size(0), K = weight.size(1);
  const bool bfloat16 = weight.scalar_type() == at::kBFloat16;
  if (bfloat16 && by_onednn()) {  // (K/2, N, 2)
    const at::Tensor wide = at::constant_pad_nd(weight, {0, padded(K) - K});
    return wide.view({N, -1, 2}).transpose(0, 1).contiguous();
  }
  const bool pairs = bfloat16 && in_pairs(K);
  const at::Tensor from = weight.to(pairs ? at::kBFloat16 : at::kFloat).contiguous();
  const at::Tensor packed = at::empty({packed_size(N, K)}, from.options());
  const auto pack = pairs ? kernels().pack_product_bfloat16 : kernels().pack_product;
  pack(from.const_data_ptr(), N, K, packed.mutable_data_ptr());
  return packed;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(mmmobilemamba, library) {
  library.def("pack_weights(Tensor weight) -> Tensor");
}

TORCH_LIBRARY_IMPL(mmmobilemamba, CPU, library) {
  library.impl("pack_weights", &pack_weights);
}
