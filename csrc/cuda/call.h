// What one call of the CUDA kernel is about: feature maps in memory, sizes, choices, results, and how it is shared.
// Knows nothing of threads.
#pragma once

#include "common/cam_math.h"
#include "common/stored_types.h"
#include "cuda/work_split.h"

#include <array>
#include <cstdint>

#if defined(__CUDACC__)
#define GCF_DEVICE __device__ __forceinline__
#else
#define GCF_DEVICE inline
#endif

namespace gradcam_fast::gpu {

// Feature maps in memory: strides in elements. `even`: one position is as far from the next at the end of a row, too.
// `uniform`: a number stands for all positions of a channel.
// `pitch`: where all numbers of several channels lie one behind the other, how many each has: its positions, or one
// that stands for all of them; else zero.
struct Strides {
  int64_t image, target, channel, row, column;
  bool even, uniform;
  int pitch;
};

struct Call {
  const void *activations, *gradients;
  Strides a, g;
  Divisor targets;
  Slabs slabs;
  Axis y, x;
  Normalize normalize;
  bool relu;
  // Whether channels are the innermost axis in memory.
  bool channels_inside;
  float *heatmap, *raw_min, *raw_max;
  // Room for each image's and target's map where shared memory has none; else null.
  float* spill;
  // How many channels are brought to shared memory at a time, and the bytes of all stages; zero if maps are read where
  // they lie.
  int staged;
  int64_t bytes_of_stages;
  Divisor positions, columns;
  float over_positions;
  Groups groups;
  Writers writers;
  // How many blocks share a map, and how many slabs each has.
  Divisor blocks{1};
  int own = 0;
  Parts rows{0, Divisor(1)};

  void share(int among) {
    blocks = Divisor(among);
    own = slabs.count / among;
    rows = Parts(y.out, blocks);
  }
  void stage(int channels, int bytes_per_number) {
    staged = channels;
    bytes_of_stages = STAGES * channels * (int64_t{a.pitch} + g.pitch) * bytes_per_number;
  }
};

// Strides are (image, target, channel, row, column), sizes are (targets, channels, rows, columns, height, width). The
// stride of a side of one means nothing.
inline Call make_call(const void* activations, const std::array<int64_t, 5>& a, const void* gradients,
                      const std::array<int64_t, 5>& g, const std::array<int64_t, 6>& sizes, Normalize normalize,
                      bool relu, float* heatmap, float* raw_min, float* raw_max, float* spill) {
  const auto [targets, channels, rows, columns, height, width] = sizes;
  const auto strides = [channels = channels, rows = rows, columns = columns](const std::array<int64_t, 5>& of) {
    const int64_t column = columns == 1 ? of[3] : of[4];
    const bool even = columns == 1 || rows == 1 || of[3] == columns * column;
    const bool uniform = even && (rows * columns == 1 || column == 0);
    const auto follow = [&](int64_t apart, int64_t each) {
      return even && (rows * columns == 1 || column == apart) && (channels == 1 || of[2] == each);
    };
    const int64_t pitch = follow(1, rows * columns) ? rows * columns : follow(0, 1) ? 1 : 0;
    return Strides{of[0], of[1], of[2], of[3], column, even, uniform, static_cast<int>(pitch)};
  };
  const bool inside = channels > 1 && a[2] == 1 && g[2] == 1 && rows * columns > 1;
  Call call{activations,
            gradients,
            strides(a),
            strides(g),
            Divisor(static_cast<int>(targets)),
            Slabs(static_cast<int>(channels)),
            Axis(rows, height),
            Axis(columns, width),
            normalize,
            relu,
            inside,
            heatmap,
            raw_min,
            raw_max,
            spill,
            0,
            0,
            Divisor(static_cast<int>(rows * columns)),
            Divisor(static_cast<int>(columns)),
            1.0f / static_cast<float>(rows * columns),
            Groups(static_cast<int>(rows * columns)),
            Writers(static_cast<int>(width))};
  call.share(1);
  return call;
}

// The maps of slabs that a block keeps beside the map: those of its own slabs, if there are other blocks, or the one
// that it is bringing through stages.
GCF_INLINE int partial_maps(const Call& call) { return call.blocks > 1 ? call.own : call.staged > 0; }

// Floats for a slab's weights, or for the threads' sums.
inline constexpr int ROOM = RUN * THREADS;
// Floats for what warps tell each other.
inline constexpr int TOLD = 4 * WARPS;

// Shared memory in bytes: stages, room, what warps tell each other, partial maps, the map.
GCF_INLINE int64_t shared_bytes(const Call& call) {
  const int64_t maps = partial_maps(call) + (call.spill == nullptr);
  return call.bytes_of_stages + (ROOM + TOLD + maps * call.positions) * sizeof(float);
}

// The maps of one image (and target). Numbers come as they are stored: to convert one is to wait for it.
template <class Stored>
struct Planes {
  using Number = Stored;
  // Whether to ask for a number takes long, and whether there are channels in whole runs only.
  static constexpr bool FAR = true, WHOLE_RUNS = false;
  const Stored* data;
  const Strides& strides;
  const Divisor& columns;

  GCF_DEVICE int64_t step() const { return strides.channel; }
  GCF_DEVICE const Stored* at(int channel, int position) const {
    const int64_t within = strides.even
                               ? position * strides.column
                               : columns.quotient(position) * strides.row + columns.rest(position) * strides.column;
    return data + channel * strides.channel + within;
  }
};

// Those of the channels that a stage holds.
template <class Stored>
struct StagedPlanes {
  using Number = Stored;
  static constexpr bool FAR = false, WHOLE_RUNS = true;
  const Stored* data;
  int pitch;

  GCF_DEVICE int step() const { return pitch; }
  GCF_DEVICE const Stored* at(int channel, int position) const {
    return data + channel * pitch + (pitch == 1 ? 0 : position);
  }
};

}  // namespace gradcam_fast::gpu
