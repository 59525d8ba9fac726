// What the operators, which know PyTorch, hand to the kernels, which do not.
//
// The kernels*.cpp compile all_kernels.h for their instruction sets. What they compile must not be shared
// with files for other ones: no std::, no ATen.

#pragma once

constexpr long kLanes = 32, kSteps = 32;

struct Bfloat16 { unsigned short bits; };

struct View {
  const void* data;
  long image, direction, channel, position;  // strides in elements
};

// What the scan reads instead of Δ, B and C where they are all projections of u: rows (image, L, `stride`) of `rank`
// numbers for each direction, whose product with to_delta (K, rank, D) is Δ, then B (N) and C (N) for each.
struct Projected {
  long rank, stride;
  const void* rows;
  const float* to_delta;
};

// Channels come in blocks of kLanes that do not cross a group: `blocks` per group, `parts` in all.
struct Scan {
  long images, K, G, N, L, channels, tiles, blocks, parts;
  bool softplus;
  View u, delta, u_like, delta_like;  // *_like: strides of float32 tensors laid out as u and delta
  const float *A, *B, *C, *D, *bias;  // (K, D, N); (image, K, G, N, L) twice; (K, D) or null twice
  Projected projected;                // rows null where delta, B and C are given
  float* states;                      // (image, K, tiles, N, D): the states that enter the tiles
  float* y;
};

struct ScanGradients {
  View y;
  float *u, *delta;
  float *A, *B, *C, *D, *bias;  // per image, and B and C per part
  float* states;                // (image, K, N, D): what a tile hands to the one before it
};

enum class Activation : long { kNone, kRelu, kSwish };

// y = activation(conv(x) + bias): x (images, H, W, C), y (images, out_H(), out_W(), C), weight (k, k, C), bias (C)
// or null.
struct Depthwise {
  long images, C, H, W, k;
  const void* x;
  const float *weight, *bias;
  void* y;
  Activation activation;
  long x_stride, y_stride;  // from one pixel to the next in memory
  long y_row = 0;           // that y begins with, of the images * out_H()
  long step = 1;            // pixels of x from one of y to the next
  long out_H() const { return (H + step - 1) / step; }
  long out_W() const { return (W + step - 1) / step; }
};

// One level of Haar, depth-wise convolutions of the four bands, and the inverse: blocks of kChannels channels.
struct Wavelets {
  long images, H, W, k;
  const void* x;  // (images, H, W, …)
  long x_stride;
  const float* weight;  // (blocks, k, k, 4, kChannels)
  void* y;
  long y_stride;
  static constexpr long kChannels = 16;
  long bands() const { return (H + 1) / 2 * ((W + 1) / 2) * 4 * kChannels; }  // numbers
};

// y = activation(x · weight + bias + add): rows of K numbers in, of N numbers out. The K numbers are `segments`
// pieces of the same length, from the beginning of one to that of the next x_segment.
struct Product {
  struct Rows {
    const void* data;  // may be null
    long stride;
  };
  long K, N;
  const void* x;
  const float *weight, *bias;  // packed by pack_product, in bfloat16 pairs of numbers; bias may be null
  Rows add[2];
  void* y;
  Activation activation;
  long x_stride, y_stride;  // from one row to the next
  bool padded = false;      // behind each row of x there are zeros, as many as padded_stride makes room for
  long segments = 1, x_segment = 0;
};

// y = relu(x · weight + bias): rows of C numbers; weight and bias may be null.
struct Affine {
  long C;
  const void* x;
  const float *weight, *bias;
  void* y;
  long x_stride, y_stride;
};

// y = activation((x - mean) · scale + bias) + add: rows of C numbers; add may be null.
struct Scaled {
  long C;
  const void* x;
  const float *mean, *scale, *bias;
  Activation activation;
  const void* add;
  void* y;
};

// The gradient of a Scaled without add from that of its result.
struct ScaledGradient {
  long C;
  const void *dy, *x;
  const float *mean, *scale, *bias;
  Activation activation;  // none or relu
  // dx = dy · scale + (x - mean) · of_x + rest.
  const float *of_x, *rest;
  void* dx;
};

// y *= layer_norm(x): rows of C numbers.
struct NormGate {
  long C;
  const float *x, *weight, *bias;
  float eps;
  void* y;
  long y_stride;
};

// Means y (C) of rows of C numbers.
struct ChannelMeans {
  long rows, C;
  const void* x;
  void* y;
};

// dL/dweight (C, k, k) from dL/dy and x (images, H, W, C).
struct DepthwiseGradient {
  long images, C, H, W, k;
  const float *dy, *x;
  float* dweight;
  // Numbers that one call works on; zeros before the first call.
  long room() const { return kChannels * (H * W + (H + k - 1) * (W + k - 1)); }
  static constexpr long kChannels = 16;  // that one call handles
};

struct Kernels {
  // Up to kLanes channels of one group of one image.
  void (*scan)(const Scan&, long image, long group, long channel, long lanes);
  void (*scan_bfloat16)(const Scan&, long image, long group, long channel, long lanes);
  using ScanBackward = void(const Scan&, const ScanGradients&, long image, long group, long channel, long lanes,
                            long part);
  ScanBackward *scan_backward, *scan_backward_bfloat16;
  // Rows begin ... end - 1 of the images * out_H().
  void (*depthwise)(const Depthwise&, long begin, long end);
  void (*depthwise_bfloat16)(const Depthwise&, long begin, long end);
  void (*depthwise_gradient)(const DepthwiseGradient&, long channel, float* room);
  // Mean, and sum of squares about it, of each channel of rows of C numbers.
  void (*moments)(const void* x, long rows, long C, float* mean, float* squares);
  void (*moments_bfloat16)(const void* x, long rows, long C, float* mean, float* squares);
  void (*scale)(const Scaled&, long begin, long end);
  void (*scale_bfloat16)(const Scaled&, long begin, long end);
  // Sums of dy and of dy · (x - mean), where the activation let x pass.
  void (*gradient_sums)(const ScaledGradient&, long begin, long end, float* dy, float* dy_x);
  void (*gradient_sums_bfloat16)(const ScaledGradient&, long begin, long end, float* dy, float* dy_x);
  void (*scale_gradient)(const ScaledGradient&, long begin, long end);
  void (*scale_gradient_bfloat16)(const ScaledGradient&, long begin, long end);
  // One block of channels of one image; room for twice the bands.
  void (*wavelets)(const Wavelets&, long image, long block, float* room);
  void (*wavelets_bfloat16)(const Wavelets&, long image, long block, float* room);
  // Rows row ... last - 1 and panels begin ... end - 1, each of `panel` columns, the last one perhaps of half of
  // them; `block` rows of a panel at most are computed at once. In bfloat16 for segments of even length, and null where
  // the processor has no instructions for it.
  using Panels = void(const Product&, long row, long last, long begin, long end);
  Panels *product, *product_bfloat16;
  long panel, block;
  using Pack = void(const void* weight, long N, long K, void* packed);
  Pack *pack_product, *pack_product_bfloat16;
  void (*finish_bfloat16)(const Product&, const float* product, long rows);
  void (*affine_relu)(const Affine&, long rows);
  void (*affine_relu_bfloat16)(const Affine&, long rows);
  void (*norm_gate)(const NormGate&, long rows);
  void (*norm_gate_bfloat16)(const NormGate&, long rows);
  void (*channel_means)(const ChannelMeans&, long begin, long end);
  void (*channel_means_bfloat16)(const ChannelMeans&, long begin, long end);
};

// What a file that has included the kernels calls them.
#define KERNELS                                                                                       \
  {forward_block<float>, forward_block<Bfloat16>, backward_block<float>, backward_block<Bfloat16>,    \
   convolve_rows<float>, convolve_rows<Bfloat16>, gradient_of_block,                                  \
   moments<float>, moments<Bfloat16>, scale_rows<float>, scale_rows<Bfloat16>,                        \
   gradient_sums<float>, gradient_sums<Bfloat16>, scale_gradient<float>, scale_gradient<Bfloat16>,    \
   mix_bands<float>, mix_bands<Bfloat16>,                                                             \
   multiply_panels<float>, kPanelsBfloat16, 2 * kWidth, kBlockRows,                                   \
   pack_panels<float>, pack_panels<Bfloat16>, finish_rows,                                            \
   affine_relu<float>, affine_relu<Bfloat16>, norm_gate<float>, norm_gate<Bfloat16>,                  \
   channel_means<float>, channel_means<Bfloat16>}

const Kernels& kernels();  // the fastest that the processor can run

#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
#define KERNELS_X86
extern const Kernels kAvx2Kernels, kAvx512Kernels;
#if defined(__clang__) || __GNUC__ >= 10
#define KERNELS_BFLOAT16
extern const Kernels kAvx512Bfloat16Kernels;  // of processors that have instructions for it
#endif
#endif
