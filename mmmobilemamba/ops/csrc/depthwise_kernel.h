// Depth-wise convolutions in channels-last memory, stride 1 and as many pixels out as in, and the gradient of
// their weights.

#include "vectors.h"

namespace {

typedef unsigned short ShortVec __attribute__((vector_size(2 * VECTOR_WIDTH)));

static inline Vec load_vec(const Bfloat16* p) {
  ShortVec x;
  __builtin_memcpy(&x, p, sizeof x);
  return (Vec)(__builtin_convertvector(x, IntVec) << 16);
}

static inline void store_vec(Bfloat16* p, Vec x) {
  const IntVec bits = (IntVec)x, odd = (bits >> 16) & 1;
  const IntVec rounded = ((bits + 0x7fff + odd) >> 16) & 0xffff;
  const ShortVec y = __builtin_convertvector(x == x ? rounded : IntVec{} + 0x7fc0, ShortVec);
  __builtin_memcpy(p, &y, sizeof y);
}

static inline Vec activated(Vec x, Activation activation) {
  if (activation == Activation::kRelu) return x < Vec{} ? Vec{} : x;
  if (activation == Activation::kSwish) return x / (1.0f + exp_(-x));
  return x;
}

// One row of y and the window of rows of x that it sees, some of which may lie outside the image.
template <typename T>
struct Row {
  const Depthwise& p;
  const T* in;       // the first row of the window
  T* out;
  long top, bottom;  // rows top ... bottom - 1 of the window lie in the image
};

// kWidth channels of n pixels that see columns left ... right - 1 of the window.
template <long k, long n, typename T>
static inline void convolve(const Row<T>& row, long x, long channel, long left, long right) {
  const Depthwise& p = row.p;
  const T* const in = row.in + (x - k / 2) * p.C + channel;
  const float* const weight = p.weight + channel;
  Vec y[n];
  for (long q = 0; q < n; ++q) y[q] = p.bias ? load_vec(p.bias + channel) : Vec{};
  for (long i = row.top; i < row.bottom; ++i)
    for (long j = left; j < right; ++j) {
      const Vec w = load_vec(weight + (i * k + j) * p.C);
      for (long q = 0; q < n; ++q) y[q] += w * load_vec(in + (i * p.W + j + q) * p.C);
    }
  for (long q = 0; q < n; ++q) store_vec(row.out + (x + q) * p.C + channel, activated(y[q], p.activation));
}

template <long k, typename T>
static void convolve_row(const Row<T>& row) {
  const Depthwise& p = row.p;
  constexpr long kPixels = 4, kCached = 4096 / (k * k) / kWidth * kWidth;  // channels whose weights stay there
  for (long begin = 0; begin < p.C; begin += kCached) {
    const long end = begin + kCached < p.C ? begin + kCached : p.C;
    for (long x = 0; x < p.W;) {
      const bool inside = x >= k / 2 && x + kPixels + k / 2 <= p.W;
      const long left = x < k / 2 ? k / 2 - x : 0, right = p.W - x < k / 2 + 1 ? p.W - x + k / 2 : k;
      for (long c = begin; c < end; c += kWidth) {
        // The last vector goes over channels of the one before it again.
        const long channel = c + kWidth <= p.C ? c : p.C - kWidth;
        if (inside) convolve<k, kPixels>(row, x, channel, 0, k);
        else convolve<k, 1>(row, x, channel, left, right);
      }
      x += inside ? kPixels : 1;
    }
  }
}

// p.C is at least kWidth.
template <typename T>
static void convolve_rows(const Depthwise& p, long begin, long end) {
  for (long i = begin; i < end; ++i) {
    const long y = i % p.H, half = p.k / 2, size = p.W * p.C;
    const Row<T> row{p, (const T*)p.x + (i - half) * size, (T*)p.y + i * size, y < half ? half - y : 0,
                     p.H - y < half + 1 ? p.H - y + half : p.k};
    if (p.k == 3) convolve_row<3>(row);
    else if (p.k == 5) convolve_row<5>(row);
    else convolve_row<7>(row);
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
