// The parameters of one kernel launch: feature maps in memory, sizes, options, results, and how the work is split.
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

// Feature maps in memory; strides in elements.
//
// even: positions are evenly spaced, also from the end of one row to the start of the next. uniform: one number stands
// for all positions of a channel. pitch: if channels are contiguous, the numbers per channel (its positions, or 1 if
// uniform), else 0.
struct Strides {
  int64_t image, target, channel, row, column;
  bool even, uniform;
  int pitch;
};

struct Params {
  const void *activations, *gradients;
  Strides a, g;
  Divisor targets;
  Slabs slabs;
  Axis y, x;
  Normalize normalize;
  bool relu;
  // Whether channels are adjacent in memory (channels-last).
  bool channels_innermost;
  float *heatmap, *raw_min, *raw_max;
  // Global memory for the map of each image and target if shared memory is too small, else null.
  float* spill;
  // The channels per stage, and the bytes of all stages; both 0 if maps are read from global memory.
  int stage_channels;
  int64_t bytes_of_stages;
  Divisor positions, columns;
  float inverse_positions;
  Groups groups;
  Writers writers;
  // The number of blocks that share a map, and the number of slabs per block.
  Divisor blocks{1};
  int slabs_per_block = 0;
  EvenSplit rows{0, Divisor(1)};

  void split_among(int block_count) {
    blocks = Divisor(block_count);
    slabs_per_block = slabs.count / block_count;
    rows = EvenSplit(y.out, blocks);
  }
  void set_stage(int channels, int bytes_per_number) {
    stage_channels = channels;
    bytes_of_stages = STAGES * channels * (int64_t{a.pitch} + g.pitch) * bytes_per_number;
  }
};

// Strides are (image, target, channel, row, column), sizes are (targets, channels, rows, columns, height, width). The
// stride of an axis of length one is ignored.
inline Params make_params(const void* activations, const std::array<int64_t, 5>& a, const void* gradients,
                          const std::array<int64_t, 5>& g, const std::array<int64_t, 6>& sizes, Normalize normalize,
                          bool relu, float* heatmap, float* raw_min, float* raw_max, float* spill) {
  const auto [targets, channels, rows, columns, height, width] = sizes;
  const auto strides = [channels = channels, rows = rows, columns = columns](const std::array<int64_t, 5>& of) {
    const int64_t column = columns == 1 ? of[3] : of[4];
    const bool even = columns == 1 || rows == 1 || of[3] == columns * column;
    const bool uniform = even && (rows * columns == 1 || column == 0);
    const auto is_contiguous = [&](int64_t position_stride, int64_t channel_stride) {
      return even && (rows * columns == 1 || column == position_stride) && (channels == 1 || of[2] == channel_stride);
    };
    const int64_t pitch = is_contiguous(1, rows * columns) ? rows * columns : is_contiguous(0, 1) ? 1 : 0;
    return Strides{of[0], of[1], of[2], of[3], column, even, uniform, static_cast<int>(pitch)};
  };
  const bool channels_innermost = channels > 1 && a[2] == 1 && g[2] == 1 && rows * columns > 1;
  Params params{activations,
                gradients,
                strides(a),
                strides(g),
                Divisor(static_cast<int>(targets)),
                Slabs(static_cast<int>(channels)),
                Axis(rows, height),
                Axis(columns, width),
                normalize,
                relu,
                channels_innermost,
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
  params.split_among(1);
  return params;
}

// How many partial maps a block keeps beside the map: one per slab if several blocks share the map; otherwise one if
// the channels go through stages, or none.
GCF_INLINE int partial_maps(const Params& params) {
  return params.blocks > 1 ? params.slabs_per_block : params.stage_channels > 0;
}

// Floats for a slab's weights, or for the sums of the threads.
inline constexpr int SCRATCH_FLOATS = RUN * THREADS;
// Floats for values that warps exchange.
inline constexpr int EXCHANGE_FLOATS = 4 * WARPS;

// The bytes of shared memory of a block: stages, scratch, exchange, partial maps, the map.
GCF_INLINE int64_t shared_bytes(const Params& params) {
  const int64_t maps = partial_maps(params) + (params.spill == nullptr);
  return params.bytes_of_stages + (SCRATCH_FLOATS + EXCHANGE_FLOATS + maps * params.positions) * sizeof(float);
}

// The maps of one image (and target) in global memory. Numbers are returned as stored, because converting one waits for
// its load.
template <class Stored>
struct GlobalMaps {
  using Number = Stored;
  // Whether loads are slow, and whether the number of channels is a multiple of RUN.
  static constexpr bool IN_GLOBAL_MEMORY = true, WHOLE_RUNS = false;
  const Stored* data;
  const Strides& strides;
  const Divisor& columns;

  GCF_DEVICE int64_t step() const { return strides.channel; }
  GCF_DEVICE const Stored* at(int channel, int position) const {
    const int64_t within =
        strides.even ? position * strides.column
                     : columns.quotient(position) * strides.row + columns.remainder(position) * strides.column;
    return data + channel * strides.channel + within;
  }
};

// The maps of the channels that a stage holds in shared memory.
template <class Stored>
struct StagedMaps {
  using Number = Stored;
  static constexpr bool IN_GLOBAL_MEMORY = false, WHOLE_RUNS = true;
  const Stored* data;
  int pitch;

  GCF_DEVICE int step() const { return pitch; }
  GCF_DEVICE const Stored* at(int channel, int position) const {
    return data + channel * pitch + (pitch == 1 ? 0 : position);
  }
};

}  // namespace gradcam_fast::gpu
