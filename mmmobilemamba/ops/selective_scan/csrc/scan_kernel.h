// The arithmetic of the selective scan in plain loops that compilers vectorise.
//
// selective_scan.cpp includes this file once per instruction set, each time in another namespace and
// under other target options, so nothing here may come from a header that others share: no std::, no
// ATen. Symbols are those of reference.py: L positions t, D channels c, N states n.
//
// One call handles up to kLanes channels of one group of one image, in all directions. Positions go
// through tiles of kSteps in the layout (position, channel), which stay in the first-level cache.

// exp(x) within 2 ulp: 2^n · e^r with |r| ≤ ln2/2 and a polynomial for e^r (coefficients of Cephes' expf).
// The bounds make n -127 or 128 at the ends, whose bits are those of 0 and of infinity; nan stays nan.
static inline float exp_(float x) {
  x = x > 88.8f ? 88.8f : x;
  x = x < -88.0f ? -88.0f : x;
  const int n = (int)(x * 1.44269504f + (x < 0.0f ? -0.5f : 0.5f));
  const float k = (float)n;
  const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  union { int i; float f; } power = {(n + 127) << 23};
  return p * power.f;
}

// log(1 + z) for 0 ≤ z ≤ 1 as 2·atanh(z / (2 + z)): accurate for tiny z too, where log(1 + z) is not.
static inline float log1p_(float z) {
  const float s = z / (2.0f + z), s2 = s * s;
  float p = 1.0f / 13.0f;
  p = p * s2 + 1.0f / 11.0f;
  p = p * s2 + 1.0f / 9.0f;
  p = p * s2 + 1.0f / 7.0f;
  p = p * s2 + 1.0f / 5.0f;
  p = p * s2 + 1.0f / 3.0f;
  return 2.0f * (s + s * s2 * p);
}

static inline float load_(const float* p) { return *p; }
static inline float load_(const Bfloat16* p) {
  union { unsigned int i; float f; } bits = {(unsigned int)p->bits << 16};
  return bits.f;
}

// tile[t][c] ← source(c, t), whatever the strides; what lies beyond the edge becomes zero.
template <typename T>
static void load_tile(const T* source, long stride_c, long stride_t, long lanes, long steps, Tile& tile) {
  if (lanes < kLanes || steps < kSteps)
    for (long t = 0; t < kSteps; ++t)
      for (long c = 0; c < kLanes; ++c) tile[t][c] = 0.0f;
  if (stride_c == 1 && lanes == kLanes) {
    for (long t = 0; t < steps; ++t)
      for (long c = 0; c < kLanes; ++c) tile[t][c] = load_(source + t * stride_t + c);
  } else if (stride_t == 1 && steps == kSteps) {
    for (long c = 0; c < lanes; ++c)
      for (long t = 0; t < kSteps; ++t) tile[t][c] = load_(source + c * stride_c + t);
  } else {
    for (long t = 0; t < steps; ++t)
      for (long c = 0; c < lanes; ++c) tile[t][c] = load_(source + c * stride_c + t * stride_t);
  }
}

// target(c, t) ← tile[t][c], or += where add.
static void store_tile(const Tile& tile, float* target, long stride_c, long stride_t, long lanes, long steps,
                       bool add) {
  if (stride_c == 1) {
    for (long t = 0; t < steps; ++t) {
      float* row = target + t * stride_t;
      if (add)
        for (long c = 0; c < lanes; ++c) row[c] += tile[t][c];
      else
        for (long c = 0; c < lanes; ++c) row[c] = tile[t][c];
    }
  } else {
    for (long c = 0; c < lanes; ++c)
      for (long t = 0; t < steps; ++t) {
        float* place = target + c * stride_c + t * stride_t;
        *place = add ? *place + tile[t][c] : tile[t][c];
      }
  }
}

// Δ ← softplus(Δ + bias) or Δ + bias; with slope, slope ← dΔ/d(given) too.
static void activate(Tile& delta, const Lanes& bias, bool softplus, Tile* slope) {
  for (long t = 0; t < kSteps; ++t) {
    if (!softplus) {
      for (long c = 0; c < kLanes; ++c) delta[t][c] += bias[c];
      continue;
    }
    if (slope)
      for (long c = 0; c < kLanes; ++c) {
        const float x = delta[t][c] + bias[c];
        const float z = exp_(x < 0.0f ? x : -x);
        (*slope)[t][c] = (x < 0.0f ? z : 1.0f) / (1.0f + z);
        delta[t][c] = (x > 0.0f ? x : 0.0f) + log1p_(z);
      }
    else
      for (long c = 0; c < kLanes; ++c) {
        const float x = delta[t][c] + bias[c];
        delta[t][c] = (x > 0.0f ? x : 0.0f) + log1p_(exp_(x < 0.0f ? x : -x));
      }
  }
}

static void load_lanes(const float* source, long stride, long lanes, Lanes& target) {
  for (long c = 0; c < kLanes; ++c) target[c] = source && c < lanes ? source[c * stride] : 0.0f;
}

static void decay_of(const Tile& delta, const Lanes& A, Tile& decay) {
  for (long t = 0; t < kSteps; ++t)
    for (long c = 0; c < kLanes; ++c) decay[t][c] = exp_(delta[t][c] * A[c]);
}

// Positions of a tile in the order a direction visits them: t = first + i·sign.
struct Order {
  long first, sign;
  Order(bool backwards, long steps) : first(backwards ? steps - 1 : 0), sign(backwards ? -1 : 1) {}
  long at(long i) const { return first + i * sign; }
};

template <typename T>
static void forward_block(const Problem& p, long image, long group, long channel, long lanes) {
  Tile u, delta, decay, y;
  Lanes A, D, bias;
  const T* u0 = (const T*)p.u.data + image * p.u.image + channel * p.u.channel;
  float* y0 = p.y + image * p.u_like.image + channel * p.u_like.channel;
  for (long k = 0; k < p.K; ++k) {
    const T* delta0 = (const T*)p.delta.data + image * p.delta.image + k * p.delta.direction
                      + channel * p.delta.channel;
    load_lanes(p.D ? p.D + k * p.channels + channel : nullptr, 1, lanes, D);
    load_lanes(p.bias ? p.bias + k * p.channels + channel : nullptr, 1, lanes, bias);
    float* state = p.states + ((image * p.K + k) * p.tiles * p.N) * p.channels + channel;
    const float* B = p.B + ((image * p.K + k) * p.G + group) * p.N * p.L;
    const float* C = p.C + ((image * p.K + k) * p.G + group) * p.N * p.L;
    for (long i = 0; i < p.tiles; ++i) {
      const long tile = k ? p.tiles - 1 - i : i, t0 = tile * kSteps;
      const long steps = p.L - t0 < kSteps ? p.L - t0 : kSteps;
      const Order order(k == 1, steps);
      load_tile(u0 + t0 * p.u.position, p.u.channel, p.u.position, lanes, steps, u);
      load_tile(delta0 + t0 * p.delta.position, p.delta.channel, p.delta.position, lanes, steps, delta);
      activate(delta, bias, p.softplus, nullptr);
      for (long t = 0; t < kSteps; ++t)
        for (long c = 0; c < kLanes; ++c) y[t][c] = D[c] * u[t][c];
      for (long n = 0; n < p.N; ++n) {
        // The state that enters a tile is kept: it is all that the backward pass needs besides the inputs.
        float* kept = state + (tile * p.N + n) * p.channels;
        Lanes h;
        load_lanes(kept, 1, lanes, h);
        load_lanes(p.A + (k * p.channels + channel) * p.N + n, p.N, lanes, A);
        decay_of(delta, A, decay);
        for (long j = 0; j < steps; ++j) {
          const long t = order.at(j);
          const float b = B[n * p.L + t0 + t], w = C[n * p.L + t0 + t];
          for (long c = 0; c < kLanes; ++c) {
            h[c] = decay[t][c] * h[c] + delta[t][c] * b * u[t][c];
            y[t][c] += w * h[c];
          }
        }
        if (i + 1 < p.tiles) {
          float* next = state + ((k ? tile - 1 : tile + 1) * p.N + n) * p.channels;
          for (long c = 0; c < lanes; ++c) next[c] = h[c];
        }
      }
      store_tile(y, y0 + t0 * p.u_like.position, p.u_like.channel, p.u_like.position, lanes, steps, k > 0);
    }
  }
}

template <typename T>
static void backward_block(const Problem& p, const Gradients& g, long image, long group, long channel,
                           long lanes, long part) {
  Tile u, delta, slope, decay, before, gy, du, ddelta;
  Lanes A, D, bias, dD, dbias;
  const T* u0 = (const T*)p.u.data + image * p.u.image + channel * p.u.channel;
  for (long k = 0; k < p.K; ++k) {
    const long row = (image * p.K + k) * p.channels + channel;
    const T* delta0 = (const T*)p.delta.data + image * p.delta.image + k * p.delta.direction
                      + channel * p.delta.channel;
    load_lanes(p.D ? p.D + k * p.channels + channel : nullptr, 1, lanes, D);
    load_lanes(p.bias ? p.bias + k * p.channels + channel : nullptr, 1, lanes, bias);
    const float* state = p.states + ((image * p.K + k) * p.tiles * p.N) * p.channels + channel;
    const float* B = p.B + ((image * p.K + k) * p.G + group) * p.N * p.L;
    const float* C = p.C + ((image * p.K + k) * p.G + group) * p.N * p.L;
    float* dB = g.B + ((image * p.K + k) * p.parts + part) * p.N * p.L;
    float* dC = g.C + ((image * p.K + k) * p.parts + part) * p.N * p.L;
    for (long c = 0; c < kLanes; ++c) dD[c] = dbias[c] = 0.0f;
    for (long i = p.tiles - 1; i >= 0; --i) {
      const long tile = k ? p.tiles - 1 - i : i, t0 = tile * kSteps;
      const long steps = p.L - t0 < kSteps ? p.L - t0 : kSteps;
      const Order order(k == 1, steps);
      load_tile(u0 + t0 * p.u.position, p.u.channel, p.u.position, lanes, steps, u);
      load_tile(delta0 + t0 * p.delta.position, p.delta.channel, p.delta.position, lanes, steps, delta);
      load_tile(g.y + image * p.u_like.image + channel * p.u_like.channel + t0 * p.u_like.position,
                p.u_like.channel, p.u_like.position, lanes, steps, gy);
      activate(delta, bias, p.softplus, &slope);
      for (long t = 0; t < kSteps; ++t)
        for (long c = 0; c < kLanes; ++c) {
          du[t][c] = D[c] * gy[t][c];
          dD[c] += u[t][c] * gy[t][c];
          ddelta[t][c] = 0.0f;
        }
      for (long n = 0; n < p.N; ++n) {
        Lanes h, dh, dA;
        float* carried = g.states + ((image * p.K + k) * p.N + n) * p.channels + channel;
        load_lanes(state + (tile * p.N + n) * p.channels, 1, lanes, h);
        load_lanes(carried, 1, lanes, dh);
        load_lanes(g.A + row * p.N + n, p.N, lanes, dA);
        load_lanes(p.A + (k * p.channels + channel) * p.N + n, p.N, lanes, A);
        decay_of(delta, A, decay);
        for (long j = 0; j < steps; ++j) {
          const long t = order.at(j);
          const float b = B[n * p.L + t0 + t];
          for (long c = 0; c < kLanes; ++c) {
            before[t][c] = h[c];
            h[c] = decay[t][c] * h[c] + delta[t][c] * b * u[t][c];
          }
        }
        for (long j = steps - 1; j >= 0; --j) {
          const long t = order.at(j);
          const float b = B[n * p.L + t0 + t], w = C[n * p.L + t0 + t];
          float sum_b = 0.0f, sum_c = 0.0f;
#pragma omp simd reduction(+ : sum_b, sum_c)
          for (long c = 0; c < kLanes; ++c) {
            const float drive = delta[t][c] * u[t][c];
            const float grad = w * gy[t][c] + dh[c];  // of the loss by h_t
            const float by_decay = grad * before[t][c] * decay[t][c];
            sum_c += gy[t][c] * (decay[t][c] * before[t][c] + b * drive);
            sum_b += grad * drive;
            ddelta[t][c] += by_decay * A[c] + grad * b * u[t][c];
            dA[c] += by_decay * delta[t][c];
            du[t][c] += grad * b * delta[t][c];
            dh[c] = grad * decay[t][c];
          }
          dB[n * p.L + t0 + t] = sum_b;
          dC[n * p.L + t0 + t] = sum_c;
        }
        for (long c = 0; c < lanes; ++c) {
          carried[c] = dh[c];
          g.A[(row + c) * p.N + n] = dA[c];
        }
      }
      if (p.softplus)
        for (long t = 0; t < kSteps; ++t)
          for (long c = 0; c < kLanes; ++c) ddelta[t][c] *= slope[t][c];
      for (long t = 0; t < steps; ++t)
        for (long c = 0; c < kLanes; ++c) dbias[c] += ddelta[t][c];
      store_tile(du, g.u + image * p.u_like.image + channel * p.u_like.channel + t0 * p.u_like.position,
                 p.u_like.channel, p.u_like.position, lanes, steps, k > 0);
      store_tile(ddelta, g.delta + image * p.delta_like.image + k * p.delta_like.direction
                             + channel * p.delta_like.channel + t0 * p.delta_like.position,
                 p.delta_like.channel, p.delta_like.position, lanes, steps, false);
    }
    for (long c = 0; c < lanes; ++c) {
      g.D[row + c] = dD[c];
      g.bias[row + c] = dbias[c];
    }
  }
}
