// The operator cam on the CPU: checks its arguments, provides memory, and splits the work among threads. The kernels
// are in the .inl files, reached through cpu/kernels.h.
#include "common/arguments.h"
#include "cpu/kernels.h"

#include <torch/csrc/stable/library.h>

#include <atomic>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

namespace gradcam_fast {
namespace {

// One more thread saves time only if it has this many numbers to read and write.
constexpr int64_t MIN_WORK_PER_THREAD = 1 << 15;

// What the scratch memory of a thread is for; each purpose has its own.
enum class Scratch { weights, doubles, tiles_or_sums, candidates, maps, stretched_rows, finished_maps, tables };

// Memory that lives as long as its thread, aligned to a vector, so that only a thread's first call allocates.
template <Scratch purpose>
float* scratch(int64_t floats) {
  thread_local std::vector<float> memory;
  if (static_cast<int64_t>(memory.size()) < floats + LANES) {
    try {
      memory.resize(floats + LANES);
    } catch (const std::exception&) {
      STD_TORCH_CHECK(false, "gradcam_fast: out of memory: ", (floats + LANES) * sizeof(float),
                      " bytes were asked for, to work in");
    }
  }
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  return memory.data() + (-address / sizeof(float)) % LANES;
}

// As torch::stable::parallel_for, but an exception keeps its message: the C interface tells only that there was one.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  std::mutex lock;
  bool failed = false;
  std::string message;
  torch::stable::parallel_for(begin, end, grain, [&](int64_t first, int64_t last) {
    try {
      f(first, last);
    } catch (const std::exception& error) {
      const std::lock_guard<std::mutex> guard(lock);
      failed = true;
      message = error.what();
    }
  });
  // Not by std::exception_ptr, whose symbols libtorch exports, too.
  if (failed) throw std::runtime_error(message);
}

// Where part number `part` of `total` begins; a multiple of LANES.
int64_t part_begin(int64_t total, int64_t part, int64_t parts) {
  const int64_t vectors = (total + LANES - 1) / LANES;
  return std::min(total, vectors * part / parts * LANES);
}

// The weights of the channels [begin, end) of a channels-last image.
void weigh_channels_last(const Problem& problem, int64_t image, int64_t target, int64_t begin, int64_t end,
                         float* weights) {
  double* doubles = reinterpret_cast<double*>(scratch<Scratch::doubles>(4 * problem.channels));
  kernels().weigh_channels_last(problem, image, target, begin, end, doubles, weights);
}

// The maps (K, positions) of a channels-last image at the positions [begin, end).
void sum_channels_last(const Problem& problem, int64_t image, const float* weights, int64_t begin, int64_t end,
                       float* maps) {
  kernels().sum_channels_last(problem, image, weights, begin, end,
                              scratch<Scratch::tiles_or_sums>(problem.targets * LANES * LANES), maps);
}

// The partial maps (K, positions) of the slabs [begin, end) of an image.
void sum_slabs(const Problem& problem, int64_t image, int64_t begin, int64_t end, float* maps) {
  float* tiles = problem.needs_tiles()
                     ? scratch<Scratch::tiles_or_sums>(2 * problem.channels_per_pass() * problem.positions())
                     : nullptr;
  kernels().sum_slabs(problem, image, begin, end, tiles, maps);
}

// Each thread keeps tables of its own, which stay in its cache, and fills them again only when the sizes change.
const ResizeTables& resize_tables_of(const Problem& problem) {
  thread_local ResizeTables tables{};
  if (tables.rows.in != problem.rows || tables.rows.out != problem.height || tables.columns.in != problem.columns ||
      tables.columns.out != problem.width) {
    const int64_t floats =
        ResizeTable::floats(problem.rows, problem.height) + ResizeTable::floats(problem.columns, problem.width);
    kernels().fill_resize_tables(problem, scratch<Scratch::tables>(floats), tables);
  }
  return tables;
}

struct ResultPointers {
  float *heatmap, *raw_min, *raw_max;
};

FinishedMap finish_target(const Problem& problem, float* map, int64_t index, const ResultPointers& out) {
  float* candidates = scratch<Scratch::candidates>(problem.rows * (2 * problem.columns + LANES));
  FinishedMap finished;
  kernels().finish(problem, resize_tables_of(problem), map, candidates, finished);
  out.raw_min[index] = finished.raw_min;
  out.raw_max[index] = finished.raw_max;
  return finished;
}

// For at least as many images as threads: each image is processed by one thread from begin to end.
void run_by_image(const Problem& problem, int64_t grain, const ResultPointers& out) {
  const int64_t floats = problem.floats();
  const int64_t slabs_per_pass = problem.is_channels_last() ? 0 : std::min(problem.slabs_per_pass(), problem.slabs());
  parallel_for(0, problem.images, grain, [&](int64_t begin, int64_t end) {
    float* maps = scratch<Scratch::maps>((1 + slabs_per_pass) * floats);
    float* buffer = scratch<Scratch::stretched_rows>(stretched_floats(problem.width));
    float* weights = scratch<Scratch::weights>(problem.weights_kept());
    for (int64_t image = begin; image < end; ++image) {
      if (problem.is_channels_last()) {
        if (problem.weights_kept() != 0)
          for (int64_t k = 0; k < problem.targets; ++k)
            weigh_channels_last(problem, image, k, 0, problem.channels, weights + k * problem.channels);
        sum_channels_last(problem, image, weights, 0, problem.positions(), maps);
      } else {
        // The maps of the first pass are added up in place. Those of later passes are written behind the first map, and
        // added to it.
        for (int64_t slab = 0; slab < problem.slabs(); slab += slabs_per_pass) {
          const int64_t last = std::min(slab + slabs_per_pass, problem.slabs());
          float* partials = maps + (slab == 0 ? 0 : floats);
          sum_slabs(problem, image, slab, last, partials);
          for (float* partial = maps + floats; partial < partials + (last - slab) * floats; partial += floats)
            kernels().add_partial(partial, floats, maps);
        }
      }
      for (int64_t k = 0; k < problem.targets; ++k) {
        const int64_t index = image * problem.targets + k;
        float* map = maps + k * problem.positions();
        const FinishedMap finished = finish_target(problem, map, index, out);
        kernels().write(resize_tables_of(problem), map, finished, 0, problem.height, problem.nontemporal(), buffer,
                        out.heatmap + index * problem.height * problem.width);
      }
    }
  });
}

// Jobs that threads take one at a time. A thread that finds none left waits for the jobs that others have taken, never
// for a job that nobody has taken, so any number of threads finishes the queue.
class JobQueue {
 public:
  explicit JobQueue(int64_t jobs) : jobs_(jobs) {}

  template <class F>
  void work(const F& f) {
    take_jobs(f);
    for (int64_t turns = 0; done_.load(std::memory_order_acquire) != jobs_; ++turns)
      if (turns > SPINS_BEFORE_YIELD) std::this_thread::yield();
  }

 private:
  // About a millisecond. Waiting longer means that there are more threads than processors.
  static constexpr int64_t SPINS_BEFORE_YIELD = 1 << 20;

  template <class F>
  void take_jobs(const F& f) {
    // Counts a job that throws, too, so that other threads do not wait for it; parallel_for rethrows.
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

// For fewer images than threads: the threads share the slabs (or channels, then positions) of all images, then the
// maps, then the rows of all heatmaps. One parallel region for all steps: with one region per step a single image took
// a fifth longer. Each thread takes adjacent slabs, so that it reads contiguous memory: alternating slabs took up to a
// fifth longer.
void run_together(const Problem& problem, int64_t threads, const ResultPointers& out) {
  const int64_t floats = problem.floats();
  const bool is_channels_last = problem.is_channels_last();
  const int64_t slabs = is_channels_last ? 1 : problem.slabs();
  const int64_t all_slabs = problem.images * slabs;
  const int64_t targets = problem.images * problem.targets;
  float* partials = scratch<Scratch::maps>(all_slabs * floats);
  float* weights = scratch<Scratch::weights>(problem.images * problem.weights_kept());
  FinishedMap* finished =
      reinterpret_cast<FinishedMap*>(scratch<Scratch::finished_maps>(targets * sizeof(FinishedMap) / sizeof(float)));
  const auto map_of = [&](int64_t index) {
    return partials + index / problem.targets * slabs * floats + index % problem.targets * problem.positions();
  };

  const int64_t parts = is_channels_last ? threads : std::min(threads, all_slabs);
  const int64_t rows = (targets * problem.height + threads - 1) / threads;
  const int64_t bands = (problem.height + rows - 1) / rows;
  JobQueue weighing(problem.weights_kept() == 0 ? 0 : targets * parts),
      summing(is_channels_last ? problem.images * parts : parts), finishing(targets), writing(targets * bands);
  parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    weighing.work([&](int64_t job) {
      const int64_t index = job / parts;
      const int64_t part = job % parts;
      weigh_channels_last(problem, index / problem.targets, index % problem.targets,
                          part_begin(problem.channels, part, parts), part_begin(problem.channels, part + 1, parts),
                          weights + index * problem.channels);
    });
    summing.work([&](int64_t job) {
      if (is_channels_last) {
        const int64_t image = job / parts;
        const int64_t part = job % parts;
        sum_channels_last(problem, image, weights + image * problem.weights_kept(),
                          part_begin(problem.positions(), part, parts),
                          part_begin(problem.positions(), part + 1, parts), partials + image * floats);
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
    float* buffer = scratch<Scratch::stretched_rows>(stretched_floats(problem.width));
    writing.work([&](int64_t job) {
      const int64_t index = job / bands;
      const int64_t band = job % bands;
      kernels().write(resize_tables_of(problem), map_of(index), finished[index], problem.height * band / bands,
                      problem.height * (band + 1) / bands, problem.nontemporal(), buffer,
                      out.heatmap + index * problem.height * problem.width);
    });
  });
}

StridedMaps strided_maps_of(const Tensor& tensor) {
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
  const Problem problem{strided_maps_of(activations),
                        strided_maps_of(gradients),
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
  // The tables for resizing hold places as int32.
  STD_TORCH_CHECK(std::max({problem.rows, problem.columns, height, width}) <= INT32_MAX,
                  "gradcam_fast: out of memory: a side of more than ", INT32_MAX, " positions");

  const ResultPointers out{results.heatmap_data(), results.raw_min_data(), results.raw_max_data()};
  const int64_t work = problem.numbers_read() + problem.targets * height * width;
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(),
                                            (problem.images * work + MIN_WORK_PER_THREAD - 1) / MIN_WORK_PER_THREAD);
  if (problem.images < threads)
    run_together(problem, threads, out);
  else
    run_by_image(problem, std::max<int64_t>(1, MIN_WORK_PER_THREAD / work), out);
  return {results.heatmap, results.raw_min, results.raw_max};
}

}  // namespace
}  // namespace gradcam_fast

STABLE_TORCH_LIBRARY_IMPL(gradcam_fast, CPU, library) { library.impl("cam", TORCH_BOX(&gradcam_fast::cam)); }
