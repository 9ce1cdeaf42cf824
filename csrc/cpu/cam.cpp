// The operator cam on the CPU: its arguments, its memory, and which thread works on what. What is computed is the
// kernels' affair (cpu/kernels.h).
#include "common/arguments.h"
#include "cpu/kernels.h"

#include <torch/csrc/stable/library.h>

#include <atomic>
#include <thread>
#include <tuple>
#include <vector>

namespace gradcam_fast {
namespace {

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

// The bounds of a part of `total`, between multiples of eight.
int64_t part_of(int64_t total, int64_t part, int64_t parts) {
  const int64_t vectors = (total + LANES - 1) / LANES;
  return std::min(total, vectors * part / parts * LANES);
}

// The weights of the channels [begin, end) of an image whose channels lie side by side.
void weigh_rows(const Problem& problem, int64_t image, int64_t target, int64_t begin, int64_t end, float* weights) {
  double* wide = reinterpret_cast<double*>(scratch<1>(4 * problem.channels));
  kernels().weigh_rows(problem, image, target, begin, end, wide, weights);
}

// Its maps (K, positions) at the positions [begin, end).
void sum_rows(const Problem& problem, int64_t image, const float* weights, int64_t begin, int64_t end, float* maps) {
  kernels().sum_rows(problem, image, weights, begin, end, scratch<2>(problem.targets * LANES * LANES), maps);
}

// The partial maps (K, positions) of each of its slabs [begin, end).
void sum_slabs(const Problem& problem, int64_t image, int64_t begin, int64_t end, float* maps) {
  float* tiles = problem.in_tiles() ? scratch<2>(2 * problem.channels_per_pass() * problem.positions()) : nullptr;
  kernels().sum_slabs(problem, image, begin, end, tiles, maps);
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
  const int64_t pass = problem.in_rows() ? 0 : std::min(problem.slabs_per_pass(), problem.slabs());
  torch::stable::parallel_for(0, problem.images, grain, [&](int64_t begin, int64_t end) {
    float* maps = scratch<4>((1 + pass) * floats);
    float* room = scratch<5>(stretched_room(problem.width));
    float* weights = scratch<0>(problem.row_weights());
    for (int64_t image = begin; image < end; ++image) {
      if (problem.in_rows()) {
        if (problem.row_weights() != 0)
          for (int64_t k = 0; k < problem.targets; ++k)
            weigh_rows(problem, image, k, 0, problem.channels, weights + k * problem.channels);
        sum_rows(problem, image, weights, 0, problem.positions(), maps);
      } else {
        // The maps of the first pass are added up in the first of them; those of a later one lie behind it, and are
        // added to that.
        for (int64_t slab = 0; slab < problem.slabs(); slab += pass) {
          const int64_t last = std::min(slab + pass, problem.slabs());
          float* partials = maps + (slab == 0 ? 0 : floats);
          sum_slabs(problem, image, slab, last, partials);
          for (float* partial = maps + floats; partial < partials + (last - slab) * floats; partial += floats)
            kernels().add_partial(partial, floats, maps);
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

// Jobs that threads take one by one. Whoever finds none left waits for those that others have taken. No thread waits
// for a job that nobody has taken, so any number of threads gets through, one included.
class Stage {
 public:
  explicit Stage(int64_t jobs) : jobs_(jobs) {}

  template <class F>
  void work(const F& f) {
    take_jobs(f);
    for (int64_t turns = 0; done_.load(std::memory_order_acquire) != jobs_; ++turns)
      if (turns > PATIENCE) std::this_thread::yield();
  }

 private:
  // A millisecond or so. Longer, and there are more threads than processors.
  static constexpr int64_t PATIENCE = 1 << 20;

  template <class F>
  void take_jobs(const F& f) {
    // Counts a job that throws, too: the others do not wait for it, and parallel_for throws again.
    struct Count {
      std::atomic<int64_t>& done;
      int64_t jobs = 0;
      ~Count() { done.fetch_add(jobs, std::memory_order_release); }
    } count{done_};
    for (int64_t job; (job = taken_.fetch_add(1, std::memory_order_relaxed)) < jobs_;) {
      ++count.jobs;
      f(job);
    }
  }

  const int64_t jobs_;
  alignas(64) std::atomic<int64_t> taken_{0};
  alignas(64) std::atomic<int64_t> done_{0};
};

// Fewer images than threads: these share the slabs (or channels, then positions) of all images, then the maps, then
// the rows of all heatmaps. All within one parallel region: with one for each step a single image took a fifth longer.
// And each thread takes neighbouring slabs, so that what it reads is unbroken: taking slabs by turns cost up to a fifth
// more.
void run_together(const Problem& problem, int64_t threads, const Outputs& out) {
  const int64_t floats = problem.floats();
  const bool in_rows = problem.in_rows();
  const int64_t slabs = in_rows ? 1 : problem.slabs();
  const int64_t all_slabs = problem.images * slabs;
  const int64_t targets = problem.images * problem.targets;
  float* partials = scratch<4>(all_slabs * floats);
  float* weights = scratch<0>(problem.images * problem.row_weights());
  Finish* finished = reinterpret_cast<Finish*>(scratch<6>(targets * sizeof(Finish) / sizeof(float)));
  const auto map_of = [&](int64_t index) {
    return partials + index / problem.targets * slabs * floats + index % problem.targets * problem.positions();
  };

  const int64_t parts = in_rows ? threads : std::min(threads, all_slabs);
  const int64_t rows = (targets * problem.height + threads - 1) / threads;
  const int64_t bands = (problem.height + rows - 1) / rows;
  Stage weighing(problem.row_weights() == 0 ? 0 : targets * parts), summing(in_rows ? problem.images * parts : parts),
      finishing(targets), writing(targets * bands);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    weighing.work([&](int64_t job) {
      const int64_t index = job / parts;
      const int64_t part = job % parts;
      weigh_rows(problem, index / problem.targets, index % problem.targets, part_of(problem.channels, part, parts),
                 part_of(problem.channels, part + 1, parts), weights + index * problem.channels);
    });
    summing.work([&](int64_t job) {
      if (in_rows) {
        const int64_t image = job / parts;
        const int64_t part = job % parts;
        sum_rows(problem, image, weights + image * problem.row_weights(), part_of(problem.positions(), part, parts),
                 part_of(problem.positions(), part + 1, parts), partials + image * floats);
      } else {
        const int64_t end = all_slabs * (job + 1) / parts;
        for (int64_t slab = all_slabs * job / parts, next; slab < end; slab = next) {
          const int64_t image = slab / slabs;
          next = std::min(end, (image + 1) * slabs);
          sum_slabs(problem, image, slab - image * slabs, next - image * slabs, partials + slab * floats);
        }
      }
    });
    finishing.work([&](int64_t index) {
      float* map = map_of(index);
      for (int64_t slab = 1; slab < slabs; ++slab) kernels().add_partial(map + slab * floats, problem.positions(), map);
      finished[index] = finish_target(problem, map, index, out);
    });
    float* room = scratch<5>(stretched_room(problem.width));
    writing.work([&](int64_t job) {
      const int64_t index = job / bands;
      const int64_t band = job % bands;
      kernels().write(axes_of(problem), map_of(index), finished[index], problem.height * band / bands,
                      problem.height * (band + 1) / bands, problem.past_cache(), room,
                      out.heatmap + index * problem.height * problem.width);
    });
  });
}

Maps maps_of(const Tensor& tensor) {
  const auto [image, target, channel, row, column] = strides_of(tensor);
  return {static_cast<const char*>(tensor.const_data_ptr()),
          tensor.scalar_type(),
          static_cast<int64_t>(tensor.element_size()),
          image,
          target,
          channel,
          row,
          column};
}

std::tuple<Tensor, Tensor, Tensor> cam(const Tensor& activations, const Tensor& gradients, int64_t height,
                                       int64_t width, int64_t method, int64_t normalize, bool relu) {
  check(activations, gradients, height, width, method, normalize);
  STD_TORCH_CHECK(activations.is_cpu() && gradients.is_cpu(), "cam: activations and gradients should be on the CPU");
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
  Results results = results_for(gradients, height, width, aoti_torch_device_type_cpu(), 0);
  if (problem.images * problem.targets == 0) return {results.heatmap, results.raw_min, results.raw_max};

  const Outputs out{results.heatmaps(), results.least(), results.greatest()};
  const int64_t work = problem.numbers_read() + problem.targets * height * width;
  const int64_t threads =
      std::min<int64_t>(torch::stable::get_num_threads(), (problem.images * work + SERIAL_WORK - 1) / SERIAL_WORK);
  if (problem.images < threads)
    run_together(problem, threads, out);
  else
    run_by_image(problem, std::max<int64_t>(1, SERIAL_WORK / work), out);
  return {results.heatmap, results.raw_min, results.raw_max};
}

}  // namespace
}  // namespace gradcam_fast

STABLE_TORCH_LIBRARY_IMPL(gradcam_fast, CPU, library) { library.impl("cam", TORCH_BOX(&gradcam_fast::cam)); }
