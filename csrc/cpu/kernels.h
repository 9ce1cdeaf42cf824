// What the parts of the CPU operators share: the description of a call (Problem, SkinnyProduct), and the table of
// kernels (Kernels), of which there is one per instruction set.
//
// The .inl files are compiled once per instruction set, each time in a namespace of its own (cpu/dispatch.cpp). This
// header is compiled once.
#pragma once

#include "common/cam_math.h"
#include "common/stored_types.h"

#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

// Unrolls a loop over a vector's lanes or over CHANNELS_PER_STEP channels, so that its values stay in registers.
#if defined(__GNUC__) && !defined(__clang__)
#define GCF_UNROLL _Pragma("GCC unroll 8")
#else
#define GCF_UNROLL _Pragma("unroll")
#endif

// Without this attribute a lambda that is called from several places is not inlined, and vectors go through memory.
#define GCF_LAMBDA __attribute__((always_inline))

namespace gradcam_fast {

using torch::headeronly::ScalarType;

// Vectors have eight lanes on every instruction set: the same operations in the same order give the same bits.
inline constexpr int64_t LANES = 8;
// Channels are summed in slabs, each by one thread, and the maps of the slabs are added in order. The slabs follow from
// the number of channels alone, so that the bits of a map depend neither on the batch nor on the threads.
inline constexpr int64_t CHANNELS_PER_SLAB = 64;
// Channels pooled at a time, each in a vector of its own.
inline constexpr int64_t CHANNELS_PER_STEP = LANES;
// Channels are added in passes. If a method or further targets read the channels of a pass again, all floats of a pass
// fit in the L2 cache; otherwise only the maps of its slabs have to fit in the L1 cache.
inline constexpr int64_t FLOATS_PER_PASS = 1 << 16;
inline constexpr int64_t FLOATS_OF_SLAB_MAPS = 1 << 12;
// Floats of a tile: a part of a slab that is read again, or copied into another layout.
inline constexpr int64_t FLOATS_PER_TILE = 1 << 14;
// How many numbers ahead gradients are prefetched when several targets share the activations: the activations then come
// from the cache, and the processor does not prefetch far enough ahead by itself. With one target it does; prefetching
// then cost a tenth.
inline constexpr int64_t PREFETCH_DISTANCE = 4096;

// Data that a call touches stays in the last-level cache of a common processor up to this many bytes.
inline constexpr int64_t LAST_LEVEL_CACHE_BYTES = 32 << 20;

// Feature maps in memory; strides in elements.
struct StridedMaps {
  const char* data;
  ScalarType dtype;
  int64_t bytes, image, target, channel, row, column;

  const void* at(int64_t i, int64_t k, int64_t c) const {
    return data + bytes * (i * image + k * target + c * channel);
  }
};

// One call of the operator cam.
struct Problem {
  StridedMaps activations, gradients;
  int64_t images, targets, channels, rows, columns, height, width;
  Method method;
  Normalize normalize;
  bool relu;

  int64_t positions() const { return rows * columns; }
  int64_t floats() const { return targets * positions(); }
  // Channels are taken alternately from the first and the second half, which gives two streams from memory instead of
  // one.
  int64_t half() const { return (channels + 1) / 2; }
  int64_t channel_at(int64_t turn) const { return turn / 2 + turn % 2 * half(); }
  int64_t slabs() const { return (channels + CHANNELS_PER_SLAB - 1) / CHANNELS_PER_SLAB; }

  // One gradient per channel, as behind global average pooling: the gradients are expanded, with strides of zero.
  bool uniform() const {
    return (gradients.column == 0 || columns == 1) && (gradients.row == 0 || rows == 1) && positions() > 1;
  }

  // Whole slabs, or a part of one slab.
  int64_t channels_per_pass() const {
    const bool read_once = targets == 1 && (method == Method::gradcam || !weights_channels(method));
    const int64_t slabs = (read_once ? FLOATS_OF_SLAB_MAPS : FLOATS_PER_PASS / CHANNELS_PER_SLAB) / positions();
    if (!needs_tiles() && (read_once || slabs > 0)) return std::max<int64_t>(1, slabs) * CHANNELS_PER_SLAB;
    return std::clamp(FLOATS_PER_TILE / positions() / CHANNELS_PER_STEP * CHANNELS_PER_STEP, CHANNELS_PER_STEP,
                      CHANNELS_PER_SLAB);
  }
  int64_t slabs_per_pass() const { return std::max<int64_t>(1, channels_per_pass() / CHANNELS_PER_SLAB); }

  // Heatmaps that would leave the cache before they are read are written past it.
  bool nontemporal() const {
    return images * (numbers_read() * activations.bytes + targets * height * width * 4) > LAST_LEVEL_CACHE_BYTES;
  }
  // Numbers read from memory per image.
  int64_t numbers_read() const { return channels * (positions() + targets * (uniform() ? 1 : positions())); }

  // Planar: the positions of one channel are adjacent. Channels-last: the channels of one position are adjacent, and
  // positions are evenly spaced.
  bool is_planar(const StridedMaps& maps) const {
    return (maps.column == 1 || columns == 1) && (maps.row == columns || rows == 1);
  }
  bool is_channels_last(const StridedMaps& maps) const {
    return maps.channel == 1 && (columns == 1 || rows == 1 || maps.row == columns * maps.column);
  }
  // The stride between positions in the channels-last layout. The stride of an axis of length one is ignored.
  int64_t position_stride(const StridedMaps& maps) const { return columns == 1 ? maps.row : maps.column; }
  // Whether memory is read in its stored type. Half precision is for Grad-CAM only; the other methods read it through
  // tiles of float32, like any other layout.
  bool reads_in_place() const { return method == Method::gradcam || activations.dtype == ScalarType::Float; }
  bool is_planar() const { return reads_in_place() && is_planar(activations) && (uniform() || is_planar(gradients)); }
  // Whether the gradients are read as one factor per channel.
  bool has_channel_factors() const { return factors_uniform(method) && uniform() && is_planar(); }
  // Whether planes are gathered into tiles first.
  bool needs_tiles() const { return !is_channels_last() && (!is_planar() || (uniform() && !has_channel_factors())); }
  bool is_channels_last() const {
    return reads_in_place() && !is_planar() && is_channels_last(activations) && is_channels_last(gradients);
  }
  // The number of weights to store per image: none if the method has none, or if planes are weighted as they are read.
  int64_t weights_kept() const { return is_channels_last() && weights_channels(method) ? targets * channels : 0; }
};

// The pixels [begin, end) along one axis, which are interpolated between the samples `low` and `high`.
struct Cell {
  int32_t low, high;
  int32_t begin, end;
};

struct ResizeTable {
  int64_t in, out, cell_count;
  Cell* cells;
  float* fraction;

  // The memory of a table, in floats. Fractions are read in whole vectors.
  static int64_t floats(int64_t in, int64_t out) {
    return out + LANES + static_cast<int64_t>(sizeof(Cell) / sizeof(float)) * std::min(in, out);
  }
};

// A stretched row has the width of the heatmap plus some floats. Rows begin a multiple of a page plus two vectors
// apart.
inline constexpr int64_t FLOATS_PER_PAGE = 1024;
inline int64_t stretched_row(int64_t width) {
  return (width + LANES + FLOATS_PER_PAGE - 1) / FLOATS_PER_PAGE * FLOATS_PER_PAGE + 2 * LANES;
}
inline int64_t stretched_floats(int64_t width) { return FLOATS_PER_PAGE + 2 * LANES + 3 * stretched_row(width); }

struct ResizeTables {
  ResizeTable rows, columns;
};

// A raw map ready to be written: the transform of its pixels, the extremes before the transform, and whether the
// transform subtracts nothing from pixels that are never negative.
struct FinishedMap {
  Affine affine;
  float raw_min, raw_max;
  bool from_zero;
};

// A few rows (rows, R) times a matrix (R, columns), of which only the rows listed in `used` are read. Strides in
// elements.
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

// The caller provides all buffers; the comments give their sizes, in floats unless stated otherwise.
struct Kernels {
  const char* instruction_set;
  // memory: ResizeTable::floats() of both tables.
  void (*fill_resize_tables)(const Problem&, float* memory, ResizeTables&);
  // The partial maps (K, positions) of each of the slabs [begin, end). tiles: 2 x channels_per_pass x positions, if
  // problem.needs_tiles().
  void (*sum_slabs)(const Problem&, int64_t image, int64_t begin, int64_t end, float* tiles, float* maps);
  void (*add_partial)(const float* partial, int64_t floats, float* maps);
  // The weights of the channels [begin, end) of one image and target. doubles: two doubles per channel.
  void (*weigh_channels_last)(const Problem&, int64_t image, int64_t target, int64_t begin, int64_t end,
                              double* doubles, float* weights);
  // The maps (K, positions) of an image at the positions [begin, end). sums: K x 64, aligned to 32 bytes.
  void (*sum_channels_last)(const Problem&, int64_t image, const float* weights, int64_t begin, int64_t end,
                            float* sums, float* maps);
  // ReLU in place, the extremes, the normalisation. candidates: rows x (2 columns + LANES).
  void (*finish)(const Problem&, const ResizeTables&, float* map, float* candidates, FinishedMap&);
  // The rows [begin, end) of one heatmap. buffer: stretched_floats(width).
  void (*write)(const ResizeTables&, const float* map, const FinishedMap&, int64_t begin, int64_t end, bool nontemporal,
                float* buffer, float* heatmap);
  // The columns [begin, end) of the product.
  void (*skinny_mm)(const SkinnyProduct&, int64_t begin, int64_t end);
};

// The kernels of the best instruction set of this machine.
const Kernels& kernels();

}  // namespace gradcam_fast
