// Class activation maps by thread blocks: one image and target per block, or per cluster of blocks that share the
// channels and then the rows. Device code, written against a Machine (a thread's place, barriers, shuffles, shared
// memory) so that cam_cuda.cu runs it on a GPU and tests/gpu_on_host.h thread by thread on the host.
//
// No atomics, and nothing depends on how many blocks share the work: channels are summed in slabs whose number follows
// from the number of channels alone, and the slabs' maps are added in order.
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
// Channels whose loads are in flight at a time.
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

  GCF_DEVICE float at(int channel, int position) const {
    const int64_t within = strides.even ? position * strides.column
                                        : position / columns * strides.row + position % columns * strides.column;
    return to_float(data[channel * strides.channel + within]);
  }
};

template <class Machine, class T>
GCF_DEVICE T sum_of_warp(Machine& machine, T value) {
  for (int mask = WARP / 2; mask > 0; mask /= 2) value += machine.shuffle_xor(value, mask);
  return value;
}

// The largest value of all threads of a block, given to each; `room` for one float per warp.
template <class Machine>
GCF_DEVICE float max_of_block(Machine& machine, float value, float* room) {
  for (int mask = WARP / 2; mask > 0; mask /= 2) {
    const float other = machine.shuffle_xor(value, mask);
    value = value > other ? value : other;
  }
  if (machine.thread() % WARP == 0) room[machine.thread() / WARP] = value;
  machine.sync();
  float most = room[0];
  for (int warp = 1; warp < WARPS; ++warp) most = most > room[warp] ? most : room[warp];
  machine.sync();
  return most;
}

// The weight of one channel, of which this thread has the positions first, first + step, ...; `sum` adds up what the
// threads that share the channel have.
template <Method method, class Stored, class Sum>
GCF_DEVICE float weight_of(const Planes<Stored>& a, const Planes<Stored>& g, int channel, int first, int step,
                           int positions, const Sum& sum) {
  if constexpr (method == Method::gradcam) {
    float total = 0.0f;
    for (int p = first; p < positions; p += step) total += g.at(channel, p);
    return sum(total) / static_cast<float>(positions);
  } else {
    double total = 0.0, product = 0.0;
    for (int p = first; p < positions; p += step) {
      const float activation = a.at(channel, p);
      total += activation;
      if constexpr (method == Method::xgradcam) product += static_cast<double>(activation) * g.at(channel, p);
    }
    total = sum(total);
    if constexpr (method == Method::xgradcam) return xgradcam_weight(sum(product), total);
    float terms = 0.0f;
    for (int p = first; p < positions; p += step) {
      const float gradient = g.at(channel, p);
      float term;
      plus_plus_term(gradient, plus_plus_denominator(gradient, total), term);
      terms += term;
    }
    return sum(terms);
  }
}

// The weights of the channels [begin, end): a thread per channel where channels lie side by side, else a warp.
template <Method method, class Stored, class Machine>
GCF_DEVICE void weigh(Machine& machine, const Call& call, const Planes<Stored>& a, const Planes<Stored>& g, int begin,
                      int end, float* weights) {
  const int thread = machine.thread();
  if (call.channels_inside) {
    const int channel = begin + thread;
    const auto alone = [](auto value) { return value; };
    if (channel < end) weights[thread] = weight_of<method>(a, g, channel, 0, 1, call.positions(), alone);
    return;
  }
  const auto by_warp = [&](auto value) { return sum_of_warp(machine, value); };
  for (int channel = begin + thread / WARP; channel < end; channel += WARPS) {
    const float weight = weight_of<method>(a, g, channel, thread % WARP, WARP, call.positions(), by_warp);
    if (thread % WARP == 0) weights[channel - begin] = weight;
  }
}

// What the channels begin + first, begin + first + step, ... below `end` add to the map at one position.
template <Method method, class Stored>
GCF_DEVICE float sum_at(const Planes<Stored>& a, const Planes<Stored>& g, const float* weights, int position, int begin,
                        int end, int first, int step) {
  float sum = 0.0f;
  for (int channel = begin + first; channel < end; channel += AT_ONCE * step) {
    float activation[AT_ONCE], gradient[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
      const int each = channel + i * step;
      activation[i] = each < end ? a.at(each, position) : 0.0f;
      if constexpr (!weighs_channels(method)) gradient[i] = each < end ? g.at(each, position) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
      const int each = channel + i * step;
      if (each >= end) break;
      if constexpr (weighs_channels(method)) {
        sum += weights[each - begin] * activation[i];
      } else {
        float term;
        position_term<method>(activation[i], gradient[i], term);
        sum += term;
      }
    }
  }
  return sum;
}

// The map of the channels [begin, end): set, or added to what `map` holds.
template <Method method, class Stored, class Machine>
GCF_DEVICE void sum_slab(Machine& machine, const Call& call, const Planes<Stored>& a, const Planes<Stored>& g,
                         int begin, int end, bool add, float* room, float* map) {
  const int thread = machine.thread();
  const int positions = call.positions();
  const auto put = [&](int position, float sum) { map[position] = add ? map[position] + sum : sum; };
  if constexpr (weighs_channels(method)) {
    weigh<method>(machine, call, a, g, begin, end, room);
    machine.sync();
  }
  const int width = (positions + WARP - 1) / WARP * WARP;
  if (call.channels_inside) {
    // A warp per position: its lanes read channels that lie side by side.
    for (int position = thread / WARP; position < positions; position += WARPS) {
      const float own = sum_at<method>(a, g, room, position, begin, end, thread % WARP, WARP);
      const float sum = sum_of_warp(machine, own);
      if (thread % WARP == 0) put(position, sum);
    }
    machine.sync();
  } else if (2 * width > THREADS) {
    for (int position = thread; position < positions; position += THREADS)
      put(position, sum_at<method>(a, g, room, position, begin, end, 0, 1));
    machine.sync();
  } else {
    // More threads than positions: several threads share a position's channels, and their sums are added in order.
    const int groups = THREADS / width;
    const int position = thread % width;
    float sum = 0.0f;
    if (position < positions && thread / width < groups)
      sum = sum_at<method>(a, g, room, position, begin, end, thread / width, groups);
    machine.sync();
    room[thread] = sum;
    machine.sync();
    if (thread < positions) {
      float total = room[thread];
      for (int group = 1; group < groups; ++group) total += room[group * width + thread];
      put(thread, total);
    }
    machine.sync();
  }
}

// The pixels [begin, end) that read between samples `low` and low + 1 of an axis: pixel x reads at
// (2 x + 1) in / (2 out) - 1/2, below zero at sample 0.
struct Cell {
  int64_t in, out, low;

  GCF_DEVICE int64_t first_of(int64_t sample) const {
    if (sample <= 0) return 0;
    const int64_t first = ((2 * sample + 1) * out - in + 2 * in - 1) / (2 * in);
    return first < out ? first : out;
  }
  GCF_DEVICE int64_t begin() const { return first_of(low); }
  GCF_DEVICE int64_t end() const { return low + 1 < in ? first_of(low + 1) : out; }
  GCF_DEVICE int64_t high() const { return low + 1 < in ? low + 1 : low; }
  GCF_DEVICE float fraction(int64_t pixel) const {
    const int64_t numerator = (2 * pixel + 1) * in - out;
    return static_cast<float>((numerator > 0 ? numerator : 0) - low * 2 * out) / static_cast<float>(2 * out);
  }
};

// Inside a cell a bilinear surface is extremal at its corner pixels. Returns (-min, max) of those of all cells.
template <class Machine>
GCF_DEVICE void extremes(Machine& machine, const Call& call, const float* map, float* room, float& min, float& max) {
  float least = INFINITY, most = -INFINITY;
  for (int position = machine.thread(); position < call.positions(); position += THREADS) {
    const Cell y{call.rows, call.height, position / call.columns};
    const Cell x{call.columns, call.width, position % call.columns};
    if (y.begin() >= y.end() || x.begin() >= x.end()) continue;
    const float* low = map + y.low * call.columns;
    const float* high = map + y.high() * call.columns;
    for (int right = 0; right < 2; ++right) {
      const float t = x.fraction(right ? x.end() - 1 : x.begin());
      const float above = lerp(low[x.low], low[x.high()], t);
      const float below = lerp(high[x.low], high[x.high()], t);
      for (int bottom = 0; bottom < 2; ++bottom) {
        const float pixel = lerp(above, below, y.fraction(bottom ? y.end() - 1 : y.begin()));
        least = pixel < least ? pixel : least;
        most = pixel > most ? pixel : most;
      }
    }
  }
  min = -max_of_block(machine, -least, room);
  max = max_of_block(machine, most, room);
}

// Rows [begin, end) of the heatmap, `pixels` side by side to a thread. Threads that a row leaves over take other rows.
template <int pixels, class Machine>
GCF_DEVICE void write_rows(Machine& machine, const Call& call, const float* map, const Affine& affine, int64_t begin,
                           int64_t end, float* heatmap) {
  struct alignas(sizeof(float) * pixels) Store {
    float pixel[pixels];
  };
  const int64_t stores = (call.width + pixels - 1) / pixels;
  const int64_t groups = stores < THREADS ? THREADS / stores : 1;
  const int64_t group = stores < THREADS ? machine.thread() / stores : 0;
  if (group >= groups) return;
  const int64_t step = stores < THREADS ? stores : THREADS;
  const int64_t first = begin + (end - begin) * group / groups;
  const int64_t last = begin + (end - begin) * (group + 1) / groups;
  for (int64_t at = machine.thread() - group * stores; at < stores; at += step) {
    int left[pixels], right[pixels];
    float t[pixels];
#pragma unroll
    for (int i = 0; i < pixels; ++i) {
      const int64_t pixel = at * pixels + i;
      const int64_t numerator = (2 * pixel + 1) * call.columns - call.width;
      const Cell x{call.columns, call.width, numerator > 0 ? numerator / (2 * call.width) : 0};
      left[i] = static_cast<int>(x.low);
      right[i] = static_cast<int>(x.high());
      t[i] = x.fraction(pixel);
    }
    const int64_t start = (2 * first + 1) * call.rows - call.height;
    for (int64_t y = first, low = start > 0 ? start / (2 * call.height) : 0; y < last; ++low) {
      const Cell cell{call.rows, call.height, low};
      const int64_t stop = cell.end() < last ? cell.end() : last;
      float above[pixels], below[pixels];
#pragma unroll
      for (int i = 0; i < pixels; ++i) {
        above[i] = lerp(map[low * call.columns + left[i]], map[low * call.columns + right[i]], t[i]);
        below[i] = lerp(map[cell.high() * call.columns + left[i]], map[cell.high() * call.columns + right[i]], t[i]);
      }
      for (; y < stop; ++y) {
        const float fraction = cell.fraction(y);
        Store store;
#pragma unroll
        for (int i = 0; i < pixels; ++i) store.pixel[i] = apply(affine, lerp(above[i], below[i], fraction));
        *reinterpret_cast<Store*>(heatmap + y * call.width + at * pixels) = store;
      }
    }
  }
}

// ReLU in place, the power of two that keeps the map within float32, the extremes, the normalisation. False, for all
// threads alike, if the map is not finite.
template <class Machine>
GCF_DEVICE bool finish(Machine& machine, const Call& call, float* map, float* room, Affine& affine, float& min,
                       float& max) {
  const auto each = [&](const auto& f) {
    for (int position = machine.thread(); position < call.positions(); position += THREADS) f(map[position]);
    machine.sync();
  };
  float poison = 0.0f, magnitude = 0.0f;
  each([&](float& value) {
    poison += 0.0f * value;
    if (call.relu) value = value > 0.0f ? value : 0.0f;
    const float size = value < 0.0f ? -value : value;
    magnitude = magnitude > size ? magnitude : size;
  });
  if (max_of_block(machine, poison == 0.0f ? 0.0f : 1.0f, room) != 0.0f) return false;
  magnitude = max_of_block(machine, magnitude, room);
  const float down = power_down(magnitude);
  if (down != 1.0f) each([&](float& value) { value *= down; });
  extremes(machine, call, map, room, min, max);
  const float up = power_up(magnitude * down, extent_of(call.normalize, min, max));
  if (up != 1.0f) each([&](float& value) { value *= up; });
  const float power = down * up;
  affine = normalisation(call.normalize, min * up, max * up, power);
  min = min * up / power;
  max = max * up / power;
  return true;
}

// What one thread of a block does.
template <Method method, class Stored, class Machine>
GCF_DEVICE void cam(Machine& machine, const Call& call) {
  const int blocks = machine.blocks(), rank = machine.rank();
  const int64_t index = machine.image() * call.targets + machine.target();
  const Planes<Stored> a{static_cast<const Stored*>(call.activations) + machine.image() * call.a.image, call.a,
                         call.columns};
  const Planes<Stored> g{
      static_cast<const Stored*>(call.gradients) + machine.image() * call.g.image + machine.target() * call.g.target,
      call.g, call.columns};
  float* room = machine.shared();
  float* told = room + THREADS;
  float* partials = told + 2 * WARPS;
  const int positions = call.positions(), own = call.slabs() / blocks;
  float* map = blocks > 1 ? partials + static_cast<int64_t>(own) * positions : partials;
  if (call.spill != nullptr) map = call.spill + index * positions;

  for (int i = 0; i < own; ++i) {
    const int slab = rank * own + i;
    const bool alone = blocks == 1;
    sum_slab<method>(machine, call, a, g, call.slab_begin(slab), call.slab_begin(slab + 1), alone && i > 0, room,
                     alone ? map : partials + static_cast<int64_t>(i) * positions);
  }
  if (blocks > 1) {
    machine.sync_cluster();
    for (int position = machine.thread(); position < positions; position += THREADS) {
      float sum = 0.0f;
      for (int slab = 0; slab < call.slabs(); ++slab) {
        const float partial =
            machine.of_rank(slab / own, partials + static_cast<int64_t>(slab % own) * positions + position);
        sum = slab == 0 ? partial : sum + partial;
      }
      map[position] = sum;
    }
    // No block may end, nor go on, while another reads its partial maps.
    machine.sync_cluster();
  }

  Affine affine{0.0f, 0.0f, 0.0f, 0.0f};
  float min = NAN, max = NAN;
  const bool finite = finish(machine, call, map, told, affine, min, max);
  if (rank == 0 && machine.thread() == 0) {
    call.raw_min[index] = min;
    call.raw_max[index] = max;
  }
  float* heatmap = call.heatmap + index * call.height * call.width;
  const int64_t begin = call.height * rank / blocks, end = call.height * (rank + 1) / blocks;
  if (!finite) {
    for (int64_t i = begin * call.width + machine.thread(); i < end * call.width; i += THREADS) heatmap[i] = 0.0f;
  } else if (call.width % 4 == 0) {
    write_rows<4>(machine, call, map, affine, begin, end, heatmap);
  } else {
    write_rows<1>(machine, call, map, affine, begin, end, heatmap);
  }
}

}  // namespace gradcam_fast::gpu
