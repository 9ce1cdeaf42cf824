// What the threads of a block do to make a heatmap of a map: ReLU, extremes, normalisation, and the rows. Machine is
// what cam_block.h says.
#pragma once

#include "gpu_sum.h"

namespace gradcam_fast::gpu {

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

}  // namespace gradcam_fast::gpu
