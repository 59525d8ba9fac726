// What the operators, which know PyTorch, hand to the kernels, which do not.
//
// kernels.cpp, kernels_avx2.cpp and kernels_avx512.cpp compile scan_kernel.h and depthwise_kernel.h for their
// instruction sets. What they compile must not be shared with files for other ones: no std::, no ATen.

#pragma once

constexpr long kLanes = 32, kSteps = 32;

struct Bfloat16 { unsigned short bits; };

struct View {
  const void* data;
  long image, direction, channel, position;  // strides in elements
};

// Channels come in blocks of kLanes that do not cross a group: `blocks` per group, `parts` in all.
struct Scan {
  long images, K, G, N, L, channels, tiles, blocks, parts;
  bool softplus;
  View u, delta, u_like, delta_like;  // *_like: strides of float32 tensors laid out as u and delta
  const float *A, *B, *C, *D, *bias;  // (K, D, N); (image, K, G, N, L) twice; (K, D) or null twice
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

// y = activation(conv(x) + bias): x and y (images, H, W, C), weight (k, k, C), bias (C) or null.
struct Depthwise {
  long images, C, H, W, k;
  const void* x;
  const float *weight, *bias;
  void* y;
  Activation activation;
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
  // Rows begin ... end - 1 of the images * H.
  void (*depthwise)(const Depthwise&, long begin, long end);
  void (*depthwise_bfloat16)(const Depthwise&, long begin, long end);
  void (*depthwise_gradient)(const DepthwiseGradient&, long channel, float* room);
};

// What a file that has included both kernels calls them.
#define KERNELS                                                                                       \
  {forward_block<float>, forward_block<Bfloat16>, backward_block<float>, backward_block<Bfloat16>,    \
   convolve_rows<float>, convolve_rows<Bfloat16>, gradient_of_block}

const Kernels& kernels();  // the fastest that the processor can run

#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
#define X86
extern const Kernels kAvx2Kernels, kAvx512Kernels;
#endif
