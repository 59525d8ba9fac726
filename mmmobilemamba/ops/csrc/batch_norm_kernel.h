// Batch normalisation of rows of C channels, C at least a vector: sums over rows, and what is done with each row.

#include "vectors.h"

namespace {

template <long n>
struct Count {
  static constexpr long value = n;
};

// run(vectors, channel, first) for all channels, several vectors at once; the lanes below `first` belong to the
// vector before.
template <typename F>
static inline void for_channels(long C, const F& run) {
  long c = 0;
  for (; c + 4 * kWidth <= C; c += 4 * kWidth) run(Count<4>(), c, 0L);
  for (; c + kWidth <= C; c += kWidth) run(Count<1>(), c, 0L);
  if (c < C) run(Count<1>(), C - kWidth, c - (C - kWidth));
}

static inline void store_from(float* p, Vec x, long first) {
  if (first == 0) return store_vec(p, x);
  for (long i = first; i < kWidth; ++i) p[i] = x[i];
}

// Rows of which all channels stay in the first-level cache.
static inline long rows_at_once(long C) { return 8192 / C < 8 ? 8 : 8192 / C; }

template <typename T>
static void moments(const void* x_, long rows, long C, float* mean, float* squares) {
  const T* const x = (const T*)x_;
  const long most = rows_at_once(C);
  for (long begin = 0; begin < rows; begin += most) {
    const long end = rows - begin < most ? rows : begin + most, n = end - begin;
    for_channels(C, [&](auto vectors, long channel, long first) {
      constexpr long kVectors = decltype(vectors)::value;
      Vec sums[kVectors] = {}, squared[kVectors] = {}, rest[kVectors] = {};
      for (long r = begin; r < end; ++r)
        for (long v = 0; v < kVectors; ++v) sums[v] += load_vec(x + r * C + channel + v * kWidth);
      for (long v = 0; v < kVectors; ++v) sums[v] /= (float)n;
      for (long r = begin; r < end; ++r)
        for (long v = 0; v < kVectors; ++v) {
          const Vec away = load_vec(x + r * C + channel + v * kWidth) - sums[v];
          squared[v] += away * away;
          rest[v] += away;
        }
      // What rounding left out of the mean.
      for (long v = 0; v < kVectors; ++v) {
        sums[v] += rest[v] / (float)n;
        squared[v] -= rest[v] * rest[v] / (float)n;
      }
      // Two sets of rows become one (Chan et al., 1979): no square of a mean is taken from another.
      for (long v = 0; v < kVectors; ++v) {
        float *const m = mean + channel + v * kWidth, *const s = squares + channel + v * kWidth;
        const Vec before = begin ? load_vec(m) : Vec{}, away = sums[v] - before;
        store_from(m, before + away * ((float)n / end), first);
        store_from(s, (begin ? load_vec(s) : Vec{}) + squared[v] + away * away * ((float)n * begin / end), first);
      }
    });
  }
}

template <typename T>
static void scale_rows(const Scaled& p, long begin, long end) {
  for (long r = begin; r < end; ++r)
    for_channels(p.C, [&](auto vectors, long channel, long) {
      for (long v = 0; v < decltype(vectors)::value; ++v) {
        const long c = channel + v * kWidth, place = r * p.C + c;
        const Vec away = load_vec((const T*)p.x + place) - load_vec(p.mean + c);
        Vec y = activated(away * load_vec(p.scale + c) + load_vec(p.bias + c), p.activation);
        if (p.add) y += load_vec((const T*)p.add + place);
        store_vec((T*)p.y + place, y);
      }
    });
}

// dy, where the activation let x pass, which is `away` from the mean.
template <typename T>
static inline Vec passed(const ScaledGradient& p, long place, Vec away, Vec scale, Vec bias) {
  const Vec dy = load_vec((const T*)p.dy + place);
  return p.activation == Activation::kRelu ? (away * scale + bias > Vec{} ? dy : Vec{}) : dy;
}

template <typename T>
static void gradient_sums(const ScaledGradient& p, long begin, long end, float* dy, float* dy_x) {
  const long most = rows_at_once(p.C);
  for (long from = begin; from < end; from += most) {
    const long to = end - from < most ? end : from + most;
    for_channels(p.C, [&](auto vectors, long channel, long first) {
      constexpr long kVectors = decltype(vectors)::value;
      Vec sums[kVectors] = {}, products[kVectors] = {}, scale[kVectors], bias[kVectors], mean[kVectors];
      for (long v = 0; v < kVectors; ++v) {
        const long c = channel + v * kWidth;
        scale[v] = load_vec(p.scale + c), bias[v] = load_vec(p.bias + c), mean[v] = load_vec(p.mean + c);
      }
      for (long r = from; r < to; ++r)
        for (long v = 0; v < kVectors; ++v) {
          const long place = r * p.C + channel + v * kWidth;
          const Vec away = load_vec((const T*)p.x + place) - mean[v];
          const Vec g = passed<T>(p, place, away, scale[v], bias[v]);
          sums[v] += g;
          products[v] += g * away;
        }
      for (long v = 0; v < kVectors; ++v) {
        float *const a = dy + channel + v * kWidth, *const b = dy_x + channel + v * kWidth;
        store_from(a, (from > begin ? load_vec(a) : Vec{}) + sums[v], first);
        store_from(b, (from > begin ? load_vec(b) : Vec{}) + products[v], first);
      }
    });
  }
}

template <typename T>
static void scale_gradient(const ScaledGradient& p, long begin, long end) {
  for (long r = begin; r < end; ++r)
    for_channels(p.C, [&](auto vectors, long channel, long) {
      for (long v = 0; v < decltype(vectors)::value; ++v) {
        const long c = channel + v * kWidth, place = r * p.C + c;
        const Vec away = load_vec((const T*)p.x + place) - load_vec(p.mean + c), scale = load_vec(p.scale + c);
        const Vec dy = passed<T>(p, place, away, scale, load_vec(p.bias + c));
        store_vec((T*)p.dx + place, dy * scale + away * load_vec(p.of_x + c) + load_vec(p.rest + c));
      }
    });
}

}  // namespace
