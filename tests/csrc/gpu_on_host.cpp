// The CUDA kernel's device code, run thread by thread on the host; its parameters; and the launch plan. Bound to Python
// for tests/support/device_code.py.
#include "gpu_on_host.h"
#include "cuda/launch_plan.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>

namespace py = pybind11;
using namespace gradcam_fast;
using namespace gradcam_fast::gpu;

namespace {

template <class Stored>
void run(Method method, const Params& params, int64_t images, bool backwards) {
  for (int64_t image = 0; image < images; ++image)
    for (int64_t target = 0; target < params.targets; ++target) {
      Cluster cluster(params.blocks, shared_bytes(params) / sizeof(float), image, target, backwards);
      cluster.run(
          [&](HostMachine& machine) { with_method(method, [&](auto m) { cam<m.value, Stored>(machine, params); }); });
    }
}

// Tensors are given as addresses and strides in elements (image, target, channel, row, column); sizes are B, K, C, h,
// w, H, W.
py::tuple gpu_cam(int64_t bytes, bool bfloat16, uintptr_t activations, std::array<int64_t, 5> a, uintptr_t gradients,
                  std::array<int64_t, 5> g, std::array<int64_t, 7> sizes, int64_t method, int64_t normalize, bool relu,
                  int blocks, bool spill, int stage_channels, bool backwards) {
  const auto [images, targets, channels, rows, columns, height, width] = sizes;
  py::array_t<float> heatmap({images, targets, height, width}), raw_min({images, targets}), raw_max({images, targets});
  std::vector<float> spilled(spill ? images * targets * rows * columns : 0, NAN);
  Params params = make_params(reinterpret_cast<const void*>(activations), a, reinterpret_cast<const void*>(gradients),
                              g, {targets, channels, rows, columns, height, width}, static_cast<Normalize>(normalize),
                              relu, heatmap.mutable_data(), raw_min.mutable_data(), raw_max.mutable_data(),
                              spill ? spilled.data() : nullptr);
  if (stage_channels != 0 && !can_be_staged(params, static_cast<Method>(method), images * targets, bytes))
    throw std::invalid_argument("these maps cannot go through stages");
  params.set_stage(stage_channels, bytes);
  params.split_among(blocks);
  const auto method_value = static_cast<Method>(method);
  if (bytes == 4)
    run<float>(method_value, params, images, backwards);
  else if (bfloat16)
    run<BFloat16>(method_value, params, images, backwards);
  else
    run<Half>(method_value, params, images, backwards);
  return py::make_tuple(heatmap, raw_min, raw_max);
}

// The kernel's parameters for maps and results at addresses of another memory, and the bytes of shared memory of a
// block.
py::tuple kernel_params(int bytes, uintptr_t activations, std::array<int64_t, 5> a, uintptr_t gradients,
                        std::array<int64_t, 5> g, std::array<int64_t, 7> sizes, int64_t normalize, bool relu,
                        std::array<uintptr_t, 3> results, uintptr_t spill, int blocks, int stage_channels) {
  const auto [images, targets, channels, rows, columns, height, width] = sizes;
  const auto at = [](uintptr_t address) { return reinterpret_cast<float*>(address); };
  Params params =
      make_params(at(activations), a, at(gradients), g, {targets, channels, rows, columns, height, width},
                  static_cast<Normalize>(normalize), relu, at(results[0]), at(results[1]), at(results[2]), at(spill));
  params.set_stage(stage_channels, bytes);
  params.split_among(blocks);
  return py::make_tuple(py::bytes(reinterpret_cast<const char*>(&params), sizeof(params)), shared_bytes(params));
}

py::array_t<int> quotients(py::array_t<int, py::array::c_style | py::array::forcecast> numbers, int divisor) {
  py::array_t<int> result(numbers.size());
  const Divisor by(divisor);
  std::transform(numbers.data(), numbers.data() + numbers.size(), result.mutable_data(),
                 [&](int number) { return by.quotient(number); });
  return result;
}

// (blocks, channels per stage, bytes of shared memory) on a device with these limits.
py::tuple plan(int64_t method, int bytes, uintptr_t activations, std::array<int64_t, 5> a, uintptr_t gradients,
               std::array<int64_t, 5> g, std::array<int64_t, 7> sizes, std::array<int, 3> multiprocessors_and_bytes,
               bool clusters, bool asynchronous_copies) {
  const auto [images, targets, channels, rows, columns, height, width] = sizes;
  const auto [multiprocessors, per_block, per_multiprocessor] = multiprocessors_and_bytes;
  const DeviceLimits limits{multiprocessors, per_block, per_multiprocessor, clusters, asynchronous_copies};
  Params params = make_params(reinterpret_cast<const void*>(activations), a, reinterpret_cast<const void*>(gradients),
                              g, {targets, channels, rows, columns, height, width}, Normalize::minmax, true, nullptr,
                              nullptr, nullptr, nullptr);
  plan_launch(params, static_cast<Method>(method), images * targets, bytes, limits);
  return py::make_tuple(static_cast<int>(params.blocks), params.stage_channels, shared_bytes(params));
}

}  // namespace

PYBIND11_MODULE(gpu_on_host, module) {
  module.def("cam", gpu_cam);
  module.def("kernel_params", kernel_params);
  module.def("plan", plan);
  module.def("quotients", quotients);
  module.def("fits_int32", fits_int32);
}
