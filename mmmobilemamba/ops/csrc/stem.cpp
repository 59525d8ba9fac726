// The stem of a folded MobileMamba on CPUs: 3x3 convolutions with steps of two pixels, one behind the other, row by
// row, so that only the image and the last map are in memory as a whole.

#include <ATen/ops/empty.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <vector>

#include "layers.h"
#include "products.h"

namespace {

// What a convolution reads: rows of maps (H, W) of C channels with a pixel of zeros before the first and behind the
// last one. Those of the image lie plane by plane, others pixel by pixel.
struct Maps {
  long C, H, W;
  bool planes;
  // The rows `first` ... end - 1 in memory; those outside of the maps are zeros.
  float* rows = nullptr;
  long first = 0, end = 0;

  long row_size() const { return C * (W + 2); }
  float* row(long y) const { return rows + (y - first) * row_size(); }

  // Keep what there is of the rows from y on, at the beginning.
  void begin_at(long y) {
    if (y < end && y > first) std::copy(row(y), row(end), rows);
    if (y >= end) end = y;
    first = y;
  }

  // Row y but for the pixels inside, which are returned.
  float* start_row(long y) const {
    float* const at = row(y);
    if (y < 0 || y >= H) {
      std::fill_n(at, row_size(), 0.0f);
    } else if (planes) {
      for (long c = 0; c < C; ++c) at[c * (W + 2)] = at[(c + 1) * (W + 2) - 1] = 0.0f;
    } else {
      std::fill_n(at, C, 0.0f);
      std::fill_n(at + (W + 1) * C, C, 0.0f);
    }
    return at + (planes ? 1 : C);
  }
};

// A part of an image on its way through the convolutions.
struct Passage {
  const std::vector<Linear>& layers;
  std::vector<Maps> maps;  // that the layers read

  Passage(const std::vector<Linear>& layers, long H, long W) : layers(layers) {
    Maps in{layers[0].K / 9, H, W, true};
    for (const Linear& layer : layers) {
      maps.push_back(in);
      in = {layer.N, (in.H + 1) / 2, (in.W + 1) / 2, false};
    }
  }

  long last() const { return (long)layers.size() - 1; }

  // Row y of the result of a layer.
  void convolve(long layer, long y, float* to) const {
    const Maps& in = maps[layer];
    Product p{};
    p.x = in.row(2 * y - 1);
    p.segments = in.planes ? 3 * in.C : 3, p.x_segment = in.planes ? in.W + 2 : in.row_size();
    p.x_stride = in.planes ? 2 : 2 * in.C;
    p.y = to, p.y_stride = layers[layer].N;
    p.activation = layer < last() ? Activation::kRelu : Activation::kNone;
    multiply(layers[layer], p, (in.W + 1) / 2, float());
  }

  // What layers from this one on need for rows y ... end - 1 of its result.
  void read(long layer, long y, long end, const float* image, at::IntArrayRef strides) {
    Maps& in = maps[layer];
    in.begin_at(std::max(2 * y - 1, -1L));
    const long from = in.end, to = std::max(2 * end, from);
    const long inside = std::max(from, 0L), beyond = std::min(to, in.H);
    if (layer > 0 && inside < beyond) read(layer - 1, inside, beyond, image, strides);
    for (in.end = from; in.end < to; ++in.end) {
      float* const pixels = in.start_row(in.end);
      if (in.end < 0 || in.end >= in.H) continue;
      if (layer > 0) convolve(layer - 1, in.end, pixels);
      else copy_row(in, image + in.end * strides[2], strides, pixels);
    }
  }

  static void copy_row(const Maps& in, const float* from, at::IntArrayRef strides, float* to) {
    for (long c = 0; c < in.C; ++c, from += strides[1], to += in.W + 2) {
      if (strides[3] == 1) std::copy_n(from, in.W, to);
      else for (long x = 0; x < in.W; ++x) to[x] = from[x * strides[3]];
    }
  }

  // Rows begin ... end - 1 of the result y (H, W, N) for one image.
  void run(const float* image, at::IntArrayRef strides, float* y, long begin, long end) {
    long size = 0;
    for (long layer = last(), rows = kRows; layer >= 0; --layer) size += (rows = 2 * rows + 1) * maps[layer].row_size();
    float* room = scratch<float>(Slot::kInput, size);
    for (long layer = last(), rows = kRows; layer >= 0; --layer) {
      maps[layer].rows = room, maps[layer].first = maps[layer].end = -1;
      room += (rows = 2 * rows + 1) * maps[layer].row_size();
    }
    const long row_size = (maps.back().W + 1) / 2 * layers.back().N;
    for (long row = begin; row < end; row += kRows) {
      const long stop = std::min(row + kRows, end);
      read(last(), row, stop, image, strides);
      for (long i = row; i < stop; ++i) convolve(last(), i, y + i * row_size);
    }
  }

  static constexpr long kRows = 2;  // of the result at once
};

class Stem : public Layer {
 public:
  Stem(long channels, const Weights& weights) {
    TORCH_CHECK(!weights.empty() && weights.size() % 2 == 0, "stem: expected weights and a bias for each convolution");
    for (size_t i = 0; i < weights.size(); i += 2, channels = layers_.back().N)
      layers_.push_back(linear(weights[i], weights[i + 1], 9 * channels));
  }

  at::Tensor run(const at::Tensor& image, Room&) const override {
    RECORD_FUNCTION("mmmobilemamba::stem", {});
    TORCH_CHECK(image.dim() == 4 && 9 * image.size(1) == layers_[0].K && image.scalar_type() == at::kFloat
                    && image.numel() > 0,
                "stem: expected images (B, ", layers_[0].K / 9, ", H, W) in float32, given are ", image.sizes(), " in ",
                image.scalar_type());
    const Passage whole(layers_, image.size(2), image.size(3));
    const Maps& in = whole.maps.back();
    const long B = image.size(0), N = layers_.back().N, H = (in.H + 1) / 2, W = (in.W + 1) / 2;
    const at::Tensor y = at::empty({B, N, H, W}, image.options().memory_format(at::MemoryFormat::ChannelsLast));
    const float* const from = image.const_data_ptr<float>();
    float* const to = y.data_ptr<float>();
    const long parts = std::min<long>(H, (at::get_num_threads() + B - 1) / B);
    at::parallel_for(0, B * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const long b = i / parts, part = i % parts;
        Passage(whole).run(from + b * image.stride(0), image.strides(), to + b * H * W * N, H * part / parts,
                           H * (part + 1) / parts);
      }
    });
    return y;
  }

 private:
  std::vector<Linear> layers_;
};

}  // namespace

std::unique_ptr<Layer> stem(long channels, const Weights& weights) { return std::make_unique<Stem>(channels, weights); }
