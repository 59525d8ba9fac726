// What selective_scan.cpp, which knows PyTorch, hands to the kernels, which do not.

#pragma once

constexpr long kLanes = 32, kSteps = 32;

struct Bfloat16 { unsigned short bits; };

struct View {
  const void* data;
  long image, direction, channel, position;  // strides in elements
};

// Channels come in blocks of kLanes that do not cross a group: `blocks` per group, `parts` in all.
struct Problem {
  long images, K, G, N, L, channels, tiles, blocks, parts;
  bool softplus;
  View u, delta, u_like, delta_like;  // *_like: strides of float32 tensors laid out as u and delta
  const float *A, *B, *C, *D, *bias;  // (K, D, N); (image, K, G, N, L) twice; (K, D) or null twice
  float* states;                      // (image, K, tiles, N, D): the states that enter the tiles
  float* y;
};

struct Gradients {
  View y;
  float *u, *delta;
  float *A, *B, *C, *D, *bias;  // per image, and B and C per part
  float* states;                // (image, K, N, D): what a tile hands to the one before it
};

// The functions of scan_kernel.h, compiled for one instruction set.
struct Kernels {
  using Forward = void(const Problem&, long image, long group, long channel, long lanes);
  using Backward = void(const Problem&, const Gradients&, long image, long group, long channel, long lanes,
                        long part);
  Forward *forward, *forward_bfloat16;
  Backward *backward, *backward_bfloat16;
};

extern const Kernels kBaselineKernels;
#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
#define SCAN_X86
extern const Kernels kAvx2Kernels, kAvx512Kernels;
#endif
