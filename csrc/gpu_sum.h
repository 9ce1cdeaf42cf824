// What the threads of a block do to make a map of a slab of channels: the channels' weights, then the sums. Machine is
// what cam_block.h says.
#pragma once

#include "gpu_call.h"

namespace gradcam_fast::gpu {

// Sums over the threads of a warp, by halves.
template <class Machine>
struct OfWarp {
  Machine& machine;

  // Each value's sum, given to all threads.
  template <class T, int many>
  GCF_DEVICE void everywhere(T (&values)[many]) const {
    for (int mask = WARP / 2; mask > 0; mask /= 2)
#pragma unroll
      for (int i = 0; i < many; ++i) values[i] += machine.shuffle_xor(values[i], mask);
  }

  // The same sums, but each thread gets one: that of the value mine<many>(). So it takes many - 1 shuffles and those of
  // one value, not of each.
  template <class T, int many>
  GCF_DEVICE T scattered(T (&values)[many]) const {
    int mask = WARP / 2;
#pragma unroll
    for (int left = many; left > 1; left /= 2, mask /= 2) {
      const bool upper = (machine.thread() & mask) != 0;
#pragma unroll
      for (int i = 0; i < left / 2; ++i) {
        const T kept = upper ? values[i + left / 2] : values[i], given = upper ? values[i] : values[i + left / 2];
        values[i] = kept + machine.shuffle_xor(given, mask);
      }
    }
    for (; mask > 0; mask /= 2) values[0] += machine.shuffle_xor(values[0], mask);
    return values[0];
  }
  template <int many>
  GCF_DEVICE int mine() const {
    return machine.thread() % WARP / (WARP / many);
  }
};

// The same for a thread that shares its values with none.
struct OfThread {
  template <class T>
  GCF_DEVICE void everywhere(T (&)[1]) const {}
  template <class T>
  GCF_DEVICE T scattered(T (&values)[1]) const {
    return values[0];
  }
};

// The largest of each of the values of all threads of a block, given to each; `room` for `many` floats per warp.
template <class Machine, int many>
GCF_DEVICE void max_of_block(Machine& machine, float (&values)[many], float* room) {
  const int lane = machine.thread() % WARP, warp = machine.thread() / WARP;
  for (int mask = WARP / 2; mask > 0; mask /= 2)
#pragma unroll
    for (int i = 0; i < many; ++i) {
      const float other = machine.shuffle_xor(values[i], mask);
      values[i] = values[i] > other ? values[i] : other;
    }
#pragma unroll
  for (int i = 0; i < many; ++i)
    if (lane == 0) room[i * WARPS + warp] = values[i];
  machine.sync();
#pragma unroll
  for (int i = 0; i < many; ++i) {
    values[i] = room[i * WARPS];
    for (int other = 1; other < WARPS; ++other)
      values[i] = values[i] > room[i * WARPS + other] ? values[i] : room[i * WARPS + other];
  }
  machine.sync();
}

// The weights of `many` channels from `channel` on, `apart` apart, of each of which this thread has the positions
// first, first + step, ...; beyond end - 1 there is only that one again. `deep` positions of each are loaded before any
// is used. Returns the one of them that `sum`, which adds up what the threads that share channels have, scatters here.
template <Method method, int many, int deep, class Planes, class Sum>
GCF_DEVICE float weight_of(const Planes& a, const Planes& g, int channel, int apart, int end, int first, int step,
                           int positions, const Sum& sum) {
  using Stored = typename Planes::Number;
  const auto load = [&](const Planes& from, int p, Stored(&to)[many][deep]) {
#pragma unroll
    for (int j = 0; j < deep; ++j) {
      const auto within = from.within(j == 0 || p + j * step < positions ? p + j * step : positions - 1);
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
    return sum.scattered(totals) / static_cast<float>(positions);
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
    if constexpr (method == Method::xgradcam) return xgradcam_weight(sum.scattered(products), sum.scattered(totals));
    sum.everywhere(totals);
    float weights[many] = {};
    for (int p = first; p < positions; p += deep * step) {
      load(g, p, gradient);
      each(p, [&](int i, int j) {
        const float one = to_float(gradient[i][j]);
        float term;
        plus_plus_term(one, plus_plus_denominator(one, totals[i]), term);
        weights[i] += term;
      });
    }
    return sum.scattered(weights);
  }
}

// How many numbers of a kind a thread asks for at a time to weigh channels: half as many where there are two kinds.
template <Method method>
inline constexpr int FOR_WEIGHTS = method == Method::gradcam ? AT_ONCE : AT_ONCE / 2;

// The weights of the channels [begin, end), some of them to a warp at a time.
template <Method method, class Planes, class Machine>
GCF_DEVICE void weigh_by_warps(Machine& machine, const Call& call, const Planes& a, const Planes& g, int begin, int end,
                               float* weights) {
  constexpr int many = CHANNELS_OF_WARP, deep = FOR_WEIGHTS<method> / many;
  const int lane = machine.thread() % WARP;
  const OfWarp<Machine> sum{machine};
  for (int channel = begin + machine.thread() / WARP; channel < end; channel += many * WARPS) {
    const float weight = weight_of<method, many, deep>(a, g, channel, WARPS, end, lane, WARP, call.positions(), sum);
    const int mine = channel + sum.template mine<many>() * WARPS;
    if (lane % (WARP / many) == 0 && mine < end) weights[mine - begin] = weight;
  }
}

// The same where channels lie side by side, at most as many as threads: one to a thread.
template <Method method, class Planes>
GCF_DEVICE void weigh_by_threads(int thread, const Call& call, const Planes& a, const Planes& g, int begin, int end,
                                 float* weights) {
  constexpr int deep = FOR_WEIGHTS<method>;
  const int channel = begin + thread;
  if (channel >= end) return;
  weights[thread] = weight_of<method, 1, deep>(a, g, channel, 1, end, 0, 1, call.positions(), OfThread());
}

// `sum`, and what the channels begin + first, begin + first + step, ... below `end` add to the map at one position.
template <Method method, class Planes>
GCF_DEVICE float sum_at(const Planes& a, const Planes& g, const float* weights, int position, int begin, int end,
                        int first, int step, float sum) {
  const auto in_a = a.within(position), in_g = g.within(position);
  for (int channel = begin + first; channel < end; channel += AT_ONCE * step) {
    typename Planes::Number activation[AT_ONCE], gradient[AT_ONCE];
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

// How threads share positions that lie side by side: a position's channels go to several, as long as a warp has
// positions of one channel only.
struct Groups {
  int width, count;

  GCF_DEVICE explicit Groups(int positions)
      : width((positions + WARP - 1) / WARP * WARP), count(width < THREADS ? THREADS / width : 1) {}
};

// put(position, sum) for the sums of all groups, added in order; `room` for a float per thread.
template <class Machine, class Put>
GCF_DEVICE void add_groups(Machine& machine, const Groups& groups, int positions, float sum, float* room,
                           const Put& put) {
  const int thread = machine.thread();
  machine.sync();
  room[thread] = sum;
  machine.sync();
  if (thread < positions) {
    float total = room[thread];
    for (int group = 1; group < groups.count; ++group) total += room[group * groups.width + thread];
    put(thread, total);
  }
}

// The map of the channels [begin, end), read where they lie: put(position, sum) by one thread for each position.
template <Method method, class Stored, class Machine, class Put>
GCF_DEVICE void sum_slab(Machine& machine, const Call& call, const Planes<Stored>& a, const Planes<Stored>& g,
                         int begin, int end, float* room, const Put& put) {
  const int thread = machine.thread(), positions = call.positions();
  if constexpr (weighs_channels(method)) {
    if (call.channels_inside)
      weigh_by_threads<method>(thread, call, a, g, begin, end, room);
    else
      weigh_by_warps<method>(machine, call, a, g, begin, end, room);
    machine.sync();
  }
  const Groups groups(positions);
  if (call.channels_inside) {
    // A warp per position: its lanes read channels that lie side by side.
    for (int position = thread / WARP; position < positions; position += WARPS) {
      float sum[] = {sum_at<method>(a, g, room, position, begin, end, thread % WARP, WARP, 0.0f)};
      OfWarp<Machine>{machine}.everywhere(sum);
      if (thread % WARP == 0) put(position, sum[0]);
    }
  } else if (groups.count == 1) {
    for (int position = thread; position < positions; position += THREADS)
      put(position, sum_at<method>(a, g, room, position, begin, end, 0, 1, 0.0f));
  } else {
    const int position = thread % groups.width, group = thread / groups.width;
    float sum = 0.0f;
    if (position < positions && group < groups.count)
      sum = sum_at<method>(a, g, room, position, begin, end, group, groups.count, 0.0f);
    add_groups(machine, groups, positions, sum, room, put);
  }
  machine.sync();
}

}  // namespace gradcam_fast::gpu
