// What one call of the CUDA kernel is about: feature maps in memory, sizes, choices, results, and how it is cut into
// slabs of channels. Knows nothing of threads.
#pragma once

#include "cam_math.h"

#include <array>
#include <cstdint>
#include <type_traits>

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#define GCF_DEVICE __device__ __forceinline__
#else
#define GCF_DEVICE inline
#endif

namespace gradcam_fast::gpu {

inline constexpr int WARP = 32;
inline constexpr int THREADS = 256;
inline constexpr int WARPS = THREADS / WARP;
// Blocks of a cluster: any power of two up to this one.
inline constexpr int MOST_BLOCKS = 8;
// A slab's weights are in shared memory, one per thread at most.
inline constexpr int CHANNELS_PER_SLAB = THREADS;
// Loads that a thread has in flight at a time.
inline constexpr int AT_ONCE = 8;

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
GCF_DEVICE float to_float(float value) { return value; }
GCF_DEVICE float to_float(BFloat16 value) { return bfloat16_to_float(value.bits); }
GCF_DEVICE float to_float(Half value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  return half_to_float(value.bits);
#endif
}

// Feature maps in memory: strides in elements. `even`: one position is as far from the next at the end of a row, too.
struct Strides {
  int64_t image, target, channel, row, column;
  bool even;
};

struct Call {
  const void *activations, *gradients;
  Strides a, g;
  int targets, channels, rows, columns;
  int64_t height, width;
  Normalize normalize;
  bool relu;
  // Whether channels are the innermost axis in memory.
  bool channels_inside;
  float *heatmap, *raw_min, *raw_max;
  // Room for each image's and target's map where shared memory has none; else null.
  float* spill;

  GCF_INLINE int positions() const { return rows * columns; }
  GCF_INLINE int slabs() const {
    const int per_eight = MOST_BLOCKS * CHANNELS_PER_SLAB;
    return (channels + per_eight - 1) / per_eight * MOST_BLOCKS;
  }
  GCF_INLINE int slab_begin(int slab) const {
    return static_cast<int>(static_cast<int64_t>(channels) * slab / slabs());
  }
};

// Strides are (image, target, channel, row, column), sizes are (targets, channels, rows, columns, height, width). The
// stride of a side of one means nothing.
inline Call make_call(const void* activations, const std::array<int64_t, 5>& a, const void* gradients,
                      const std::array<int64_t, 5>& g, const std::array<int64_t, 6>& sizes, Normalize normalize,
                      bool relu, float* heatmap, float* raw_min, float* raw_max, float* spill) {
  const auto [targets, channels, rows, columns, height, width] = sizes;
  const auto strides = [rows = rows, columns = columns](const std::array<int64_t, 5>& of) {
    const int64_t column = columns == 1 ? of[3] : of[4];
    return Strides{of[0], of[1], of[2], of[3], column, columns == 1 || rows == 1 || of[3] == columns * column};
  };
  const bool inside = channels > 1 && a[2] == 1 && g[2] == 1 && rows * columns > 1;
  return {activations,
          gradients,
          strides(a),
          strides(g),
          static_cast<int>(targets),
          static_cast<int>(channels),
          static_cast<int>(rows),
          static_cast<int>(columns),
          height,
          width,
          normalize,
          relu,
          inside,
          heatmap,
          raw_min,
          raw_max,
          spill};
}

// Calls f with a type that holds the method.
template <class F>
inline void with_method(Method method, const F& f) {
  switch (method) {
    case Method::gradcam: return f(std::integral_constant<Method, Method::gradcam>());
    case Method::gradcam_plus_plus: return f(std::integral_constant<Method, Method::gradcam_plus_plus>());
    case Method::xgradcam: return f(std::integral_constant<Method, Method::xgradcam>());
    case Method::hirescam: return f(std::integral_constant<Method, Method::hirescam>());
    case Method::elementwise: return f(std::integral_constant<Method, Method::elementwise>());
    case Method::layercam: return f(std::integral_constant<Method, Method::layercam>());
  }
}

// Shared memory in floats: a slab's weights or the threads' sums, what warps tell each other, the maps of a block's
// slabs if it has a part of them, the map.
GCF_INLINE int64_t shared_floats(const Call& call, int blocks) {
  const int64_t partials = blocks > 1 ? call.slabs() / blocks : 0;
  return THREADS + 2 * WARPS + (partials + (call.spill == nullptr)) * call.positions();
}

// The maps of one image (and target).
template <class Stored>
struct Planes {
  const Stored* data;
  const Strides& strides;
  int columns;

  // How far a position is from the first of its channel.
  GCF_DEVICE int64_t within(int position) const {
    return strides.even ? position * strides.column
                        : position / columns * strides.row + position % columns * strides.column;
  }
  // As stored: to convert a number is to wait for it.
  GCF_DEVICE Stored raw(int channel, int64_t within) const { return data[channel * strides.channel + within]; }
};

}  // namespace gradcam_fast::gpu
