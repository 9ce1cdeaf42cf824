// What the threads of a block do to make a map of a slab of channels: the channels' weights, then the sums. Machine is
// what cam_block.h says.
#pragma once

#include "gpu_call.h"

namespace gradcam_fast::gpu {

// Each value summed over the warp's threads, and given to each.
template <class Machine, class T, int many>
GCF_DEVICE void sum_of_warp(Machine& machine, T (&values)[many]) {
  for (int mask = WARP / 2; mask > 0; mask /= 2)
#pragma unroll
    for (int i = 0; i < many; ++i) values[i] += machine.shuffle_xor(values[i], mask);
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

// The weights of `many` channels from `channel` on, `apart` apart, of each of which this thread has the positions
// first, first + step, ...; beyond end - 1 there is only that one again. `deep` positions of each are loaded before any
// is used. `sum` adds up, for each of them, what the threads that share it have.
template <Method method, int many, int deep, class Stored, class Sum>
GCF_DEVICE void weights_of(const Planes<Stored>& a, const Planes<Stored>& g, int channel, int apart, int end, int first,
                           int step, int positions, const Sum& sum, float (&weights)[many]) {
  const auto load = [&](const Planes<Stored>& from, int p, Stored(&to)[many][deep]) {
#pragma unroll
    for (int j = 0; j < deep; ++j) {
      const int64_t within = from.within(j == 0 || p + j * step < positions ? p + j * step : positions - 1);
#pragma unroll
      for (int i = 0; i < many; ++i) {
        const int wanted = channel + i * apart;
        to[i][j] = from.raw(wanted < end ? wanted : end - 1, within);
      }
    }
  };
  // f(i, j) for each number that is there.
  const auto each = [&](int p, const auto& f) {
#pragma unroll
    for (int j = 0; j < deep; ++j) {
      if (j != 0 && p + j * step >= positions) break;
#pragma unroll
      for (int i = 0; i < many; ++i) f(i, j);
    }
  };
  Stored gradient[many][deep];
  if constexpr (method == Method::gradcam) {
    float totals[many] = {};
    for (int p = first; p < positions; p += deep * step) {
      load(g, p, gradient);
      each(p, [&](int i, int j) { totals[i] += to_float(gradient[i][j]); });
    }
    sum(totals);
#pragma unroll
    for (int i = 0; i < many; ++i) weights[i] = totals[i] / static_cast<float>(positions);
  } else {
    Stored activation[many][deep];
    double totals[many] = {}, products[many] = {};
    for (int p = first; p < positions; p += deep * step) {
      load(a, p, activation);
      if constexpr (method == Method::xgradcam) load(g, p, gradient);
      each(p, [&](int i, int j) {
        const float one = to_float(activation[i][j]);
        totals[i] += one;
        if constexpr (method == Method::xgradcam) products[i] += static_cast<double>(one) * to_float(gradient[i][j]);
      });
    }
    sum(totals);
    if constexpr (method == Method::xgradcam) {
      sum(products);
#pragma unroll
      for (int i = 0; i < many; ++i) weights[i] = xgradcam_weight(products[i], totals[i]);
    } else {
#pragma unroll
      for (int i = 0; i < many; ++i) weights[i] = 0.0f;
      for (int p = first; p < positions; p += deep * step) {
        load(g, p, gradient);
        each(p, [&](int i, int j) {
          const float one = to_float(gradient[i][j]);
          float term;
          plus_plus_term(one, plus_plus_denominator(one, totals[i]), term);
          weights[i] += term;
        });
      }
      sum(weights);
    }
  }
}

// The weights of the channels [begin, end): a thread per channel where channels lie side by side, else a warp for some
// at a time. What a thread waits for is memory, so it asks for several numbers before it uses the first.
template <Method method, class Stored, class Machine>
GCF_DEVICE void weigh(Machine& machine, const Call& call, const Planes<Stored>& a, const Planes<Stored>& g, int begin,
                      int end, float* weights) {
  constexpr int many = method == Method::gradcam ? AT_ONCE : AT_ONCE / 2;
  const int thread = machine.thread();
  if (call.channels_inside) {
    const int channel = begin + thread;
    const auto alone = [](const auto&) {};
    float weight[1];
    if (channel >= end) return;
    weights_of<method, 1, many>(a, g, channel, 1, end, 0, 1, call.positions(), alone, weight);
    weights[thread] = weight[0];
    return;
  }
  const auto by_warp = [&](auto& values) { sum_of_warp(machine, values); };
  for (int channel = begin + thread / WARP; channel < end; channel += many * WARPS) {
    float weight[many];
    weights_of<method, many, 1>(a, g, channel, WARPS, end, thread % WARP, WARP, call.positions(), by_warp, weight);
#pragma unroll
    for (int i = 0; i < many; ++i)
      if (thread % WARP == 0 && channel + i * WARPS < end) weights[channel + i * WARPS - begin] = weight[i];
  }
}

// What the channels begin + first, begin + first + step, ... below `end` add to the map at one position.
template <Method method, class Stored>
GCF_DEVICE float sum_at(const Planes<Stored>& a, const Planes<Stored>& g, const float* weights, int position, int begin,
                        int end, int first, int step) {
  const int64_t in_a = a.within(position), in_g = g.within(position);
  float sum = 0.0f;
  for (int channel = begin + first; channel < end; channel += AT_ONCE * step) {
    Stored activation[AT_ONCE], gradient[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
      const int each = channel + i * step < end ? channel + i * step : end - 1;
      activation[i] = a.raw(each, in_a);
      if constexpr (!weighs_channels(method)) gradient[i] = g.raw(each, in_g);
    }
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
      const int each = channel + i * step;
      if (each >= end) break;
      const float one = to_float(activation[i]);
      if constexpr (weighs_channels(method)) {
        sum += weights[each - begin] * one;
      } else {
        float term;
        position_term<method>(one, to_float(gradient[i]), term);
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
      float sum[] = {sum_at<method>(a, g, room, position, begin, end, thread % WARP, WARP)};
      sum_of_warp(machine, sum);
      if (thread % WARP == 0) put(position, sum[0]);
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

}  // namespace gradcam_fast::gpu
