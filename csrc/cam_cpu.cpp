// The operator on the CPU: its arguments, its memory, and which thread works on what. What is computed is the
// kernels' affair (cpu_kernels.h).
#include "cpu_kernels.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

namespace gradcam_fast {
namespace {

using torch::stable::Tensor;

// Below this many numbers to read and write a second thread costs more than it brings.
constexpr int64_t SERIAL_WORK = 1 << 15;

// Memory that lives as long as its thread, so that a call allocates nothing after the first. Aligned to a vector.
template <int purpose>
float* scratch(int64_t floats) {
  thread_local std::vector<float> memory;
  if (static_cast<int64_t>(memory.size()) < floats + LANES) memory.resize(floats + LANES);
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  return memory.data() + (-address / sizeof(float)) % LANES;
}

// Calls f with each share of `total` that a thread takes: all of it, or, if `spread`, multiples of eight.
template <class F>
void share(int64_t total, bool spread, const F& f) {
  if (!spread) return f(0, total);
  torch::stable::parallel_for(0, (total + LANES - 1) / LANES, 1,
                              [&](int64_t begin, int64_t end) { f(begin * LANES, std::min(end * LANES, total)); });
}

// All raw maps (K, positions) of one image whose channels lie side by side, by one thread or, if `spread`, by all.
void sum_image_rows(const Problem& problem, int64_t image, bool spread, float* maps) {
  const int64_t all_weights = weighs_channels(problem.method) ? problem.targets * problem.channels : 0;
  float* weights = scratch<0>(all_weights);
  if (all_weights != 0) {
    double* wide = reinterpret_cast<double*>(scratch<1>(4 * problem.channels));
    for (int64_t k = 0; k < problem.targets; ++k)
      share(problem.channels, spread, [&](int64_t begin, int64_t end) {
        kernels().weigh_rows(problem, image, k, begin, end, wide, weights + k * problem.channels);
      });
  }
  share(problem.positions(), spread, [&](int64_t begin, int64_t end) {
    kernels().sum_rows(problem, image, weights, begin, end, scratch<2>(problem.targets * LANES * LANES), maps);
  });
}

void sum_slab(const Problem& problem, int64_t image, int64_t slab, float* maps) {
  float* tiles = problem.in_planes() ? nullptr : scratch<2>(2 * problem.channels_per_pass(false) * problem.positions());
  kernels().sum_slab(problem, image, slab, tiles, maps);
}

// Each thread has axes of its own, at hand in its cache, and kept: most calls ask for those of the call before.
const Axes& axes_of(const Problem& problem) {
  thread_local Axes axes{};
  if (axes.rows.in != problem.rows || axes.rows.out != problem.height || axes.columns.in != problem.columns ||
      axes.columns.out != problem.width) {
    const int64_t floats = Axis::floats(problem.rows, problem.height) + Axis::floats(problem.columns, problem.width);
    kernels().fill_axes(problem, scratch<7>(floats), axes);
  }
  return axes;
}

struct Outputs {
  float *heatmap, *raw_min, *raw_max;
};

Finish finish_target(const Problem& problem, float* map, int64_t index, const Outputs& out) {
  float* candidates = scratch<3>(problem.rows * (2 * problem.columns + LANES));
  Finish finished;
  kernels().finish(problem, axes_of(problem), map, candidates, finished);
  out.raw_min[index] = finished.raw_min;
  out.raw_max[index] = finished.raw_max;
  return finished;
}

// At least as many images as threads: each image is one thread's from its first byte to its last.
void run_by_image(const Problem& problem, int64_t grain, const Outputs& out) {
  const int64_t floats = problem.floats();
  const bool in_rows = problem.in_rows();
  torch::stable::parallel_for(0, problem.images, grain, [&](int64_t begin, int64_t end) {
    float* maps = scratch<4>(2 * floats);
    float* room = scratch<5>(stretched_room(problem.width));
    for (int64_t image = begin; image < end; ++image) {
      if (in_rows) {
        sum_image_rows(problem, image, false, maps);
      } else {
        sum_slab(problem, image, 0, maps);
        for (int64_t slab = 1; slab < problem.slabs(); ++slab) {
          sum_slab(problem, image, slab, maps + floats);
          kernels().add_partial(maps + floats, floats, maps);
        }
      }
      for (int64_t k = 0; k < problem.targets; ++k) {
        const int64_t index = image * problem.targets + k;
        float* map = maps + k * problem.positions();
        const Finish finished = finish_target(problem, map, index, out);
        kernels().write(axes_of(problem), map, finished, 0, problem.height, problem.past_cache(), room,
                        out.heatmap + index * problem.height * problem.width);
      }
    }
  });
}

// Fewer images than threads: the threads share the slabs (or rows) of all images, then the rows of all heatmaps.
void run_by_slab(const Problem& problem, const Outputs& out) {
  const int64_t floats = problem.floats();
  const bool in_rows = problem.in_rows();
  const int64_t slabs = in_rows ? 1 : problem.slabs();
  float* partials = scratch<4>(problem.images * slabs * floats);
  if (in_rows) {
    for (int64_t image = 0; image < problem.images; ++image)
      sum_image_rows(problem, image, true, partials + image * floats);
  } else {
    torch::stable::parallel_for(0, problem.images * slabs, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) sum_slab(problem, i / slabs, i % slabs, partials + i * floats);
    });
  }
  const auto map_of = [&](int64_t index) {
    return partials + index / problem.targets * slabs * floats + index % problem.targets * problem.positions();
  };
  const int64_t maps = problem.images * problem.targets;
  Finish* finished = reinterpret_cast<Finish*>(scratch<6>(maps * sizeof(Finish) / sizeof(float)));
  for (int64_t image = 0; image < problem.images; ++image)
    for (int64_t slab = 1; slab < slabs; ++slab)
      kernels().add_partial(partials + (image * slabs + slab) * floats, floats, partials + image * slabs * floats);
  for (int64_t index = 0; index < maps; ++index) finished[index] = finish_target(problem, map_of(index), index, out);

  const int64_t pixels = problem.height * problem.width;
  const int64_t grain = std::max<int64_t>(1, SERIAL_WORK / 2 / problem.width);
  torch::stable::parallel_for(0, maps * problem.height, grain, [&](int64_t begin, int64_t end) {
    float* room = scratch<5>(stretched_room(problem.width));
    for (int64_t row = begin; row < end;) {
      const int64_t index = row / problem.height;
      const int64_t first = index * problem.height;
      const int64_t stop = std::min(end, first + problem.height);
      kernels().write(axes_of(problem), map_of(index), finished[index], row - first, stop - first, problem.past_cache(),
                      room, out.heatmap + index * pixels);
      row = stop;
    }
  });
}

Maps maps_of(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  const auto strides = tensor.strides();
  return {static_cast<const char*>(tensor.const_data_ptr()),
          tensor.scalar_type(),
          static_cast<int64_t>(tensor.element_size()),
          strides[0],
          last == 4 ? strides[1] : 0,
          strides[last - 2],
          strides[last - 1],
          strides[last]};
}

// gradcam_fast/contract.py refuses these with a sentence; here they only keep a direct caller of the op from harm.
void check(const Tensor& activations, const Tensor& gradients, int64_t height, int64_t width, int64_t method,
           int64_t normalize) {
  STD_TORCH_CHECK(activations.dim() == 4, "cam: activations should be (B,C,h,w), got ", activations.dim(), "D");
  STD_TORCH_CHECK(gradients.dim() == 4 || gradients.dim() == 5,
                  "cam: gradients should be (B,C,h,w) or (B,K,C,h,w), got ", gradients.dim(), "D");
  const auto sizes = activations.sizes();
  const auto others = gradients.sizes();
  const int64_t extra = gradients.dim() - 4;
  for (int64_t d = 0; d < 4; ++d) {
    STD_TORCH_CHECK(sizes[d] == others[d == 0 ? 0 : d + extra],
                    "cam: activations and gradients differ in B, C, h or w");
    STD_TORCH_CHECK(d == 0 || sizes[d] > 0, "cam: activations are empty");
  }
  STD_TORCH_CHECK(extra == 0 || others[1] > 0, "cam: gradients are of no target");
  const ScalarType dtype = activations.scalar_type();
  STD_TORCH_CHECK(dtype == gradients.scalar_type(), "cam: activations and gradients differ in dtype");
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16,
                  "cam: expected float32, float16 or bfloat16");
  STD_TORCH_CHECK(activations.is_cpu() && gradients.is_cpu(), "cam: activations and gradients should be on the CPU");
  STD_TORCH_CHECK(height > 0 && width > 0, "cam: size should be at least 1x1, got ", height, "x", width);
  STD_TORCH_CHECK(0 <= method && method < method_count, "cam: method should be below ", method_count, ", got ", method);
  STD_TORCH_CHECK(0 <= normalize && normalize < normalize_count, "cam: normalize should be below ", normalize_count,
                  ", got ", normalize);
}

// Straight through the C interface: the dispatcher's empty looks itself up by name, which costs microseconds.
Tensor empty(const int64_t* sizes, int64_t dimensions) {
  int64_t strides[4];
  for (int64_t d = dimensions - 1, stride = 1; d >= 0; stride *= std::max<int64_t>(sizes[d--], 1)) strides[d] = stride;
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dimensions, sizes, strides, aoti_torch_dtype_float32(),
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

std::tuple<Tensor, Tensor, Tensor> cam(const Tensor& activations, const Tensor& gradients, int64_t height,
                                       int64_t width, int64_t method, int64_t normalize, bool relu) {
  check(activations, gradients, height, width, method, normalize);
  const bool several = gradients.dim() == 5;
  const Problem problem{maps_of(activations),
                        maps_of(gradients),
                        activations.size(0),
                        several ? gradients.size(1) : 1,
                        activations.size(1),
                        activations.size(2),
                        activations.size(3),
                        height,
                        width,
                        static_cast<Method>(method),
                        static_cast<Normalize>(normalize),
                        relu};
  const int64_t maps = 1 + several;
  const int64_t sizes[4] = {problem.images, several ? problem.targets : height, several ? height : width, width};
  Tensor heatmap = empty(sizes, maps + 2);
  Tensor raw_min = empty(sizes, maps);
  Tensor raw_max = empty(sizes, maps);
  if (problem.images * problem.targets == 0) return {heatmap, raw_min, raw_max};

  const Outputs out{static_cast<float*>(heatmap.mutable_data_ptr()), static_cast<float*>(raw_min.mutable_data_ptr()),
                    static_cast<float*>(raw_max.mutable_data_ptr())};

  const int64_t work =
      problem.channels * problem.positions() * (1 + problem.targets) + problem.targets * height * width;
  if (problem.images < static_cast<int64_t>(torch::stable::get_num_threads()) && problem.images * work > SERIAL_WORK)
    run_by_slab(problem, out);
  else
    run_by_image(problem, std::max<int64_t>(1, SERIAL_WORK / work), out);
  return {heatmap, raw_min, raw_max};
}

}  // namespace
}  // namespace gradcam_fast

STABLE_TORCH_LIBRARY_IMPL(gradcam_fast, CPU, library) { library.impl("cam", TORCH_BOX(&gradcam_fast::cam)); }
