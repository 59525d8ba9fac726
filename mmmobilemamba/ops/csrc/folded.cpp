// The blocks of a folded MobileMamba on CPUs, each computed as one: what lies between two of its layers mostly stays
// in the cache, and nothing but arithmetic takes time.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/record_function.h>
#include <torch/custom_class.h>

#include <optional>
#include <vector>

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
  T* row(long i, long W) const { return data + i * W * stride; }
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
};

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
              Pixels<T> add = {}, const T* add2 = nullptr) {
  Product p{};
  p.x = x.data, p.x_stride = x.stride, p.y = y.data, p.y_stride = y.stride;
  p.add[0] = add.data, p.add[1] = add2, p.add_stride = add.stride;
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
    q.x += begin * p.C, q.y = (T*)p.y + begin * p.C;
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

at::Tensor image(const at::Tensor& like, long C) {
  return at::empty({like.size(0), C, like.size(2), like.size(3)}, like.options().memory_format(kChannelsLast));
}

// t + reduce(relu(expand(t))) + add for t = dw(x), which holds its identity branch.
struct DwFfn {
  Kernel dw;
  Linear expand, reduce;
  explicit DwFfn(Reader& list) : dw(list), expand(list.product(dw.C)), reduce(list.product(expand.N)) {
    TORCH_CHECK(reduce.N == dw.C, "folded: an FFN must give as many channels as it takes");
  }

  template <typename T>
  at::Tensor run(const at::Tensor& x, const T* add = nullptr) const {
    RECORD_FUNCTION("mmmobilemamba::dw_ffn", {});
    const Size size(x);
    const long C = dw.C, W = size.W;
    const at::Tensor y = image(x, C);
    for_strips(size.rows(), W, [&](long begin, long end) {
      const long n = (end - begin) * W;
      const Pixels<T> t{scratch<T>(Slot::kInput, n * C), C}, hidden{scratch<T>(Slot::kHidden, n * expand.N), expand.N};
      convolve<T>(dw, size, pixels<T>(x), t, begin, end, Activation::kNone);
      multiply<T>(expand, n, t, hidden, Activation::kRelu);
      multiply<T>(reduce, n, hidden, {pixels<T>(y).row(begin, W), C}, Activation::kNone, t,
                  add ? add + begin * W * C : nullptr);
    }, std::is_same_v<T, float> ? 96 : 160);  // products in bfloat16 take less time than their weights
    return y;
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
  at::Tensor A, skip, delta_bias, to_delta;
  long D;
  Linear out_proj, in_proj, gate_proj;
  Kernel conv;
  Linear to_scan;
  at::Tensor norm_weight, norm_bias, wavelet;
  Linear proj;
  std::optional<Local> local;

  Mixer(Reader& list, long C)
      : A(list.tensor()), skip(list.tensor()), delta_bias(list.tensor()), to_delta(list.tensor()), D(A.size(1)),
        out_proj(list.product(D)), in_proj(list.product(out_proj.N)), gate_proj(list.product(out_proj.N)), conv(list),
        to_scan(list.product(D)), norm_weight(list.floats({D})), norm_bias(list.floats({D})), wavelet(list.tensor()),
        proj(list.product(C)) {
    if (!list.empty()) local.emplace(list);
    const long k = wavelet.size(1);
    TORCH_CHECK(in_proj.N == D && gate_proj.N == D && conv.C == D && proj.N == C
                    && out_proj.N + (local ? local->dw.C : 0) <= C,
                "folded: the weights of a mixer do not fit together");
    TORCH_CHECK(wavelet.scalar_type() == at::kFloat && wavelet.is_contiguous() && (k == 3 || k == 5 || k == 7)
                    && wavelet.numel() == k * k * 4 * out_proj.N && out_proj.N % Wavelets::kChannels == 0,
                "folded: the kernels of the wavelets do not fit to ", out_proj.N, " channels");
  }

  template <typename T>
  at::Tensor run(const at::Tensor& x, double eps) const {
    const Size size(x);
    const auto options = x.options().memory_format(at::MemoryFormat::Contiguous);
    const at::Tensor u = at::empty({size.B, size.H * size.W, D}, options);
    const at::Tensor rows = at::empty({size.B, size.H * size.W, to_scan.N}, options);
    prepare<T>(size, x, u, rows);
    return combine<T>(size, x, scan(u, rows), wavelets<T>(size, x), eps);
  }

  // What the scan reads: u, and the projections of it that Δ, B and C are made of.
  template <typename T>
  void prepare(const Size& size, const at::Tensor& x, const at::Tensor& u, const at::Tensor& rows) const {
    RECORD_FUNCTION("mmmobilemamba::scan_inputs", {});
    const long W = size.W;
    const at::Tensor projected = at::empty_like(u);
    const auto of = [&](const at::Tensor& t, long row) {
      return Pixels<T>{(T*)t.data_ptr() + row * W * t.size(2), t.size(2)};
    };
    for_strips(size.rows(), W, [&](long begin, long end) {
      multiply<T>(in_proj, (end - begin) * W, {pixels<T>(x).row(begin, W), x.size(1)}, of(projected, begin));
    });
    for_strips(size.rows(), W, [&](long begin, long end) {
      convolve<T>(conv, size, of(projected, 0), of(u, begin), begin, end, Activation::kSwish);
      multiply<T>(to_scan, (end - begin) * W, of(u, begin), of(rows, begin));
    });
  }

  at::Tensor scan(const at::Tensor& u, const at::Tensor& rows) const {
    RECORD_FUNCTION("selective scan", {});
    return projected_scan(u.transpose(1, 2), rows, to_delta, A, skip, delta_bias);
  }

  template <typename T>
  at::Tensor wavelets(const Size& size, const at::Tensor& x) const {
    RECORD_FUNCTION("mmmobilemamba::wavelets", {});
    const long wide = out_proj.N, blocks = wide / Wavelets::kChannels;
    const at::Tensor y = image(x, wide);
    const Wavelets p{size.B, size.H, size.W, wavelet.size(1), x.const_data_ptr(), x.size(1),
                     wavelet.const_data_ptr<float>(), y.data_ptr(), wide};
    const auto run = std::is_same_v<T, float> ? kernels().wavelets : kernels().wavelets_bfloat16;
    at::parallel_for(0, size.B * blocks, 1, [&](int64_t begin, int64_t end) {
      float* const room = scratch<float>(Slot::kInput, 2 * p.bands());
      for (int64_t i = begin; i < end; ++i) run(p, i / blocks, i % blocks, room);
    });
    return y;
  }

  template <typename T>
  at::Tensor combine(const Size& size, const at::Tensor& x, const at::Tensor& scanned,
                     const at::Tensor& wavelets, double eps) const {
    RECORD_FUNCTION("mmmobilemamba::mix", {});
    const long W = size.W, C = x.size(1), wide = out_proj.N, local_wide = wide + (local ? local->dw.C : 0);
    const at::Tensor y = image(x, C);
    for_strips(size.rows(), W, [&](long begin, long end) {
      const long n = (end - begin) * W, first = begin * W;
      const Pixels<T> gated{scratch<T>(Slot::kInput, n * D), D}, mixed{scratch<T>(Slot::kHidden, n * C), C};
      const Pixels<T> in{pixels<T>(x).row(begin, W), C};
      multiply<T>(gate_proj, n, in, gated, Activation::kSwish);
      norm_gate<T>({D, scanned.const_data_ptr<float>() + first * D, norm_weight.const_data_ptr<float>(),
                    norm_bias.const_data_ptr<float>(), (float)eps, gated.data}, n);
      multiply<T>(out_proj, n, gated, mixed, Activation::kRelu, {pixels<T>(wavelets).row(begin, W), wide});
      if (local) {
        const Pixels<T> part{mixed.data + wide, C};
        convolve<T>(local->dw, size, {pixels<T>(x).data + wide, C}, part, begin, end, Activation::kRelu);
        affine_relu<T>({local->dw.C, part.data, local->weight.const_data_ptr<float>(),
                        local->bias.const_data_ptr<float>(), part.data, C, C}, n);
      }
      affine_relu<T>({C - local_wide, in.data + local_wide, nullptr, nullptr, mixed.data + local_wide, C, C}, n);
      multiply<T>(proj, n, mixed, {pixels<T>(y).row(begin, W), C}, Activation::kNone, in);
    });
    return y;
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

  // Of each channel of images (B, pixels, C).
  template <typename T>
  at::Tensor means(const at::Tensor& x) const {
    constexpr long kChannels = 64;
    const long B = x.size(0), C = x.size(2), blocks = (C + kChannels - 1) / kChannels;
    const at::Tensor y = at::empty({B, C}, x.options());
    const auto run = std::is_same_v<T, float> ? kernels().channel_means : kernels().channel_means_bfloat16;
    at::parallel_for(0, B * blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const long image = i / blocks, first = i % blocks * kChannels;
        const ChannelMeans p{x.size(1), C, (const T*)x.const_data_ptr() + image * x.size(1) * C,
                             (T*)y.data_ptr() + image * C};
        run(p, first, std::min(first + kChannels, C));
      }
    });
    return y;
  }

  // A factor in float32 for each channel of images (B, pixels, C).
  template <typename T>
  at::Tensor gates(const at::Tensor& x) const {
    const long B = x.size(0);
    const at::Tensor mean = means<T>(x), hidden = at::empty({B, squeeze.N}, x.options()), y = at::empty_like(mean);
    multiply<T>(squeeze, B, {(T*)mean.data_ptr(), dw.C}, {(T*)hidden.data_ptr(), squeeze.N}, Activation::kRelu);
    multiply<T>(excite, B, {(T*)hidden.data_ptr(), squeeze.N}, {(T*)y.data_ptr(), dw.C});
    return y.sigmoid_().to(at::kFloat);
  }

  template <typename T>
  at::Tensor run(const at::Tensor& x) const {
    RECORD_FUNCTION("mmmobilemamba::merge", {});
    const Size size(x), half(x, 2);
    const long W = size.W, C = dw.C, pixels_out = half.H * half.W;
    const at::Tensor wide = image(x, C);
    for_strips(size.rows(), W, [&](long begin, long end) {
      multiply<T>(expand, (end - begin) * W, {pixels<T>(x).row(begin, W), x.size(1)},
                  {pixels<T>(wide).row(begin, W), C}, Activation::kRelu);
    });
    const auto options = x.options().memory_format(at::MemoryFormat::Contiguous);
    const at::Tensor small = at::empty({size.B, pixels_out, C}, options);
    convolve<T>(dw, size, pixels<T>(wide), {(T*)small.data_ptr(), C}, 0, half.rows(), Activation::kRelu, 2);
    const at::Tensor factors = gates<T>(small);
    const at::Tensor y = at::empty({size.B, project.N, half.H, half.W}, x.options().memory_format(kChannelsLast));
    for (long i = 0; i < size.B; ++i) {
      const Pixels<T> from{(T*)small.data_ptr() + i * pixels_out * C, C};
      const Pixels<T> to{(T*)y.data_ptr() + i * pixels_out * project.N, project.N};
      const float* gate = factors.const_data_ptr<float>() + i * C;
      for_strips(half.H, half.W, [&](long begin, long end) {
        const long n = (end - begin) * half.W;
        const Pixels<T> in{from.row(begin, half.W), C}, gated{scratch<T>(Slot::kInput, n * C), C};
        affine_relu<T>({C, in.data, gate, nullptr, gated.data, C, C}, n);
        multiply<T>(project, n, gated, {to.row(begin, half.W), project.N});
      });
    }
    return y;
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
at::Tensor for_type(const at::Tensor& x, const F& run) {
  return x.scalar_type() == at::kFloat ? run(float()) : run(Bfloat16());
}

// x + dw_ffn(mixer(dw_ffn(x))).
class Block : public torch::CustomClassHolder {
 public:
  // Those of the two DwFfn, then of the Mixer.
  explicit Block(const std::vector<at::Tensor>& weights) : Block(Reader(weights)) {}

  at::Tensor run(const at::Tensor& x, double eps) const {
    RECORD_FUNCTION("mmmobilemamba::block", {});
    const at::Tensor in = checked(x, first_.dw.C);
    return for_type(x, [&](auto type) {
      using T = decltype(type);
      return last_.run<T>(mixer_.run<T>(first_.run<T>(in), eps), (const T*)in.const_data_ptr());
    });
  }

 private:
  explicit Block(Reader list) : first_(list), last_(list), mixer_(list, first_.dw.C) {
    TORCH_CHECK(first_.dw.C == last_.dw.C && list.empty(), "folded: the weights of a block do not fit together");
  }

  DwFfn first_, last_;
  Mixer mixer_;
};

// dw_ffn(merge(dw_ffn(x))).
class Downsample : public torch::CustomClassHolder {
 public:
  // Those of the two DwFfn, before and behind the Merge, and then its own.
  explicit Downsample(const std::vector<at::Tensor>& weights) : Downsample(Reader(weights)) {}

  at::Tensor run(const at::Tensor& x) const {
    RECORD_FUNCTION("mmmobilemamba::downsample", {});
    const at::Tensor in = checked(x, first_.dw.C);
    return for_type(x, [&](auto type) {
      using T = decltype(type);
      return last_.run<T>(merge_.run<T>(first_.run<T>(in)));
    });
  }

 private:
  explicit Downsample(Reader list) : first_(list), last_(list), merge_(list, first_.dw.C) {
    TORCH_CHECK(merge_.project.N == last_.dw.C && list.empty(),
                "folded: the weights of a down-sampling do not fit together");
  }

  DwFfn first_, last_;
  Merge merge_;
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(mmmobilemamba, library) {
  library.class_<Block>("Block")
      .def(torch::init<const std::vector<at::Tensor>&>())
      .def("run", [](const c10::intrusive_ptr<Block>& self, const at::Tensor& x, double eps) {
        return self->run(x, eps);
      });
  library.class_<Downsample>("Downsample")
      .def(torch::init<const std::vector<at::Tensor>&>())
      .def("run", [](const c10::intrusive_ptr<Downsample>& self, const at::Tensor& x) { return self->run(x); });
}
