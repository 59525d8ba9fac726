// The blocks of a folded MobileMamba on CPUs, each computed as one: what lies between two of its layers mostly stays
// in the cache, and nothing but arithmetic takes time.

#include <ATen/ops/empty.h>
#include <ATen/record_function.h>

#include <optional>

#include "layers.h"
#include "operators.h"
#include "products.h"

namespace {

constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

// The tensors of a list, one after the other.
class Reader {
 public:
  explicit Reader(at::TensorList list) : list_(list) {}
  const at::Tensor& tensor() {
    TORCH_CHECK(next_ < list_.size(), "folded: too few weights");
    return list_[next_++];
  }
  const at::Tensor& floats(at::IntArrayRef shape) {
    const at::Tensor& x = tensor();
    TORCH_CHECK(x.scalar_type() == at::kFloat && x.is_contiguous() && x.sizes() == shape,
                "folded: expected contiguous float32 weights of shape ", shape, ", given are ", x.sizes());
    return x;
  }
  Linear product(long inputs) {
    const at::Tensor& weight = tensor();
    return linear(weight, tensor(), inputs);
  }
  bool empty() const { return next_ == list_.size(); }

 private:
  at::TensorList list_;
  size_t next_ = 0;
};

// A depth-wise convolution: weight (k, k, C), bias (C).
struct Kernel {
  at::Tensor weight, bias;
  long k, C;
  explicit Kernel(Reader& list) : weight(list.tensor()), bias(list.tensor()), k(weight.size(0)), C(bias.numel()) {
    for (const at::Tensor& x : {weight, bias})
      TORCH_CHECK(x.scalar_type() == at::kFloat && x.is_contiguous(), "folded: expected contiguous float32 kernels");
    TORCH_CHECK((k == 3 || k == 5 || k == 7) && weight.sizes() == at::IntArrayRef({k, k, C}) && C >= 16,
                "folded: kernels must be (k, k, C) of at least 16 channels, given are ", weight.sizes());
  }
};

// Images (B, C, H, W) as rows of pixels.
template <typename T>
struct Pixels {
  T* data;
  long stride;
  bool padded = false;  // with zeros up to the stride
  Pixels row(long i, long W) const { return {data + i * W * stride, stride, padded}; }
};

template <typename T>
Pixels<T> pixels(const at::Tensor& x) {
  return {(T*)x.const_data_ptr(), x.size(1)};  // data_ptr() must not be called by several threads at once
}

struct Size {
  long B, H, W;
  // Of x, or of what a convolution with steps of more than one pixel makes of it.
  explicit Size(const at::Tensor& x, long step = 1)
      : B(x.size(0)), H((x.size(2) + step - 1) / step), W((x.size(3) + step - 1) / step) {}
  long rows() const { return B * H; }
  long pixels() const { return B * H * W; }
};

template <typename T>
Pixels<T> map(Room& room, const Size& size, long C) {
  return {(T*)room.take(size.pixels() * C * sizeof(T)), C};
}

// Memory of this thread for n pixels that a product reads.
template <typename T>
Pixels<T> strip(Slot slot, long n, long C) {
  const long stride = padded_stride(C, T());
  T* const data = scratch<T>(slot, n * stride);
  if (stride > C)
    for (long i = 0; i < n; ++i) std::fill(data + i * stride + C, data + (i + 1) * stride, T());
  return {data, stride, stride > C};
}

// Rows begin ... end - 1 of the images that y is; it begins with the first of them.
template <typename T>
void convolve(const Kernel& kernel, const Size& size, Pixels<T> x, Pixels<T> y, long begin, long end,
              Activation activation, long step = 1) {
  const Depthwise p{size.B, kernel.C, size.H, size.W, kernel.k, x.data, kernel.weight.const_data_ptr<float>(),
                    kernel.bias.const_data_ptr<float>(), y.data, activation, x.stride, y.stride, begin, step};
  const auto rows = std::is_same_v<T, float> ? kernels().depthwise : kernels().depthwise_bfloat16;
  at::parallel_for(begin, end, std::max(1L, 16384 / (size.W * kernel.C * kernel.k * kernel.k)),
                   [&](int64_t from, int64_t to) { rows(p, from, to); });
}

template <typename T>
void multiply(const Linear& w, long rows, Pixels<T> x, Pixels<T> y, Activation activation = Activation::kNone,
              Pixels<T> add = {}, Pixels<T> add2 = {}) {
  Product p{};
  p.x = x.data, p.x_stride = x.stride, p.padded = x.padded, p.y = y.data, p.y_stride = y.stride;
  p.add[0] = {add.data, add.stride}, p.add[1] = {add2.data, add2.stride};
  p.activation = activation;
  multiply(w, p, rows, T());
}

// run(begin, end) for all rows of C numbers.
template <typename F>
void for_rows(long rows, long C, const F& run) {
  at::parallel_for(0, C ? rows : 0, std::max(1L, 16384 / std::max(1L, C)), run);
}

template <typename T>
void norm_gate(const NormGate& p, long rows) {
  const auto run = std::is_same_v<T, float> ? kernels().norm_gate : kernels().norm_gate_bfloat16;
  for_rows(rows, p.C, [&](int64_t begin, int64_t end) {
    NormGate q = p;
    q.x += begin * p.C, q.y = (T*)p.y + begin * p.y_stride;
    run(q, end - begin);
  });
}

template <typename T>
void affine_relu(const Affine& p, long rows) {
  const auto run = std::is_same_v<T, float> ? kernels().affine_relu : kernels().affine_relu_bfloat16;
  for_rows(rows, p.C, [&](int64_t begin, int64_t end) {
    Affine q = p;
    q.x = (const T*)p.x + begin * p.x_stride, q.y = (T*)p.y + begin * p.y_stride;
    run(q, end - begin);
  });
}

// Of the type of `like`.
at::Tensor image(const at::Tensor& like, const Size& size, long C) {
  return at::empty({size.B, C, size.H, size.W}, like.options().memory_format(kChannelsLast));
}

// t + reduce(relu(expand(t))) + add for t = dw(x), which holds its identity branch.
struct DwFfn {
  Kernel dw;
  Linear expand, reduce;
  explicit DwFfn(Reader& list) : dw(list), expand(list.product(dw.C)), reduce(list.product(expand.N)) {
    TORCH_CHECK(reduce.N == dw.C, "folded: an FFN must give as many channels as it takes");
  }

  template <typename T>
  void run(const Size& size, Pixels<T> x, Pixels<T> y, Pixels<T> add = {}) const {
    RECORD_FUNCTION("mmmobilemamba::dw_ffn", {});
    const long C = dw.C, W = size.W;
    for_strips(size.rows(), W, [&](long begin, long end) {
      const long n = (end - begin) * W;
      const Pixels<T> t = strip<T>(Slot::kInput, n, C), hidden = strip<T>(Slot::kHidden, n, expand.N);
      convolve<T>(dw, size, x, t, begin, end, Activation::kNone);
      multiply<T>(expand, n, t, hidden, Activation::kRelu);
      multiply<T>(reduce, n, hidden, y.row(begin, W), Activation::kNone, t, add.row(begin, W));
    }, std::is_same_v<T, float> ? 96 : 160);  // products in bfloat16 take less time than their weights
  }
};

// The end of the local branch: relu(dw(x)) · weight + bias.
struct Local {
  Kernel dw;
  at::Tensor weight, bias;
  explicit Local(Reader& list) : dw(list), weight(list.floats({dw.C})), bias(list.floats({dw.C})) {}
};

// x + proj(relu([global(x_g), local(x_l), x_i])): multi-receptive-field feature interaction. D channels are scanned in
// two directions.
struct Mixer {
  ScanWeights scan;
  Linear out_proj, in_proj, gate_proj;
  Kernel conv;
  Linear to_scan;
  at::Tensor norm_weight, norm_bias;
  float eps;
  at::Tensor wavelet;
  Linear proj;
  std::optional<Local> local;

  Mixer(Reader& list, long C, double eps)
      : scan{list.tensor(), list.tensor(), list.tensor(), list.tensor()}, out_proj(list.product(scan.D)),
        in_proj(list.product(out_proj.N)), gate_proj(list.product(out_proj.N)), conv(list),
        to_scan(list.product(scan.D)), norm_weight(list.floats({scan.D})), norm_bias(list.floats({scan.D})),
        eps((float)eps), wavelet(list.tensor()), proj(list.product(C)) {
    if (!list.empty()) local.emplace(list);
    const long k = wavelet.size(1);
    TORCH_CHECK(in_proj.N == scan.D && gate_proj.N == scan.D && conv.C == scan.D && to_scan.N == scan.inputs()
                    && proj.N == C && out_proj.N + (local ? local->dw.C : 0) <= C,
                "folded: the weights of a mixer do not fit together");
    TORCH_CHECK(wavelet.scalar_type() == at::kFloat && wavelet.is_contiguous() && (k == 3 || k == 5 || k == 7)
                    && wavelet.numel() == k * k * 4 * out_proj.N && out_proj.N % Wavelets::kChannels == 0,
                "folded: the kernels of the wavelets do not fit to ", out_proj.N, " channels");
  }

  template <typename T>
  void run(const Size& size, Pixels<T> x, Pixels<T> y, Room& room) const {
    // What a step has read for the last time makes room for the result of a later one.
    Pixels<T> u = map<T>(room, size, std::max(scan.D, out_proj.N)), rows = map<T>(room, size, to_scan.N);
    u.stride = scan.D;
    const Pixels<float> scanned = map<float>(room, size, scan.D);
    prepare(size, x, {(T*)scanned.data, scan.D}, u, rows);
    {
      RECORD_FUNCTION("selective scan", {});
      projected_scan<T>(scan, size.B, size.H * size.W, u.data, rows.data, scanned.data, room);
    }
    const Pixels<T> bands{u.data, out_proj.N};
    wavelets(size, x, bands);
    combine(size, x, scanned, bands, y);
  }

  // What the scan reads: u, and the projections of it that Δ, B and C are made of.
  template <typename T>
  void prepare(const Size& size, Pixels<T> x, Pixels<T> projected, Pixels<T> u, Pixels<T> rows) const {
    RECORD_FUNCTION("mmmobilemamba::scan_inputs", {});
    const long W = size.W;
    for_strips(size.rows(), W, [&](long begin, long end) {
      multiply<T>(in_proj, (end - begin) * W, x.row(begin, W), projected.row(begin, W));
    });
    for_strips(size.rows(), W, [&](long begin, long end) {
      convolve<T>(conv, size, projected, u.row(begin, W), begin, end, Activation::kSwish);
      multiply<T>(to_scan, (end - begin) * W, u.row(begin, W), rows.row(begin, W));
    });
  }

  template <typename T>
  void wavelets(const Size& size, Pixels<T> x, Pixels<T> y) const {
    RECORD_FUNCTION("mmmobilemamba::wavelets", {});
    const long blocks = out_proj.N / Wavelets::kChannels;
    const Wavelets p{size.B, size.H, size.W, wavelet.size(1), x.data, x.stride, wavelet.const_data_ptr<float>(),
                     y.data, y.stride};
    const auto run = std::is_same_v<T, float> ? kernels().wavelets : kernels().wavelets_bfloat16;
    at::parallel_for(0, size.B * blocks, 1, [&](int64_t begin, int64_t end) {
      float* const bands = scratch<float>(Slot::kInput, 2 * p.bands());
      for (int64_t i = begin; i < end; ++i) run(p, i / blocks, i % blocks, bands);
    });
  }

  template <typename T>
  void combine(const Size& size, Pixels<T> x, Pixels<float> scanned, Pixels<T> wavelets, Pixels<T> y) const {
    RECORD_FUNCTION("mmmobilemamba::mix", {});
    const long W = size.W, C = proj.N, wide = out_proj.N, local_wide = wide + (local ? local->dw.C : 0);
    for_strips(size.rows(), W, [&](long begin, long end) {
      const long n = (end - begin) * W;
      const Pixels<T> gated = strip<T>(Slot::kInput, n, scan.D), mixed = strip<T>(Slot::kHidden, n, C);
      const Pixels<T> in = x.row(begin, W);
      multiply<T>(gate_proj, n, in, gated, Activation::kSwish);
      norm_gate<T>({scan.D, scanned.row(begin, W).data, norm_weight.const_data_ptr<float>(),
                    norm_bias.const_data_ptr<float>(), eps, gated.data, gated.stride}, n);
      multiply<T>(out_proj, n, gated, mixed, Activation::kRelu, wavelets.row(begin, W));
      if (local) {
        const Pixels<T> part{mixed.data + wide, mixed.stride};
        convolve<T>(local->dw, size, {x.data + wide, C}, part, begin, end, Activation::kRelu);
        affine_relu<T>({local->dw.C, part.data, local->weight.const_data_ptr<float>(),
                        local->bias.const_data_ptr<float>(), part.data, part.stride, part.stride}, n);
      }
      affine_relu<T>({C - local_wide, in.data + local_wide, nullptr, nullptr, mixed.data + local_wide, C, mixed.stride},
                     n);
      multiply<T>(proj, n, mixed, y.row(begin, W), Activation::kNone, in);
    });
  }
};

// Halves height and width: project(se(relu(dw(relu(expand(x)))))).
struct Merge {
  Linear expand;
  Kernel dw;
  Linear squeeze, excite, project;
  Merge(Reader& list, long C)
      : expand(list.product(C)), dw(list), squeeze(list.product(dw.C)), excite(list.product(squeeze.N)),
        project(list.product(dw.C)) {
    TORCH_CHECK(expand.N == dw.C && excite.N == dw.C, "folded: the weights of a patch merging do not fit together");
  }

  // Of each channel.
  template <typename T>
  void means(const Size& size, Pixels<T> x, Pixels<T> y) const {
    constexpr long kChannels = 64;
    const long C = x.stride, pixels = size.H * size.W, blocks = (C + kChannels - 1) / kChannels;
    const auto run = std::is_same_v<T, float> ? kernels().channel_means : kernels().channel_means_bfloat16;
    at::parallel_for(0, size.B * blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const long image = i / blocks, first = i % blocks * kChannels;
        run({pixels, C, x.row(image, pixels).data, y.row(image, 1).data}, first, std::min(first + kChannels, C));
      }
    });
  }

  // A factor (B, C) in float32 for each channel of each image.
  template <typename T>
  at::Tensor gates(const Size& size, Pixels<T> x, const at::TensorOptions& options) const {
    const at::Tensor mean = at::empty({size.B, dw.C}, options), hidden = at::empty({size.B, squeeze.N}, options);
    const Pixels<T> at_mean{(T*)mean.data_ptr(), dw.C}, at_hidden{(T*)hidden.data_ptr(), squeeze.N};
    means(size, x, at_mean);
    multiply<T>(squeeze, size.B, at_mean, at_hidden, Activation::kRelu);
    multiply<T>(excite, size.B, at_hidden, at_mean);
    return mean.sigmoid().to(at::kFloat);
  }

  // From maps of one size to those of half of it.
  template <typename T>
  void run(const Size& size, const Size& half, Pixels<T> x, Pixels<T> y, const at::TensorOptions& options,
           Room& room) const {
    RECORD_FUNCTION("mmmobilemamba::merge", {});
    const long W = size.W, C = dw.C, pixels = half.H * half.W;
    const Pixels<T> wide = map<T>(room, size, C), small = map<T>(room, half, C);
    for_strips(size.rows(), W, [&](long begin, long end) {
      multiply<T>(expand, (end - begin) * W, x.row(begin, W), wide.row(begin, W), Activation::kRelu);
    });
    convolve<T>(dw, size, wide, small, 0, half.rows(), Activation::kRelu, 2);
    const at::Tensor factors = gates(half, small, options);
    for (long i = 0; i < size.B; ++i) {
      const Pixels<T> from = small.row(i, pixels), to = y.row(i, pixels);
      const float* gate = factors.const_data_ptr<float>() + i * C;
      for_strips(half.H, half.W, [&](long begin, long end) {
        const long n = (end - begin) * half.W;
        const Pixels<T> gated = strip<T>(Slot::kInput, n, C);
        affine_relu<T>({C, from.row(begin, half.W).data, gate, nullptr, gated.data, C, gated.stride}, n);
        multiply<T>(project, n, gated, to.row(begin, half.W));
      });
    }
  }
};

// x in channels-last memory, refused where it is no map of C channels.
at::Tensor checked(const at::Tensor& x, long C) {
  TORCH_CHECK(x.dim() == 4 && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16),
              "folded: expected (B, C, H, W) in float32 or bfloat16, given are ", x.sizes(), " in ", x.scalar_type());
  TORCH_CHECK(x.size(1) == C, "folded: expected maps of ", C, " channels, given are ", x.sizes());
  TORCH_CHECK(x.size(2) > 0 && x.size(3) > 0, "folded: expected maps of at least one pixel, given are ", x.sizes());
  return x.contiguous(kChannelsLast);
}

// run(T()) for the type T of the numbers of x.
template <typename F>
void for_type(const at::Tensor& x, const F& run) {
  x.scalar_type() == at::kFloat ? run(float()) : run(Bfloat16());
}

class Block : public Layer {
 public:
  Block(Reader list, double eps) : first_(list), last_(list), mixer_(list, first_.dw.C, eps) {
    TORCH_CHECK(first_.dw.C == last_.dw.C && list.empty(), "folded: the weights of a block do not fit together");
  }

  at::Tensor run(const at::Tensor& x, Room& room) const override {
    RECORD_FUNCTION("mmmobilemamba::block", {});
    const at::Tensor in = checked(x, first_.dw.C);
    const Size size(in);
    const at::Tensor out = image(in, size, first_.dw.C);
    for_type(in, [&](auto type) {
      using T = decltype(type);
      const Pixels<T> before = map<T>(room, size, first_.dw.C), behind = map<T>(room, size, first_.dw.C);
      first_.run(size, pixels<T>(in), before);
      mixer_.run(size, before, behind, room);
      last_.run(size, behind, pixels<T>(out), pixels<T>(in));
    });
    return out;
  }

 private:
  DwFfn first_, last_;
  Mixer mixer_;
};

class Downsample : public Layer {
 public:
  explicit Downsample(Reader list) : first_(list), last_(list), merge_(list, first_.dw.C) {
    TORCH_CHECK(merge_.project.N == last_.dw.C && list.empty(),
                "folded: the weights of a down-sampling do not fit together");
  }

  at::Tensor run(const at::Tensor& x, Room& room) const override {
    RECORD_FUNCTION("mmmobilemamba::downsample", {});
    const at::Tensor in = checked(x, first_.dw.C);
    const Size size(in), half(in, 2);
    const at::Tensor out = image(in, half, last_.dw.C);
    for_type(in, [&](auto type) {
      using T = decltype(type);
      const Pixels<T> before = map<T>(room, size, first_.dw.C), merged = map<T>(room, half, last_.dw.C);
      first_.run(size, pixels<T>(in), before);
      merge_.run(size, half, before, merged, in.options().memory_format(at::MemoryFormat::Contiguous), room);
      last_.run(half, merged, pixels<T>(out));
    });
    room.shrink();  // the blocks behind take less
    return out;
  }

 private:
  DwFfn first_, last_;
  Merge merge_;
};

}  // namespace

std::unique_ptr<Layer> block(const Weights& weights, double eps) {
  return std::make_unique<Block>(Reader(weights), eps);
}

std::unique_ptr<Layer> downsample(const Weights& weights) { return std::make_unique<Downsample>(Reader(weights)); }
