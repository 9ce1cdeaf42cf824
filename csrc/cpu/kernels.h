// What the CPU operators' parts tell each other: the problems, and the table of kernels that one instruction set fills.
//
// The .inl files are compiled once per instruction set, each time into a namespace of its own (cpu/dispatch.cpp);
// what stands here is the same for all.
#pragma once

#include "common/cam_math.h"
#include "common/stored_types.h"

#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

// A loop over a block's channels or a vector's lanes, written out, so that what it works on stays in registers.
#if defined(__GNUC__) && !defined(__clang__)
#define GCF_UNROLL _Pragma("GCC unroll 8")
#else
#define GCF_UNROLL _Pragma("unroll")
#endif

// Without it a lambda called from several places is not inlined into them, and vectors go through memory.
#define GCF_LAMBDA __attribute__((always_inline))

namespace gradcam_fast {

using torch::headeronly::ScalarType;

// Vectors have eight lanes on every instruction set: the same operations in the same order, the same bits.
inline constexpr int64_t LANES = 8;
// Channels are summed in slabs, each by one thread, and the slabs' maps are added in order: by a rule that knows
// only the number of channels, so that the bits of a map depend neither on the batch nor on the threads.
inline constexpr int64_t CHANNELS_PER_SLAB = 64;
// How many channels are pooled at a time, each in a vector of its own.
inline constexpr int64_t BLOCK = LANES;
// Channels are added in passes. Where a method or a further target reads again what a pass has read, of as many as the
// L2 cache has room for; else of as many slabs as have their maps in the L1 cache.
inline constexpr int64_t FLOATS_PER_PASS = 1 << 16;
inline constexpr int64_t FLOATS_OF_SLABS = 1 << 12;
// A part of a slab, or a copy of one in another layout.
inline constexpr int64_t FLOATS_PER_TILE = 1 << 14;
// How many numbers ahead of each block of gradients a line is fetched when several targets share the activations: these
// are in the cache then, and without the hint the processor does not read far enough ahead. With one target it does,
// and the hint cost a tenth.
inline constexpr int64_t AHEAD = 4096;

// What a call may touch and still find in the last cache of a usual processor.
inline constexpr int64_t CACHE = 32 << 20;

// Feature maps in memory: the strides, in elements, of image, target, channel, row and column.
struct Maps {
  const char* data;
  ScalarType dtype;
  int64_t bytes, image, target, channel, row, column;

  const void* at(int64_t i, int64_t k, int64_t c) const {
    return data + bytes * (i * image + k * target + c * channel);
  }
};

struct Problem {
  Maps activations, gradients;
  int64_t images, targets, channels, rows, columns, height, width;
  Method method;
  Normalize normalize;
  bool relu;

  int64_t positions() const { return rows * columns; }
  int64_t floats() const { return targets * positions(); }
  // Channels are taken by turns from the first half and from the second: two streams from memory instead of one.
  int64_t half() const { return (channels + 1) / 2; }
  int64_t channel_at(int64_t turn) const { return turn / 2 + turn % 2 * half(); }
  int64_t slabs() const { return (channels + CHANNELS_PER_SLAB - 1) / CHANNELS_PER_SLAB; }

  // One number per channel, as behind global average pooling: the gradients are expanded, with strides of zero.
  bool uniform() const {
    return (gradients.column == 0 || columns == 1) && (gradients.row == 0 || rows == 1) && positions() > 1;
  }

  // Of whole slabs, or of a part of one.
  int64_t channels_per_pass() const {
    const bool once = targets == 1 && (method == Method::gradcam || !weighs_channels(method));
    const int64_t slabs = (once ? FLOATS_OF_SLABS : FLOATS_PER_PASS / CHANNELS_PER_SLAB) / positions();
    if (!in_tiles() && (once || slabs > 0)) return std::max<int64_t>(1, slabs) * CHANNELS_PER_SLAB;
    return std::clamp(FLOATS_PER_TILE / positions() / BLOCK * BLOCK, BLOCK, CHANNELS_PER_SLAB);
  }
  int64_t slabs_per_pass() const { return std::max<int64_t>(1, channels_per_pass() / CHANNELS_PER_SLAB); }

  // Heatmaps that will have left the cache before anyone can read them need not go there.
  bool past_cache() const {
    return images * (numbers_read() * activations.bytes + targets * height * width * 4) > CACHE;
  }
  // Of one image, from memory.
  int64_t numbers_read() const { return channels * (positions() + targets * (uniform() ? 1 : positions())); }

  // Planes: one channel's positions side by side. Rows: one position's channels side by side, positions evenly spaced.
  bool in_planes(const Maps& maps) const {
    return (maps.column == 1 || columns == 1) && (maps.row == columns || rows == 1);
  }
  bool in_rows(const Maps& maps) const {
    return maps.channel == 1 && (columns == 1 || rows == 1 || maps.row == columns * maps.column);
  }
  // From one position to the next, in rows. The stride of a side of one means nothing.
  int64_t row_stride(const Maps& maps) const { return columns == 1 ? maps.row : maps.column; }
  // Where memory is walked as it is. Half precision is, for the method that matters most; the others read it through
  // tiles of floats, as they read any other layout.
  bool as_stored() const { return method == Method::gradcam || activations.dtype == ScalarType::Float; }
  bool in_planes() const { return as_stored() && in_planes(activations) && (uniform() || in_planes(gradients)); }
  // Nothing of the gradients is read but a factor per channel.
  bool in_factors() const { return factors_uniform(method) && uniform() && in_planes(); }
  // Something is gathered before it is walked.
  bool in_tiles() const { return !in_rows() && (!in_planes() || (uniform() && !in_factors())); }
  bool in_rows() const { return as_stored() && !in_planes() && in_rows(activations) && in_rows(gradients); }
  // The weights of an image that are kept, all at a time: none where there are none, or where planes are weighed in
  // passing.
  int64_t row_weights() const { return in_rows() && weighs_channels(method) ? targets * channels : 0; }
};

// Where the pixels of one axis read. Pixels that read between the same two samples lie side by side: a run.
struct Run {
  int32_t low, high;
  int32_t begin, end;
};

struct Axis {
  int64_t in, out, runs;
  Run* run;
  float* fraction;

  // The room it takes, in floats. Whole vectors of fractions are read.
  static int64_t floats(int64_t in, int64_t out) {
    return out + LANES + static_cast<int64_t>(sizeof(Run) / sizeof(float)) * std::min(in, out);
  }
};

// A stretched row is as long as the heatmap is wide, and some more; a page's length, to the nearest above, apart.
inline constexpr int64_t FLOATS_PER_PAGE = 1024;
inline int64_t stretched_row(int64_t width) {
  return (width + LANES + FLOATS_PER_PAGE - 1) / FLOATS_PER_PAGE * FLOATS_PER_PAGE + 2 * LANES;
}
inline int64_t stretched_room(int64_t width) { return FLOATS_PER_PAGE + 2 * LANES + 3 * stretched_row(width); }

struct Axes {
  Axis rows, columns;
};

// A map ready to be written: what its pixels go through, its extremes before that, and whether nothing in it is below
// zero nor shifted.
struct Finish {
  Affine affine;
  float raw_min, raw_max;
  bool from_zero;
};

// A few rows (rows, R) times a matrix (R, columns), of which only the rows `used` need be read. Strides in elements.
struct SkinnyProduct {
  const float* left;
  int64_t rows, row_stride, column_stride;
  const float* matrix;
  int64_t matrix_stride, columns;
  const int64_t* used;
  int64_t used_count;
  float* out;

  float at(int64_t row, int64_t i) const { return left[row * row_stride + i * column_stride]; }
};

// Room is given by the caller; the comments say how many floats of it.
struct Kernels {
  const char* instruction_set;
  // memory: Axis::floats of both axes.
  void (*fill_axes)(const Problem&, float* memory, Axes&);
  // The partial maps (K, positions) of each of the slabs [begin, end). tiles: 2 x channels_per_pass x positions, if the
  // problem is in tiles.
  void (*sum_slabs)(const Problem&, int64_t image, int64_t begin, int64_t end, float* tiles, float* maps);
  void (*add_partial)(const float* partial, int64_t floats, float* maps);
  // The weights of the channels [begin, end) of one image and target. wide: two doubles per channel.
  void (*weigh_rows)(const Problem&, int64_t image, int64_t target, int64_t begin, int64_t end, double* wide,
                     float* weights);
  // The maps (K, positions) of an image at the positions [begin, end). sums: K x 64, aligned to 32 bytes.
  void (*sum_rows)(const Problem&, int64_t image, const float* weights, int64_t begin, int64_t end, float* sums,
                   float* maps);
  // ReLU in place, the extremes, the normalisation. candidates: rows (2 columns + LANES).
  void (*finish)(const Problem&, const Axes&, float* map, float* candidates, Finish&);
  // Rows [begin, end) of one heatmap. room: stretched_room(width).
  void (*write)(const Axes&, const float* map, const Finish&, int64_t begin, int64_t end, bool past_cache, float* room,
                float* heatmap);
  // Columns [begin, end) of the product.
  void (*skinny_mm)(const SkinnyProduct&, int64_t begin, int64_t end);
};

// The best that this machine can run.
const Kernels& kernels();

}  // namespace gradcam_fast
