// What the threads of a block do to make a map of a slab of channels: the channels' weights, then the sums. Machine is
// what cam_block.h says.
#pragma once

#include "gpu_call.h"

namespace gradcam_fast::gpu {

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

}  // namespace gradcam_fast::gpu
