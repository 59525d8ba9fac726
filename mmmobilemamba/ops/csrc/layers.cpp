// Folded layers as one object of PyTorch.

#include "layers.h"

#include <torch/custom_class.h>

#include <utility>

namespace {

// Computed one behind the other, in the order in which they were added.
class Layers : public torch::CustomClassHolder {
 public:
  void add(std::unique_ptr<Layer> layer) { layers_.push_back(std::move(layer)); }

  at::Tensor run(const at::Tensor& x) const {
    thread_local Room kept;
    Room room = std::move(kept);  // gone if a layer raises, and nobody else's
    at::Tensor y = x;
    for (const auto& layer : layers_) {
      room.start();
      y = layer->run(y, room);
    }
    room.shrink();
    kept = std::move(room);
    return y;
  }

 private:
  std::vector<std::unique_ptr<Layer>> layers_;
};

using Self = c10::intrusive_ptr<Layers>;

}  // namespace

TORCH_LIBRARY_FRAGMENT(mmmobilemamba, library) {
  library.class_<Layers>("Layers")
      .def(torch::init<>())
      .def("stem", [](const Self& self, int64_t in, const Weights& weights) { self->add(stem(in, weights)); })
      .def("block", [](const Self& self, const Weights& weights, double eps) { self->add(block(weights, eps)); })
      .def("downsample", [](const Self& self, const Weights& weights) { self->add(downsample(weights)); })
      .def("run", [](const Self& self, const at::Tensor& x) { return self->run(x); });
}
