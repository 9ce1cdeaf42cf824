// How the threads of a block turn a raw map into a heatmap: ReLU, extremes, normalisation, and the rows of pixels.
// Machine: see cuda/cam_block.h.
#pragma once

#include "cuda/params.h"

namespace gradcam_fast::gpu {

// The maximum of each of the values over all threads of a block, returned to each. `scratch` holds `count` floats per
// warp.
template <class Machine, int count>
GCF_DEVICE void max_of_block(Machine& machine, float (&values)[count], float* scratch) {
  struct alignas(16) Quad {
    float of[4];
  };
  const int lane = machine.thread() % WARP, warp = machine.thread() / WARP;
  for (int mask = WARP / 2; mask > 0; mask /= 2)
#pragma unroll
    for (int i = 0; i < count; ++i) values[i] = larger(machine.shuffle_xor(values[i], mask), values[i]);
#pragma unroll
  for (int i = 0; i < count; ++i)
    if (lane == 0) scratch[i * WARPS + warp] = values[i];
  machine.sync();
#pragma unroll
  for (int i = 0; i < count * WARPS; i += 4) {
    const Quad quad = *reinterpret_cast<const Quad*>(scratch + i);
    const float most = larger(larger(quad.of[0], quad.of[1]), larger(quad.of[2], quad.of[3]));
    values[i / WARPS] = i % WARPS == 0 ? most : larger(most, values[i / WARPS]);
  }
  machine.sync();
}

// The pixels [begin, end) of an axis that read between the samples `low` and low + 1. Pixel x reads at (2 x + 1) in /
// (2 out) - 1/2; below zero it reads sample 0.
struct Cell {
  const Axis& axis;
  int low;

  // The cell in which a pixel reads.
  GCF_DEVICE static Cell of(const Axis& axis, int pixel) {
    const int place = axis.source_offset(pixel);
    return {axis, place > 0 ? axis.twice_out.quotient(place) : 0};
  }
  GCF_DEVICE int first_of(int sample) const {
    if (sample <= 0) return 0;
    const int first = axis.twice_in.quotient((2 * sample + 1) * axis.out + axis.in - 1);
    return first < axis.out ? first : axis.out;
  }
  GCF_DEVICE int begin() const { return first_of(low); }
  GCF_DEVICE int end() const { return low + 1 < axis.in ? first_of(low + 1) : axis.out; }
  GCF_DEVICE int high() const { return low + 1 < axis.in ? low + 1 : low; }
  // How far a pixel is from sample `low`, in units of 1 / (2 out) samples; fraction_of() is this distance in samples.
  GCF_DEVICE int offset(int pixel) const { return axis.source_offset(pixel) - low * axis.twice_out; }
  GCF_DEVICE float fraction_of(int offset) const {
    return static_cast<float>(offset > 0 ? offset : 0) * axis.half_over_out;
  }
  GCF_DEVICE float fraction(int pixel) const { return fraction_of(offset(pixel)); }
};

// Like lerp, but rounded once.
GCF_DEVICE float between(float a, float b, float t) { return fmaf(t, b - a, a); }

// The extremes over the cells of this thread. A bilinear surface is extremal at the corner pixels of a cell.
template <class Machine>
GCF_DEVICE void extremes(Machine& machine, const Params& params, const float* map, float& least, float& most) {
  least = INFINITY, most = -INFINITY;
  // Two threads per position, because small maps have few positions.
  for (int i = machine.thread(); i < 2 * params.positions; i += THREADS) {
    const int position = i / 2;
    const bool right = i % 2 != 0;
    const int row = params.columns.quotient(position);
    const Cell y{params.y, row}, x{params.x, position - row * params.x.in};
    if (y.begin() >= y.end() || x.begin() >= x.end()) continue;
    const float* low = map + y.low * params.x.in;
    const float* high = map + y.high() * params.x.in;
    const float t = x.fraction(right ? x.end() - 1 : x.begin());
    const float above = between(low[x.low], low[x.high()], t);
    const float below = between(high[x.low], high[x.high()], t);
    for (int bottom = 0; bottom < 2; ++bottom) {
      const float pixel = between(above, below, y.fraction(bottom ? y.end() - 1 : y.begin()));
      least = smaller(pixel, least);
      most = larger(pixel, most);
    }
  }
}

// Writes the rows [begin, end) of the heatmap, `pixels` adjacent pixels per store. Threads that one row does not need
// work on other rows.
template <int pixels, class Machine>
GCF_DEVICE void write_rows(Machine& machine, const Params& params, const float* map, const Affine& affine, int begin,
                           int end, float* heatmap) {
  struct alignas(sizeof(float) * pixels) Store {
    float pixel[pixels];
  };
  const int stores = params.writers.stores;
  const int group = stores < THREADS ? params.writers.stores.quotient(machine.thread()) : 0;
  if (group >= params.writers.groups) return;
  const int step = stores < THREADS ? stores : THREADS;
  const EvenSplit rows(end - begin, params.writers.groups);
  const int first = begin + rows.begin(group), last = begin + rows.begin(group + 1);
  for (int at = machine.thread() - group * stores; at < stores; at += step) {
    int left[pixels], right[pixels];
    float t[pixels];
    Cell x = Cell::of(params.x, at * pixels);
    int offset = x.offset(at * pixels);
#pragma unroll
    for (int i = 0; i < pixels; ++i) {
      left[i] = x.low;
      right[i] = x.high();
      t[i] = x.fraction_of(offset);
      for (offset += 2 * params.x.in; offset >= 2 * params.x.out; offset -= 2 * params.x.out) ++x.low;
    }
    float* to = heatmap + static_cast<int64_t>(first) * params.x.out + at * pixels;
    int y = first;
    for (Cell cell = Cell::of(params.y, first); y < last; ++cell.low) {
      const int stop = cell.end() < last ? cell.end() : last;
      const float* low = map + cell.low * params.x.in;
      const float* high = map + cell.high() * params.x.in;
      float above[pixels], below[pixels];
#pragma unroll
      for (int i = 0; i < pixels; ++i) {
        above[i] = between(low[left[i]], low[right[i]], t[i]);
        below[i] = between(high[left[i]], high[right[i]], t[i]);
      }
      for (int offset = cell.offset(y); y < stop; ++y, offset += 2 * params.y.in, to += params.x.out) {
        const float fraction = cell.fraction_of(offset);
        Store store;
#pragma unroll
        for (int i = 0; i < pixels; ++i) store.pixel[i] = apply(affine, between(above[i], below[i], fraction));
        *reinterpret_cast<Store*>(to) = store;
      }
    }
  }
}

// The scan of one thread's part of the map: `poison` is zero if all values are finite, else NaN; `magnitude` is the
// largest absolute value.
struct MapScan {
  float poison = 0.0f, magnitude = 0.0f;
};

// Writes the map: sums(position) after ReLU, if params.relu.
template <class Machine, class Sums>
GCF_DEVICE MapScan rectify(Machine& machine, const Params& params, const Sums& sums, float* map) {
  MapScan scan;
  for (int position = machine.thread(); position < params.positions; position += THREADS) {
    float value = sums(position);
    scan.poison += 0.0f * value;
    if (params.relu) value = value > 0.0f ? value : 0.0f;
    scan.magnitude = larger(fabsf(value), scan.magnitude);
    map[position] = value;
  }
  return scan;
}

// Scales the map by a power of two that keeps it within float32, and finds its extremes and its normalisation. Returns
// false, to all threads alike, if the map is not finite.
template <class Machine>
GCF_DEVICE bool finish(Machine& machine, const Params& params, const MapScan& scan, float* map, float* scratch,
                       Affine& affine, float& min, float& max) {
  const auto scale = [&](float power) {
    for (int position = machine.thread(); position < params.positions; position += THREADS) map[position] *= power;
    machine.sync();
  };
  float down = 1.0f, magnitude;
#pragma unroll 1
  while (true) {
    float least, most;
    extremes(machine, params, map, least, most);
    float block_max[] = {scan.poison == 0.0f ? 0.0f : 1.0f, scan.magnitude, -least, most};
    max_of_block(machine, block_max, scratch);
    if (block_max[0] != 0.0f) return false;
    magnitude = block_max[1], min = -block_max[2], max = block_max[3];
    const float wanted = power_down(magnitude);
    if (wanted == down) break;
    // The difference of two samples this large may overflow.
    scale(down = wanted);
  }
  const float up = power_up(magnitude * down, extent_of(params.normalize, min, max));
  if (up != 1.0f) scale(up);
  const float power = down * up;
  affine = normalisation(params.normalize, min * up, max * up, power);
  min = min * up / power;
  max = max * up / power;
  return true;
}

}  // namespace gradcam_fast::gpu
