// What the threads of a block do to make a heatmap of a map: ReLU, extremes, normalisation, and the rows. Machine is
// what cuda/cam_block.h says.
#pragma once

#include "cuda/call.h"

namespace gradcam_fast::gpu {

// The largest of each of the values of all threads of a block, given to each; `room` for `many` floats per warp.
template <class Machine, int many>
GCF_DEVICE void max_of_block(Machine& machine, float (&values)[many], float* room) {
  struct alignas(16) Quad {
    float of[4];
  };
  const int lane = machine.thread() % WARP, warp = machine.thread() / WARP;
  for (int mask = WARP / 2; mask > 0; mask /= 2)
#pragma unroll
    for (int i = 0; i < many; ++i) values[i] = larger(machine.shuffle_xor(values[i], mask), values[i]);
#pragma unroll
  for (int i = 0; i < many; ++i)
    if (lane == 0) room[i * WARPS + warp] = values[i];
  machine.sync();
#pragma unroll
  for (int i = 0; i < many * WARPS; i += 4) {
    const Quad some = *reinterpret_cast<const Quad*>(room + i);
    const float most = larger(larger(some.of[0], some.of[1]), larger(some.of[2], some.of[3]));
    values[i / WARPS] = i % WARPS == 0 ? most : larger(most, values[i / WARPS]);
  }
  machine.sync();
}

// The pixels [begin, end) that read between samples `low` and low + 1 of an axis: pixel x reads at
// (2 x + 1) in / (2 out) - 1/2, below zero at sample 0.
struct Cell {
  const Axis& axis;
  int low;

  // The cell that a pixel reads in.
  GCF_DEVICE static Cell of(const Axis& axis, int pixel) {
    const int place = axis.place_of(pixel);
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
  // How far a pixel is from `low` towards low + 1, in parts of 2 out; `by_parts` is the same, divided.
  GCF_DEVICE int parts(int pixel) const { return axis.place_of(pixel) - low * axis.twice_out; }
  GCF_DEVICE float by_parts(int parts) const { return static_cast<float>(parts > 0 ? parts : 0) * axis.over_out; }
  GCF_DEVICE float fraction(int pixel) const { return by_parts(parts(pixel)); }
};

// Between two numbers, as lerp, but rounded once.
GCF_DEVICE float between(float a, float b, float t) { return fmaf(t, b - a, a); }

// Inside a cell a bilinear surface is extremal at its corner pixels. The extremes of those of this thread's cells.
template <class Machine>
GCF_DEVICE void extremes(Machine& machine, const Call& call, const float* map, float& least, float& most) {
  least = INFINITY, most = -INFINITY;
  // Two threads to a position, as small maps have few.
  for (int i = machine.thread(); i < 2 * call.positions; i += THREADS) {
    const int position = i / 2;
    const bool right = i % 2 != 0;
    const int row = call.columns.quotient(position);
    const Cell y{call.y, row}, x{call.x, position - row * call.x.in};
    if (y.begin() >= y.end() || x.begin() >= x.end()) continue;
    const float* low = map + y.low * call.x.in;
    const float* high = map + y.high() * call.x.in;
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

// Rows [begin, end) of the heatmap, `pixels` side by side to a thread. Threads that a row leaves over take other rows.
template <int pixels, class Machine>
GCF_DEVICE void write_rows(Machine& machine, const Call& call, const float* map, const Affine& affine, int begin,
                           int end, float* heatmap) {
  struct alignas(sizeof(float) * pixels) Store {
    float pixel[pixels];
  };
  const int stores = call.writers.stores;
  const int group = stores < THREADS ? call.writers.stores.quotient(machine.thread()) : 0;
  if (group >= call.writers.groups) return;
  const int step = stores < THREADS ? stores : THREADS;
  const Parts rows(end - begin, call.writers.groups);
  const int first = begin + rows.begin(group), last = begin + rows.begin(group + 1);
  for (int at = machine.thread() - group * stores; at < stores; at += step) {
    int left[pixels], right[pixels];
    float t[pixels];
    Cell x = Cell::of(call.x, at * pixels);
    int parts = x.parts(at * pixels);
#pragma unroll
    for (int i = 0; i < pixels; ++i) {
      left[i] = x.low;
      right[i] = x.high();
      t[i] = x.by_parts(parts);
      for (parts += 2 * call.x.in; parts >= 2 * call.x.out; parts -= 2 * call.x.out) ++x.low;
    }
    float* to = heatmap + static_cast<int64_t>(first) * call.x.out + at * pixels;
    int y = first;
    for (Cell cell = Cell::of(call.y, first); y < last; ++cell.low) {
      const int stop = cell.end() < last ? cell.end() : last;
      const float* low = map + cell.low * call.x.in;
      const float* high = map + cell.high() * call.x.in;
      float above[pixels], below[pixels];
#pragma unroll
      for (int i = 0; i < pixels; ++i) {
        above[i] = between(low[left[i]], low[right[i]], t[i]);
        below[i] = between(high[left[i]], high[right[i]], t[i]);
      }
      for (int parts = cell.parts(y); y < stop; ++y, parts += 2 * call.y.in, to += call.x.out) {
        const float fraction = cell.by_parts(parts);
        Store store;
#pragma unroll
        for (int i = 0; i < pixels; ++i) store.pixel[i] = apply(affine, between(above[i], below[i], fraction));
        *reinterpret_cast<Store*>(to) = store;
      }
    }
  }
}

// What a thread saw of the map: zero or not a number, and the largest magnitude.
struct Seen {
  float poison = 0.0f, magnitude = 0.0f;
};

// The map after ReLU, of sums(position).
template <class Machine, class Sums>
GCF_DEVICE Seen rectify(Machine& machine, const Call& call, const Sums& sums, float* map) {
  Seen seen;
  for (int position = machine.thread(); position < call.positions; position += THREADS) {
    float value = sums(position);
    seen.poison += 0.0f * value;
    if (call.relu) value = value > 0.0f ? value : 0.0f;
    seen.magnitude = larger(fabsf(value), seen.magnitude);
    map[position] = value;
  }
  return seen;
}

// The power of two that keeps the map within float32, the extremes, the normalisation. False, for all threads alike, if
// the map is not finite.
template <class Machine>
GCF_DEVICE bool finish(Machine& machine, const Call& call, const Seen& seen, float* map, float* room, Affine& affine,
                       float& min, float& max) {
  const auto scale = [&](float power) {
    for (int position = machine.thread(); position < call.positions; position += THREADS) map[position] *= power;
    machine.sync();
  };
  float down = 1.0f, magnitude;
#pragma unroll 1
  while (true) {
    float least, most;
    extremes(machine, call, map, least, most);
    float found[] = {seen.poison == 0.0f ? 0.0f : 1.0f, seen.magnitude, -least, most};
    max_of_block(machine, found, room);
    if (found[0] != 0.0f) return false;
    magnitude = found[1], min = -found[2], max = found[3];
    const float wanted = power_down(magnitude);
    if (wanted == down) break;
    // Between samples this large the difference may not be a number.
    scale(down = wanted);
  }
  const float up = power_up(magnitude * down, extent_of(call.normalize, min, max));
  if (up != 1.0f) scale(up);
  const float power = down * up;
  affine = normalisation(call.normalize, min * up, max * up, power);
  min = min * up / power;
  max = max * up / power;
  return true;
}

}  // namespace gradcam_fast::gpu
