// Products of matrices, and what a folded network does to pixels between them.

#include "vectors.h"

namespace {

// Numbers of one block of the product, kBlockRows × (1 or 2) vectors, that registers hold at once.
#if VECTOR_WIDTH == 16
constexpr long kBlockRows = 14;
#else
constexpr long kBlockRows = 6;
#endif

template <typename T>
static inline void store_part(T* p, Vec x, long n) {
  if (n >= kWidth) return store_vec(p, x);
  T all[kWidth];
  store_vec(all, x);
  for (long i = 0; i < n; ++i) p[i] = all[i];
}

// Weights that are needed next, to be brought into the second-level cache while others are computed with.
struct Ahead {
  const float* weight;
  long step;  // numbers for every row of the weights that are computed with
};

// Where vector v of a panel that begins at this column lies: all end at column N at the latest, and so repeat
// columns of the one before where N is no multiple of a vector.
static inline long vec_column(long column, long v, long N) {
  const long place = column + v * kWidth, last = N - kWidth;
  return last < 0 ? 0 : place < last ? place : last;
}

// Numbers that one step takes of a row: a pair in bfloat16, for which there is one instruction.
template <typename T>
constexpr long kStep = sizeof(float) / sizeof(T);

// sum += x[0] · w, where x is one number and w one for each column.
static inline Vec multiply_add(Vec sum, const float* x, Vec w) { return sum + *x * w; }

#ifdef BFLOAT16_INSTRUCTIONS
// sum += x[0] · w[0] + x[1] · w[1], where w holds a pair for each column.
static inline Vec multiply_add(Vec sum, const Bfloat16* x, Vec w) {
  int pair;
  __builtin_memcpy(&pair, x, sizeof pair);
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)w);
}
#endif

// y ← activation(sums + add). Unrolled loops keep the sums in registers; the others work on a copy in memory.
template <typename T, long rows, long vecs>
static inline __attribute__((always_inline)) void finish_block(const Product& p, long row, const long* places,
                                                               Vec (&sums)[rows][vecs]) {
  T* const y = (T*)p.y + row * p.y_stride;
  if (p.N < kWidth || p.activation == Activation::kSwish) {
    Vec all[rows][vecs];
    UNROLL for (long r = 0; r < rows; ++r)
      UNROLL for (long v = 0; v < vecs; ++v) all[r][v] = sums[r][v];
    for (long r = 0; r < rows; ++r)
      for (long v = 0; v < vecs; ++v) {
        Vec sum = all[r][v];
        for (const auto& add : p.add)
          if (add.data) sum += load_part((const T*)add.data + (row + r) * add.stride + places[v], p.N);
        store_part(y + r * p.y_stride + places[v], activated(sum, p.activation), p.N);
      }
    return;
  }
  for (const auto& add : p.add) {
    if (!add.data) continue;
    const T* const from = (const T*)add.data + row * add.stride;
    UNROLL for (long r = 0; r < rows; ++r)
      UNROLL for (long v = 0; v < vecs; ++v) sums[r][v] += load_vec(from + r * add.stride + places[v]);
  }
  if (p.activation == Activation::kRelu)
    UNROLL for (long r = 0; r < rows; ++r)
      UNROLL for (long v = 0; v < vecs; ++v) sums[r][v] = activated(sums[r][v], Activation::kRelu);
  UNROLL for (long r = 0; r < rows; ++r)
    UNROLL for (long v = 0; v < vecs; ++v) store_vec(y + r * p.y_stride + places[v], sums[r][v]);
}

template <typename T, long rows, long vecs>
static inline void multiply(const Product& p, long row, long column, const float* weight, Ahead ahead) {
  long places[vecs];
  Vec sums[rows][vecs];
  UNROLL for (long v = 0; v < vecs; ++v) {
    places[v] = vec_column(column, v, p.N);
    const Vec start = p.bias ? load_part(p.bias + places[v], p.N) : Vec{};
    UNROLL for (long r = 0; r < rows; ++r) sums[r][v] = start;
  }
  const T* x = (const T*)p.x + row * p.x_stride;
  const long length = p.K / p.segments;
  for (long s = 0; s < p.segments; ++s, x += p.x_segment)
    for (long k = 0; k < length; k += kStep<T>, weight += vecs * kWidth, ahead.weight += ahead.step) {
      __builtin_prefetch(ahead.weight, 0, 2);
      Vec w[vecs];
      UNROLL for (long v = 0; v < vecs; ++v) w[v] = load_vec(weight + v * kWidth);
      UNROLL for (long r = 0; r < rows; ++r) {
        const T* const factor = x + r * p.x_stride + k;
        UNROLL for (long v = 0; v < vecs; ++v) sums[r][v] = multiply_add(sums[r][v], factor, w[v]);
      }
    }
  finish_block<T, rows, vecs>(p, row, places, sums);
}

template <typename T, long vecs, long rows = kBlockRows>
static void multiply_rows(long n, const Product& p, long row, long column, const float* weight, Ahead ahead) {
  if (n == rows) return multiply<T, rows, vecs>(p, row, column, weight, ahead);
  if constexpr (rows > 1) multiply_rows<T, vecs, rows - 1>(n, p, row, column, weight, ahead);
}

// Weights lie in panels of two vectors of columns, the last one perhaps of one.
static inline long panel_vecs(long panel, long N) { return 2 * (panel + 1) * kWidth < N + kWidth ? 2 : 1; }

static inline long panel_column(long panel, long N) {
  const long column = 2 * panel * kWidth, last = N - panel_vecs(panel, N) * kWidth;
  return last < 0 ? 0 : column < last ? column : last;
}

// Rows row ... last - 1, columns of the panels begin ... end - 1.
template <typename T>
static void multiply_panels(const Product& p, long row, long last, long begin, long end) {
  constexpr long kCached = 1 << 18;  // steps of x that stay in the second-level cache for all panels
  const long steps = p.K / kStep<T>, most = kCached / steps > kBlockRows ? kCached / steps : kBlockRows;
  while (row < last) {
    const long n = last - row < most ? last - row : most, blocks = (n + kBlockRows - 1) / kBlockRows;
    for (long panel = begin; panel < end; ++panel) {
      const long column = panel_column(panel, p.N);
      const float* const weight = p.weight + 2 * panel * kWidth * steps;
      Ahead ahead{weight + 2 * kWidth * steps, 2 * kWidth / blocks};
      for (long i = 0; i < blocks; ++i, ahead.weight += ahead.step * steps) {
        const long from = n * i / blocks, rows = n * (i + 1) / blocks - from;
        if (panel_vecs(panel, p.N) == 2) multiply_rows<T, 2>(rows, p, row + from, column, weight, ahead);
        else multiply_rows<T, 1>(rows, p, row + from, column, weight, ahead);
      }
    }
    row += n;
  }
}

template <typename T>
static void pack_panels(const void* weights, long N, long K, void* packed) {
  const T* const weight = (const T*)weights;
  T* to = (T*)packed;
  for (long panel = 0; 2 * panel * kWidth < N; ++panel)
    for (long k = 0; k < K; k += kStep<T>)
      for (long c = 0; c < panel_vecs(panel, N) * kWidth; ++c) {
        const long n = vec_column(panel_column(panel, N), c / kWidth, N) + c % kWidth;
        for (long i = 0; i < kStep<T>; ++i) *to++ = n < N ? weight[n * K + k + i] : T();
      }
}

#ifdef BFLOAT16_INSTRUCTIONS
constexpr Kernels::Panels* kPanelsBfloat16 = multiply_panels<Bfloat16>;
#else
constexpr Kernels::Panels* kPanelsBfloat16 = nullptr;
#endif

// y ← activation(x + bias + add) in bfloat16, where the product x lies in float32.
static void finish_rows(const Product& p, const float* x, long rows) {
  for (long r = 0; r < rows; ++r)
    for (long c = 0; c < p.N; c += kWidth) {
      const long n = p.N - c;
      Vec y = load_part(x + r * p.N + c, n);
      if (p.bias) y += load_part(p.bias + c, n);
      for (const auto& add : p.add)
        if (add.data) y += load_part((const Bfloat16*)add.data + r * add.stride + c, n);
      store_part((Bfloat16*)p.y + r * p.y_stride + c, activated(y, p.activation), n);
    }
}

template <typename T>
static void affine_relu(const Affine& p, long rows) {
  for (long r = 0; r < rows; ++r)
    for (long c = 0; c < p.C; c += kWidth) {
      const long n = p.C - c;
      Vec x = load_part((const T*)p.x + r * p.x_stride + c, n);
      if (p.weight) x *= load_part(p.weight + c, n);
      if (p.bias) x += load_part(p.bias + c, n);
      store_part((T*)p.y + r * p.y_stride + c, activated(x, Activation::kRelu), n);
    }
}

static inline float total(Vec x) {
  float sum = 0.0f;
  for (long i = 0; i < kWidth; ++i) sum += x[i];
  return sum;
}

template <typename T>
static void norm_gate(const NormGate& p, long rows) {
  const long whole = p.C / kWidth * kWidth;
  for (long r = 0; r < rows; ++r) {
    const float* const x = p.x + r * p.C;
    T* const y = (T*)p.y + r * p.y_stride;
    Vec sum = load_part(x + whole, p.C - whole), squares = {};
    for (long c = 0; c < whole; c += kWidth) sum += load_vec(x + c);
    const float mean = total(sum) / p.C;
    for (long c = 0; c < whole; c += kWidth) squares += (load_vec(x + c) - mean) * (load_vec(x + c) - mean);
    float variance = total(squares);
    for (long c = whole; c < p.C; ++c) variance += (x[c] - mean) * (x[c] - mean);
    const float scale = 1.0f / __builtin_sqrtf(variance / p.C + p.eps);
    for (long c = 0; c < p.C; c += kWidth) {
      const long n = p.C - c;
      const Vec normed = (load_part(x + c, n) - mean) * scale * load_part(p.weight + c, n) + load_part(p.bias + c, n);
      store_part(y + c, normed * load_part(y + c, n), n);
    }
  }
}

// Means over the rows of channels begin ... end - 1, in sums of a few rows first that lose fewer digits.
template <typename T>
static void channel_means(const ChannelMeans& p, long begin, long end) {
  constexpr long kRows = 32, kVecs = 4;
  for (long first = begin; first < end; first += kVecs * kWidth) {
    Vec sums[kVecs] = {};
    for (long row = 0; row < p.rows; row += kRows) {
      Vec part[kVecs] = {};
      for (long r = row; r < p.rows && r < row + kRows; ++r)
        for (long v = 0; v < kVecs; ++v)
          part[v] += load_part((const T*)p.x + r * p.C + first + v * kWidth, end - first - v * kWidth);
      for (long v = 0; v < kVecs; ++v) sums[v] += part[v];
    }
    for (long v = 0; v < kVecs; ++v)
      store_part((T*)p.y + first + v * kWidth, sums[v] / (float)p.rows, end - first - v * kWidth);
  }
}

}  // namespace
