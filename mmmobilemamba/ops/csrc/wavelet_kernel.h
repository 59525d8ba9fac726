// The wavelet branch of a folded network. It mixes no channels: a block of them goes through all three steps while
// it stays in the second-level cache.

#include "depthwise_kernel.h"
#include "vectors.h"

namespace {

// Four pixels or bands to the others, without the factor 1/2.
static inline void butterfly(const Vec* x, Vec* y) {
  const Vec top = x[0] + x[1], bottom = x[2] + x[3], top_diff = x[0] - x[1], bottom_diff = x[2] - x[3];
  y[0] = top + bottom, y[1] = top - bottom, y[2] = top_diff + bottom_diff, y[3] = top_diff - bottom_diff;
}

// run(bands, pixel, inside) for every place of the bands: where its four pixels are, and which lie in the image.
template <typename F>
static inline void for_places(const Wavelets& p, float* bands, const F& run) {
  for (long i = 0; i < p.H; i += 2)
    for (long j = 0; j < p.W; j += 2, bands += 4 * p.kChannels) {
      const bool below = i + 1 < p.H, right = j + 1 < p.W, inside[4] = {true, right, below, below && right};
      const long first = i * p.W + j, pixel[4] = {first, first + 1, first + p.W, first + p.W + 1};
      run(bands, pixel, inside);
    }
}

template <typename T>
static void mix_bands(const Wavelets& p, long image, long block, float* room) {
  const long channel = block * p.kChannels, pixels = image * p.H * p.W;
  const T* const x = (const T*)p.x + pixels * p.x_stride + channel;
  T* const y = (T*)p.y + pixels * p.y_stride + channel;
  float* const mixed = room + p.bands();
  for_places(p, room, [&](float* bands, const long* pixel, const bool* inside) {
    for (long c = 0; c < p.kChannels; c += kWidth) {
      Vec corners[4], y[4];
      for (long q = 0; q < 4; ++q) corners[q] = inside[q] ? load_vec(x + pixel[q] * p.x_stride + c) : Vec{};
      butterfly(corners, y);
      for (long q = 0; q < 4; ++q) store_vec(bands + q * p.kChannels + c, y[q]);
    }
  });
  constexpr long kBands = 4 * Wavelets::kChannels;
  const Depthwise conv{1, kBands, (p.H + 1) / 2, (p.W + 1) / 2, p.k, room, p.weight + block * p.k * p.k * kBands,
                       nullptr, mixed, Activation::kNone, kBands, kBands};
  convolve_rows<float>(conv, 0, conv.H);
  for_places(p, mixed, [&](float* bands, const long* pixel, const bool* inside) {
    for (long c = 0; c < p.kChannels; c += kWidth) {
      Vec x[4], corners[4];
      for (long q = 0; q < 4; ++q) x[q] = load_vec(bands + q * p.kChannels + c);
      butterfly(x, corners);
      for (long q = 0; q < 4; ++q)
        if (inside[q]) store_vec(y + pixel[q] * p.y_stride + c, corners[q]);
    }
  });
}

}  // namespace
