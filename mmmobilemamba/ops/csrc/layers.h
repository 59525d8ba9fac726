// The layers of a folded network, and the memory that they share.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/CPUAllocator.h>

#include <cstddef>
#include <memory>
#include <vector>

// Memory for what lies between the steps of a layer; the layers of a network use the same one after the other.
class Room {
 public:
  // Not overwritten before the next start() or shrink().
  void* take(size_t bytes) {
    if (taken_ == pieces_.size()) pieces_.emplace_back();
    Piece& piece = pieces_[taken_++];
    if (piece.size < bytes) {
      piece = {};  // before the larger one is made
      piece = {c10::GetCPUAllocator()->allocate(bytes), bytes};
    }
    return piece.data.get();
  }
  void start() { taken_ = 0; }
  // Give the memory back if it is much; little is kept, for the system takes long to hand it out anew in every pass.
  void shrink() {
    start();
    size_t size = 0;
    for (const Piece& piece : pieces_) size += piece.size;
    if (size > kKept) pieces_.clear();
  }

 private:
  struct Piece {
    at::DataPtr data;
    size_t size = 0;
  };
  static constexpr size_t kKept = 1 << 25;  // bytes, that B1 takes in float32 at 800x1333
  std::vector<Piece> pieces_;
  size_t taken_ = 0;
};

struct Layer {
  virtual ~Layer() = default;
  // Maps (B, C, H, W), in channels-last memory but for images.
  virtual at::Tensor run(const at::Tensor& x, Room& room) const = 0;
};

using Weights = std::vector<at::Tensor>;

// 3x3 convolutions of stride 2 with ReLUs between them: packed weights and a bias for each.
std::unique_ptr<Layer> stem(long channels, const Weights& weights);
// x + dw_ffn(mixer(dw_ffn(x))): the weights of the two DwFfn, then of the Mixer.
std::unique_ptr<Layer> block(const Weights& weights, double eps);
// dw_ffn(merge(dw_ffn(x))): those of the two DwFfn, before and behind the Merge, and then its own.
std::unique_ptr<Layer> downsample(const Weights& weights);
