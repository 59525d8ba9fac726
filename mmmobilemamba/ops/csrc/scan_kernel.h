// The arithmetic of the selective scan.
//
// One call handles up to kLanes channels of one group of one image, in all directions. Positions go
// through tiles of kSteps in the layout (position, channel), which stay in the first-level cache.

#include "vectors.h"

namespace {

constexpr long kVecs = kLanes / kWidth;
using Lanes = Vec[kVecs];
using Tile = Vec[kSteps][kVecs];

static inline float* floats(Vec* x) { return (float*)x; }
static inline const float* floats(const Vec* x) { return (const float*)x; }

// log(1 + z) for 0 ≤ z ≤ 1 as z · P(z), relative error of P 3e-8: accurate for tiny z too.
static inline Vec log1p_(Vec z) {
  Vec p = z * 5.2326945588e-3f - 2.9505243525e-2f;
  p = p * z + 7.8225962818e-2f;
  p = p * z - 1.3663247228e-1f;
  p = p * z + 1.9106008112e-1f;
  p = p * z - 2.4842981994e-1f;
  p = p * z + 3.3319097757e-1f;
  p = p * z - 4.9999493360e-1f;
  p = p * z + 9.9999994040e-1f;
  return z * p;
}

static inline Vec minus_abs(Vec x) { return (Vec)((IntVec)x | (int)0x80000000); }
static inline Vec positive_part(Vec x) { return larger(Vec{}, x); }

#ifdef __clang__
#define SCAN_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SCAN_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, IntVec8{__VA_ARGS__})
#endif

static inline void transpose8(Vec8* x) {
  Vec8 y[8];
  for (long i = 0; i < 8; i += 2) {
    y[i] = SCAN_SHUFFLE(x[i], x[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    y[i + 1] = SCAN_SHUFFLE(x[i], x[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (long i = 0; i < 8; i += 4)
    for (long j = 0; j < 2; ++j) {
      x[i + 2 * j] = SCAN_SHUFFLE(y[i + j], y[i + 2 + j], 0, 1, 8, 9, 4, 5, 12, 13);
      x[i + 2 * j + 1] = SCAN_SHUFFLE(y[i + j], y[i + 2 + j], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  for (long i = 0; i < 4; ++i) {
    y[i] = SCAN_SHUFFLE(x[i], x[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    y[i + 4] = SCAN_SHUFFLE(x[i], x[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
  for (long i = 0; i < 8; ++i) x[i] = y[i];
}

// tile[t][c] ← source(c, t), whatever the strides; what lies beyond the edge becomes zero.
template <typename T>
static void load_tile(const T* source, long stride_c, long stride_t, long lanes, long steps, Tile& tile) {
  if (stride_c == 1 && lanes == kLanes && steps == kSteps) {
    for (long t = 0; t < kSteps; ++t)
      for (long v = 0; v < kVecs; ++v) tile[t][v] = load_vec(source + t * stride_t + v * kWidth);
    return;
  }
  if (lanes < kLanes || steps < kSteps)
    for (long t = 0; t < kSteps; ++t)
      for (long v = 0; v < kVecs; ++v) tile[t][v] = Vec{};
  const long lanes8 = stride_c == 1 || stride_t == 1 ? lanes & -8 : 0;
  const long steps8 = stride_c == 1 ? steps : stride_t == 1 ? steps & -8 : 0;
  if (stride_c == 1) {
    for (long t = 0; t < steps; ++t)
      for (long c = 0; c < lanes8; c += 8)
        *(Vec8*)(floats(tile[t]) + c) = load8(source + t * stride_t + c);
  } else {
    for (long c = 0; c < lanes8; c += 8)
      for (long t = 0; t < steps8; t += 8) {
        Vec8 block[8];
        for (long i = 0; i < 8; ++i) block[i] = load8(source + (c + i) * stride_c + t);
        transpose8(block);
        for (long i = 0; i < 8; ++i) *(Vec8*)(floats(tile[t + i]) + c) = block[i];
      }
  }
  for (long c = 0; c < lanes; ++c)
    for (long t = c < lanes8 ? steps8 : 0; t < steps; ++t)
      floats(tile[t])[c] = load1(source + c * stride_c + t * stride_t);
}

// target(c, t) ← tile[t][c], or += where kAdd.
template <bool kAdd>
static void store_tile(const Tile& tile, float* target, long stride_c, long stride_t, long lanes, long steps) {
  if (stride_c == 1 && lanes == kLanes) {
    for (long t = 0; t < steps; ++t)
      for (long v = 0; v < kVecs; ++v) {
        float* const place = target + t * stride_t + v * kWidth;
        store_vec(place, kAdd ? tile[t][v] + load_vec(place) : tile[t][v]);
      }
    return;
  }
  const long lanes8 = stride_c == 1 || stride_t == 1 ? lanes & -8 : 0;
  const long steps8 = stride_c == 1 ? steps : stride_t == 1 ? steps & -8 : 0;
  if (stride_c == 1) {
    for (long t = 0; t < steps; ++t)
      for (long c = 0; c < lanes8; c += 8) {
        float* place = target + t * stride_t + c;
        Vec8 x = load8(floats(tile[t]) + c);
        if (kAdd) x += load8(place);
        __builtin_memcpy(place, &x, sizeof x);
      }
  } else {
    for (long c = 0; c < lanes8; c += 8)
      for (long t = 0; t < steps8; t += 8) {
        Vec8 block[8];
        for (long i = 0; i < 8; ++i) block[i] = load8(floats(tile[t + i]) + c);
        transpose8(block);
        for (long i = 0; i < 8; ++i) {
          float* place = target + (c + i) * stride_c + t;
          if (kAdd) block[i] += load8(place);
          __builtin_memcpy(place, block + i, sizeof(Vec8));
        }
      }
  }
  for (long c = 0; c < lanes; ++c)
    for (long t = c < lanes8 ? steps8 : 0; t < steps; ++t) {
      float* place = target + c * stride_c + t * stride_t;
      *place = kAdd ? *place + floats(tile[t])[c] : floats(tile[t])[c];
    }
}

static void store_tile(const Tile& tile, float* target, long stride_c, long stride_t, long lanes, long steps,
                       bool add) {
  (add ? store_tile<true> : store_tile<false>)(tile, target, stride_c, stride_t, lanes, steps);
}

static void load_lanes(const float* source, long stride, long lanes, Lanes& target) {
  for (long c = 0; c < kLanes; ++c) floats(target)[c] = source && c < lanes ? source[c * stride] : 0.0f;
}

static void store_lanes(const Lanes& lanes_, float* target, long stride, long lanes) {
  for (long c = 0; c < lanes; ++c) target[c * stride] = floats(lanes_)[c];
}

// sums[t] ← the sum of row t.
static void sum_rows(const Vec* rows, long steps, float* sums) {
  for (long t = 0; t < kSteps; t += 8) {
    Vec8 block[8];
    for (long i = 0; i < 8; ++i) {
      block[i] = Vec8{};
      __builtin_memcpy(block + i, rows + t + i, kWidth < 8 ? sizeof(Vec) : sizeof(Vec8));
      for (long j = 8; j < kWidth; j += 8) block[i] += load8(floats(rows + t + i) + j);
    }
    transpose8(block);
    Vec8 total = block[0];
    for (long i = 1; i < 8; ++i) total += block[i];
    for (long i = 0; i < 8 && t + i < steps; ++i) sums[t + i] = total[i];
  }
}

// Δ ← softplus(Δ + bias) or Δ + bias.
static void activate(Tile& delta, const Lanes& bias, bool softplus, long steps) {
  for (long t = 0; t < steps; ++t)
    for (long v = 0; v < kVecs; ++v) {
      const Vec x = delta[t][v] + bias[v];
      delta[t][v] = softplus ? positive_part(x) + log1p_(exp_(minus_abs(x))) : x;
    }
}

// The same; where softplus, slope ← dΔ/d(given) too.
static void activate(Tile& delta, const Lanes& bias, bool softplus, long steps, Tile& slope) {
  if (!softplus) return activate(delta, bias, softplus, steps);
  for (long t = 0; t < steps; ++t)
    for (long v = 0; v < kVecs; ++v) {
      const Vec x = delta[t][v] + bias[v], z = exp_(minus_abs(x));
      slope[t][v] = (x < Vec{} ? z : Vec{} + 1.0f) / (1.0f + z);
      delta[t][v] = positive_part(x) + log1p_(z);
    }
}

// One tile of kSteps positions, the `i`-th that direction k visits, and the order of its positions.
struct Span {
  long tile, start, steps;
  bool backwards;
  Span(const Scan& p, long i, long k)
      : tile(k ? p.tiles - 1 - i : i), start(tile * kSteps),
        steps(p.L - start < kSteps ? p.L - start : kSteps), backwards(k == 1) {}
  long at(long j) const { return backwards ? steps - 1 - j : j; }
  long next_tile() const { return backwards ? tile - 1 : tile + 1; }
  long tile_before() const { return backwards ? tile + 1 : tile - 1; }
};

// One of the kLanes or kSteps rows of a tile that comes next, on its way into the cache while another one is
// computed: rows of channels, or of positions where those lie next to each other. kLevel is what
// __builtin_prefetch calls locality: 3 for the first-level cache, 2 for the second.
template <int kLevel>
static inline void fetch(const void* source, const View& view, long size, long start, long i) {
  const char* const place = (const char*)source
                            + size * (view.channel == 1 ? (start + i) * view.position
                                                        : i * view.channel + start * view.position);
  __builtin_prefetch(place, 0, kLevel);
  if (size == sizeof(float)) __builtin_prefetch(place + 64, 0, kLevel);
}

// What direction k of one block of channels reads.
template <typename T>
struct Direction {
  const Scan& p;
  const T *delta, *rows;
  const float *A, *B, *C, *to_delta;
  float* states;
  long k, lanes;
  Lanes D, bias;
  Direction(const Scan& p, long image, long group, long channel, long lanes, long k) : p(p), k(k), lanes(lanes) {
    const long ik = image * p.K + k, kc = k * p.channels + channel, row = (ik * p.G + group) * p.N * p.L;
    const Projected& from = p.projected;
    const bool given = !from.rows;
    delta = given ? (const T*)p.delta.data + image * p.delta.image + k * p.delta.direction + channel * p.delta.channel
                  : nullptr;
    B = given ? p.B + row : nullptr;
    C = given ? p.C + row : nullptr;
    rows = given ? nullptr : (const T*)from.rows + image * p.L * from.stride;
    to_delta = given ? nullptr : from.to_delta + k * from.rank * p.channels + channel;
    A = p.A + kc * p.N;
    states = p.states + ik * p.tiles * p.N * p.channels + channel;
    load_lanes(p.D ? p.D + kc : nullptr, 1, lanes, D);
    load_lanes(p.bias ? p.bias + kc : nullptr, 1, lanes, bias);
  }

  // Δ of a tile, without bias.
  void load_delta(const Span& span, Tile& tile) const {
    if (rows) project(rows + span.start * p.projected.stride + k * p.projected.rank, span.steps, tile);
    else load_tile(delta + span.start * p.delta.position, p.delta.channel, p.delta.position, lanes, span.steps, tile);
  }

  // B and C of state n.
  void load_rows(const Span& span, long n, float* B_, float* C_) const {
    const long stride = p.projected.stride, first = n * p.L + span.start;
    const long column = p.K * p.projected.rank + 2 * k * p.N + n;
    for (long t = 0; t < span.steps; ++t) {
      const T* const row = rows ? rows + (span.start + t) * stride + column : nullptr;
      B_[t] = rows ? load1(row) : B[first + t];
      C_[t] = rows ? load1(row + p.N) : C[first + t];
    }
  }

  void project(const T* row, long steps, Tile& tile) const {
    constexpr long kAtOnce = 8;  // positions
    const long rank = p.projected.rank;
    for (long t = 0; t < steps; t += kAtOnce) {
      const T* from[kAtOnce];  // beyond the last position that one again
      for (long i = 0; i < kAtOnce; ++i) from[i] = row + (t + i < steps ? t + i : steps - 1) * p.projected.stride;
      Vec sums[kAtOnce][kVecs] = {};
      const float* weights = to_delta;
      for (long r = 0; r < rank; ++r, weights += p.channels) {
        Lanes weight;
        for (long v = 0; v < kVecs; ++v) weight[v] = load_part(weights + v * kWidth, lanes - v * kWidth);
        UNROLL for (long i = 0; i < kAtOnce; ++i) {
          const float factor = load1(from[i] + r);
          UNROLL for (long v = 0; v < kVecs; ++v) sums[i][v] += factor * weight[v];
        }
      }
      UNROLL for (long i = 0; i < kAtOnce; ++i)
        UNROLL for (long v = 0; v < kVecs; ++v) tile[t + i][v] = sums[i][v];
    }
  }
};

template <typename T>
static void forward_block(const Scan& p, long image, long group, long channel, long lanes) {
  Tile u, delta, y;
  Lanes A, h;
  const T* u0 = (const T*)p.u.data + image * p.u.image + channel * p.u.channel;
  float* y0 = p.y + image * p.u_like.image + channel * p.u_like.channel;
  for (long k = 0; k < p.K; ++k) {
    const Direction<T> in(p, image, group, channel, lanes, k);
    for (long i = 0; i < p.tiles; ++i) {
      const Span span(p, i, k);
      load_tile(u0 + span.start * p.u.position, p.u.channel, p.u.position, lanes, span.steps, u);
      in.load_delta(span, delta);
      activate(delta, in.bias, p.softplus, span.steps);
      const bool more = i + 1 < p.tiles;
      const long next = span.next_tile() * kSteps;
      for (long n = 0; n < p.N; ++n) {
        // The state that enters a tile is kept: it is all that the backward pass needs besides the inputs.
        load_lanes(in.states + (span.tile * p.N + n) * p.channels, 1, lanes, h);
        load_lanes(in.A + n, p.N, lanes, A);
        float B[kSteps], C[kSteps];
        in.load_rows(span, n, B, C);
        for (long j = 0; j < span.steps; ++j) {
          const long t = span.at(j);
          if (n == 0 && more) {
            // In the first level it would displace what is computed here, or be displaced.
            fetch<2>(u0, p.u, sizeof(T), next, t);
            if (!in.rows) fetch<2>(in.delta, p.delta, sizeof(T), next, t);
            fetch<2>(y0, p.u_like, sizeof(float), next, t);
          }
          for (long v = 0; v < kVecs; ++v) {
            h[v] = exp_(delta[t][v] * A[v]) * h[v] + delta[t][v] * u[t][v] * B[t];
            y[t][v] = (n == 0 ? in.D[v] * u[t][v] : y[t][v]) + h[v] * C[t];
          }
        }
        if (i + 1 < p.tiles) store_lanes(h, in.states + (span.next_tile() * p.N + n) * p.channels, 1, lanes);
      }
      store_tile(y, y0 + span.start * p.u_like.position, p.u_like.channel, p.u_like.position, lanes, span.steps,
                 k > 0);
    }
  }
}

struct BackwardTiles {
  Tile u, delta, slope, gy, du, ddelta;
};

// One state of one tile. h: the state before the tile; dh: the gradient of the state after it, then of h.
// dA and the tiles du and ddelta (with respect to Δ) are added to.
static inline void backward_state(const Span& span, const Lanes& A, const float* B, const float* C, Lanes& h,
                                  Lanes& dh, Lanes& dA, BackwardTiles& x, float* dB, float* dC) {
  Tile decay, before;
  Vec dB_rows[kSteps] = {}, dC_rows[kSteps] = {};
  for (long j = 0; j < span.steps; ++j) {
    const long t = span.at(j);
    for (long v = 0; v < kVecs; ++v) {
      decay[t][v] = exp_(x.delta[t][v] * A[v]);
      before[t][v] = h[v];
      h[v] = decay[t][v] * h[v] + x.delta[t][v] * x.u[t][v] * B[t];
    }
  }
  for (long j = span.steps - 1; j >= 0; --j) {
    const long t = span.at(j);
    for (long v = 0; v < kVecs; ++v) {
      const Vec grad = x.gy[t][v] * C[t] + dh[v];  // of the loss by h_t
      const Vec carry = grad * decay[t][v], by_decay = carry * before[t][v];
      const Vec drive = x.delta[t][v] * x.u[t][v], by_drive = grad * B[t];
      dC_rows[t] += x.gy[t][v] * (decay[t][v] * before[t][v] + drive * B[t]);
      dB_rows[t] += grad * drive;
      x.ddelta[t][v] += by_decay * A[v] + by_drive * x.u[t][v];
      x.du[t][v] += by_drive * x.delta[t][v];
      dA[v] += by_decay * x.delta[t][v];
      dh[v] = carry;
    }
  }
  sum_rows(dB_rows, span.steps, dB);
  sum_rows(dC_rows, span.steps, dC);
}

template <typename T>
static void backward_block(const Scan& p, const ScanGradients& g, long image, long group, long channel,
                           long lanes, long part) {
  BackwardTiles x;
  Lanes A, h, dh, dA;
  const T* u0 = (const T*)p.u.data + image * p.u.image + channel * p.u.channel;
  const float* dy0 = (const float*)g.y.data + image * g.y.image + channel * g.y.channel;
  const long like = image * p.u_like.image + channel * p.u_like.channel;
  for (long k = 0; k < p.K; ++k) {
    const Direction<T> in(p, image, group, channel, lanes, k);
    const long ik = image * p.K + k, row = ik * p.channels + channel, rows = (ik * p.parts + part) * p.N * p.L;
    float* ddelta0 = g.delta + image * p.delta_like.image + k * p.delta_like.direction
                     + channel * p.delta_like.channel;
    Lanes dD = {}, dbias = {};
    for (long i = p.tiles - 1; i >= 0; --i) {
      const Span span(p, i, k);
      const long start = span.start, place = like + start * p.u_like.position;
      load_tile(u0 + start * p.u.position, p.u.channel, p.u.position, lanes, span.steps, x.u);
      load_tile(in.delta + start * p.delta.position, p.delta.channel, p.delta.position, lanes, span.steps,
                x.delta);
      load_tile(dy0 + start * g.y.position, g.y.channel, g.y.position, lanes, span.steps, x.gy);
      activate(x.delta, in.bias, p.softplus, span.steps, x.slope);
      const long next = span.tile_before() * kSteps;
      for (long t = 0; t < kSteps; ++t) {
        if (i > 0) {
          fetch<3>(u0, p.u, sizeof(T), next, t);
          fetch<3>(in.delta, p.delta, sizeof(T), next, t);
          fetch<3>(dy0, g.y, sizeof(float), next, t);
          fetch<3>(g.u + like, p.u_like, sizeof(float), next, t);
          fetch<3>(ddelta0, p.delta_like, sizeof(float), next, t);
        }
        for (long v = 0; v < kVecs; ++v) {
          x.du[t][v] = in.D[v] * x.gy[t][v];
          dD[v] += x.u[t][v] * x.gy[t][v];
          x.ddelta[t][v] = Vec{};
        }
      }
      for (long n = 0; n < p.N; ++n) {
        float* carried = g.states + (ik * p.N + n) * p.channels + channel;
        const long first = n * p.L + start;
        load_lanes(in.states + (span.tile * p.N + n) * p.channels, 1, lanes, h);
        load_lanes(carried, 1, lanes, dh);
        load_lanes(g.A + row * p.N + n, p.N, lanes, dA);
        load_lanes(in.A + n, p.N, lanes, A);
        backward_state(span, A, in.B + first, in.C + first, h, dh, dA, x, g.B + rows + first,
                       g.C + rows + first);
        store_lanes(dh, carried, 1, lanes);
        store_lanes(dA, g.A + row * p.N + n, p.N, lanes);
      }
      for (long t = 0; t < span.steps; ++t)
        for (long v = 0; v < kVecs; ++v) {
          if (p.softplus) x.ddelta[t][v] *= x.slope[t][v];
          dbias[v] += x.ddelta[t][v];
        }
      store_tile(x.du, g.u + place, p.u_like.channel, p.u_like.position, lanes, span.steps, k > 0);
      store_tile(x.ddelta, ddelta0 + start * p.delta_like.position, p.delta_like.channel,
                 p.delta_like.position, lanes, span.steps, false);
    }
    store_lanes(dD, g.D + row, 1, lanes);
    store_lanes(dbias, g.bias + row, 1, lanes);
  }
}

}  // namespace
