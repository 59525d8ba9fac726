// Depth-wise convolutions in channels-last memory, padded so that all pixels lie in the middle of a window, and the
// gradient of their weights at stride 1.

#pragma once

#include "vectors.h"

namespace {

// One row of y and the window of rows of x that it sees, some of which may lie outside the image.
template <typename T>
struct Row {
  const Depthwise& p;
  const T* in;       // the first row of the window
  T* out;
  long top, bottom;  // rows top ... bottom - 1 of the window lie in the image
};

// kWidth channels of n pixels from x on, `step` pixels of the window apart; at an edge the window goes beyond it.
template <long k, long step, long n, bool edge, typename T>
static inline void convolve(const Row<T>& row, long x, long channel) {
  const Depthwise& p = row.p;
  constexpr long kColumns = (n - 1) * step + k;
  const long first = x * step - k / 2;
  const T* in = row.in + (row.top * p.W + first) * p.x_stride + channel;
  const float* weight = p.weight + row.top * k * p.C + channel;
  Vec y[n];
  for (long q = 0; q < n; ++q) y[q] = p.bias ? load_vec(p.bias + channel) : Vec{};
  for (long i = row.top; i < row.bottom; ++i, in += p.W * p.x_stride) {
    Vec window[kColumns];
    for (long m = 0; m < kColumns; ++m)
      window[m] = !edge || (first + m >= 0 && first + m < p.W) ? load_vec(in + m * p.x_stride) : Vec{};
    for (long j = 0; j < k; ++j, weight += p.C) {
      const Vec w = load_vec(weight);
      for (long q = 0; q < n; ++q) y[q] += w * window[q * step + j];
    }
  }
  for (long q = 0; q < n; ++q) store_vec(row.out + (x + q) * p.y_stride + channel, activated(y[q], p.activation));
}

template <long k, long step, typename T>
static void convolve_row(const Row<T>& row) {
  const Depthwise& p = row.p;
  constexpr long kPixels = 4;
  constexpr long kCached = 4096 / (k * k) / kWidth * kWidth;  // channels whose weights stay in the cache
  for (long begin = 0; begin < p.C; begin += kCached) {
    const long end = begin + kCached < p.C ? begin + kCached : p.C;
    for (long from = 0, width = p.out_W(); from < width; from += kPixels) {
      // The last pixels may repeat those before them, as the last vector of channels does.
      const long x = from + kPixels <= width ? from : width - kPixels;
      const bool edge = x * step < k / 2 || (x + kPixels - 1) * step + k / 2 >= p.W;
      for (long c = begin; c < end; c += kWidth) {
        const long channel = c + kWidth <= p.C ? c : p.C - kWidth;
        if (x < 0)
          for (long q = 0; q < width; ++q) convolve<k, step, 1, true>(row, q, channel);
        else if (edge) convolve<k, step, kPixels, true>(row, x, channel);
        else convolve<k, step, kPixels, false>(row, x, channel);
      }
    }
  }
}

// p.C is at least kWidth; p.step is 1, or 2 where p.k is 3.
template <typename T>
static void convolve_rows(const Depthwise& p, long begin, long end) {
  for (long i = begin; i < end; ++i) {
    const long height = p.out_H(), y = i % height * p.step, half = p.k / 2;
    const Row<T> row{p, (const T*)p.x + (i / height * p.H + y - half) * p.W * p.x_stride,
                     (T*)p.y + (i - p.y_row) * p.out_W() * p.y_stride, y < half ? half - y : 0,
                     p.H - y < half + 1 ? p.H - y + half : p.k};
    if (p.k == 3) p.step == 1 ? convolve_row<3, 1>(row) : convolve_row<3, 2>(row);
    else if (p.k == 5) convolve_row<5, 1>(row);
    else convolve_row<7, 1>(row);
  }
}

constexpr long kBlock = DepthwiseGradient::kChannels, kBlockVecs = kBlock / kWidth;

// sums[j] += the products of dy (rows, columns) and of x (rows, columns + k - 1) shifted by j pixels.
template <long k>
static inline void correlate(long rows, long columns, const float* dy, const float* x, float (*sums)[kBlock]) {
  Vec s[k][kBlockVecs] = {};
  for (long y = 0; y < rows; ++y, x += (k - 1) * kBlock)
    for (long i = 0; i < columns; ++i, dy += kBlock, x += kBlock)
      for (long v = 0; v < kBlockVecs; ++v) {
        const Vec g = load_vec(dy + v * kWidth);
        for (long j = 0; j < k; ++j) s[j][v] += g * load_vec(x + j * kBlock + v * kWidth);
      }
  for (long j = 0; j < k; ++j)
    for (long v = 0; v < kBlockVecs; ++v)
      store_vec(sums[j] + v * kWidth, load_vec(sums[j] + v * kWidth) + s[j][v]);
}

// `lanes` channels of an image (H, W, C) into the middle of (H + 2 border, W + 2 border, kBlock).
static void pack(const DepthwiseGradient& p, const float* from, long lanes, long border, float* to) {
  for (long y = 0; y < p.H; ++y) {
    to += border * kBlock * (y == 0 ? p.W + 2 * border + 1 : 2);
    for (long x = 0; x < p.W; ++x, from += p.C, to += kBlock)
      if (lanes == kBlock)
        __builtin_memcpy(to, from, sizeof(float[kBlock]));
      else
        for (long c = 0; c < lanes; ++c) to[c] = from[c];
  }
}

static void gradient_of_block(const DepthwiseGradient& p, long channel, float* room) {
  const long lanes = p.C - channel < kBlock ? p.C - channel : kBlock, size = p.H * p.W * p.C;
  float *const dy = room, *const x = room + p.H * p.W * kBlock;
  float sums[49][kBlock] = {};
  for (long image = 0; image < p.images; ++image) {
    pack(p, p.dy + image * size + channel, lanes, 0, dy);
    pack(p, p.x + image * size + channel, lanes, p.k / 2, x);
    for (long i = 0; i < p.k; ++i) {
      const float* rows = x + i * (p.W + p.k - 1) * kBlock;
      if (p.k == 3) correlate<3>(p.H, p.W, dy, rows, sums + 3 * i);
      else if (p.k == 5) correlate<5>(p.H, p.W, dy, rows, sums + 5 * i);
      else correlate<7>(p.H, p.W, dy, rows, sums + 7 * i);
    }
  }
  for (long c = 0; c < lanes; ++c)
    for (long i = 0; i < p.k * p.k; ++i) p.dweight[(channel + c) * p.k * p.k + i] = sums[i][c];
}

}  // namespace
