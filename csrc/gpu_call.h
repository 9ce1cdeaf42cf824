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
// How many numbers of a kind a thread asks for at a time.
inline constexpr int AT_ONCE = 8;
// Channels that follow one another and are added up at a time.
inline constexpr int RUN = 4;
// Stages of the way through shared memory: one is worked on while the others arrive.
inline constexpr int STAGES = 2;

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
// `uniform`: a number stands for all positions of a channel.
// `pitch`: where all numbers of several channels lie one behind the other, how many each has: its positions, or one
// that stands for all of them; else zero.
struct Strides {
  int64_t image, target, channel, row, column;
  bool even, uniform;
  int pitch;
};

// One axis of map and heatmap: so many samples, so many pixels, below MOST_PER_AXIS. Dividing takes a GPU long, so that
// 1 / (2 in) and 1 / (2 out) come along.
struct Axis {
  int in, out;
  double over_in, over_out;
  float over_out_rounded;

  Axis(int64_t in, int64_t out)
      : in(static_cast<int>(in)),
        out(static_cast<int>(out)),
        over_in(0.5 / in),
        over_out(0.5 / out),
        over_out_rounded(static_cast<float>(over_out)) {}

  // Where a pixel reads, in parts of 2 out from sample 0.
  GCF_INLINE int64_t place_of(int pixel) const { return (2 * int64_t{pixel} + 1) * in - out; }
};
inline constexpr int64_t MOST_PER_AXIS = int64_t{1} << 29;

// numerator / denominator, exactly, if it is below 2^31 and neither is negative: the double is off by one at most.
GCF_INLINE int quotient(int64_t numerator, int64_t denominator, double over_denominator) {
  const int about = static_cast<int>(static_cast<double>(numerator) * over_denominator);
  const int64_t rest = numerator - about * denominator;
  return rest < 0 ? about - 1 : rest >= denominator ? about + 1 : about;
}

// A whole in so many parts. The first have one more if it does not go round evenly.
struct Parts {
  int whole, each, more;

  GCF_INLINE Parts(int whole, int parts) : whole(whole), each(whole / parts), more(whole % parts) {}
  GCF_INLINE int begin(int part) const { return each * part + (part < more ? part : more); }
};

// Channels in slabs, whose number follows from that of the channels alone. Slabs begin at a multiple of eight channels,
// which is one of sixteen bytes, too. Where there are few, some are empty.
struct Slabs {
  int channels, count;
  Parts eights;

  GCF_INLINE explicit Slabs(int channels)
      : channels(channels),
        count((channels + MOST_BLOCKS * CHANNELS_PER_SLAB - 1) / (MOST_BLOCKS * CHANNELS_PER_SLAB) * MOST_BLOCKS),
        eights((channels + 7) / 8, count) {}
  GCF_INLINE int begin(int slab) const {
    const int begin = eights.begin(slab) * 8;
    return begin < channels ? begin : channels;
  }
};

struct Call {
  const void *activations, *gradients;
  Strides a, g;
  int targets;
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
  // 1 / positions.
  float over_positions;

  GCF_INLINE int positions() const { return y.in * x.in; }
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
  return {activations,
          gradients,
          strides(a),
          strides(g),
          static_cast<int>(targets),
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
          1.0f / static_cast<float>(rows * columns)};
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

// The maps of slabs that a block keeps beside the map: those of its own slabs, if there are other blocks, or the one
// that it is bringing through stages.
GCF_INLINE int partial_maps(const Call& call, int blocks) {
  return blocks > 1 ? call.slabs.count / blocks : call.staged > 0;
}

// Floats for a slab's weights, or for the threads' sums.
inline constexpr int ROOM = RUN * THREADS;
// Floats for what warps tell each other.
inline constexpr int TOLD = 4 * WARPS;

// Shared memory in bytes: stages, room, what warps tell each other, partial maps, the map.
GCF_INLINE int64_t shared_bytes(const Call& call, int blocks) {
  const int64_t maps = partial_maps(call, blocks) + (call.spill == nullptr);
  return call.bytes_of_stages + (ROOM + TOLD + maps * call.positions()) * sizeof(float);
}

// The maps of one image (and target). Numbers come as they are stored: to convert one is to wait for it.
template <class Stored>
struct Planes {
  using Number = Stored;
  // Whether to ask for a number takes long, and whether there are channels in whole runs only.
  static constexpr bool FAR = true, WHOLE_RUNS = false;
  const Stored* data;
  const Strides& strides;
  int columns;

  GCF_DEVICE int64_t step() const { return strides.channel; }
  GCF_DEVICE const Stored* at(int channel, int position) const {
    const int64_t within = strides.even ? position * strides.column
                                        : position / columns * strides.row + position % columns * strides.column;
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
