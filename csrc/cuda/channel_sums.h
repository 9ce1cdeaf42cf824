// What the threads of a block do to add up weighed channels to the map of a slab. Machine is what cuda/cam_block.h
// says.
#pragma once

#include "cuda/channel_weights.h"

namespace gradcam_fast::gpu {

// What one position of one channel adds to the map. `factor` is the channel's weight, or the gradient there.
template <Method method>
GCF_DEVICE void add_term(float activation, float factor, float& sum) {
  if constexpr (weighs_channels(method)) {
    sum = fmaf(factor, activation, sum);
  } else {
    float term;
    position_term<method>(activation, factor, term);
    sum += term;
  }
}

// Adds what some of the channels [begin, end) have at one position: `run` of them side by side from begin + first on,
// as many from begin + first + step on, and so on. The first of a run goes to the first of the sums, the next to the
// next, and by turns if there are fewer. Weights are those of the channels from `begin` on.
template <Method method, int run, int many_sums, class Planes>
GCF_DEVICE void sum_at(const Planes& a, const Planes& g, const float* weights, int position, int begin, int end,
                       int first, int step, float (&sums)[many_sums]) {
  struct alignas(run * sizeof(float)) Weights {
    float of[run];
  };
  const typename Planes::Number *of_a = a.at(begin + first, position), *of_g = g.at(begin + first, position);
  const auto jump_a = step * a.step(), jump_g = step * g.step();
  weights += first;
  // All that is asked for is asked for before any of it is used, and nothing is asked for that is not there: a branch
  // in between would make each number wait for the one before.
  const auto add = [&](auto count) {
    constexpr int many = count.value;
    typename Planes::Number activation[many];
    [[maybe_unused]] typename Planes::Number gradient[many];
    [[maybe_unused]] Weights weight[many / run];
#pragma unroll
    for (int i = 0; i < many; i += run) {
#pragma unroll
      for (int j = 0; j < run; ++j) {
        activation[i + j] = of_a[i / run * jump_a + j * a.step()];
        if constexpr (!weighs_channels(method)) gradient[i + j] = of_g[i / run * jump_g + j * g.step()];
      }
      if constexpr (weighs_channels(method))
        weight[i / run] = *reinterpret_cast<const Weights*>(weights + i / run * step);
    }
#pragma unroll
    for (int i = 0; i < many; ++i) {
      const float activation_here = to_float(activation[i]);
      if constexpr (weighs_channels(method))
        add_term<method>(activation_here, weight[i / run].of[i % run], sums[i % run % many_sums]);
      else
        add_term<method>(activation_here, to_float(gradient[i]), sums[i % run % many_sums]);
    }
  };
  constexpr int runs = AT_ONCE / run;
  int channel = begin + first;
#pragma unroll 1
  for (; channel + (runs - 1) * step + run <= end; channel += runs * step) {
    add(std::integral_constant<int, AT_ONCE>());
    of_a += runs * jump_a, of_g += runs * jump_g, weights += runs * step;
  }
#pragma unroll 1
  for (; channel + run <= end; channel += step) {
    add(std::integral_constant<int, run>());
    of_a += jump_a, of_g += jump_g, weights += step;
  }
  // The last run may be shorter.
  if constexpr (run > 1 && !Planes::WHOLE_RUNS) {
#pragma unroll
    for (int j = 0; j < run - 1; ++j) {
      if (channel + j >= end) break;
      const float activation = to_float(of_a[j * a.step()]);
      if constexpr (weighs_channels(method))
        add_term<method>(activation, weights[j], sums[j % many_sums]);
      else
        add_term<method>(activation, to_float(of_g[j * g.step()]), sums[j % many_sums]);
    }
  }
}

// put(position, sum) for the groups' sums, which are in `room` by group, channel of a run, and position.
template <class Machine, class Put>
GCF_DEVICE void put_sums(Machine& machine, const Call& call, const float* room, const Put& put) {
  const int thread = machine.thread();
  if (thread < call.positions) {
    float total = room[thread];
    for (int i = 1; i < call.groups.count * RUN; ++i) total += room[i * call.positions + thread];
    put(thread, total);
  }
}

// The map of the channels [begin, end), read where they lie: put(position, sum) by one thread for each position.
template <Method method, class Stored, class Machine, class Put>
GCF_DEVICE void sum_slab(Machine& machine, const Call& call, const Planes<Stored>& a, const Planes<Stored>& g,
                         int begin, int end, float* room, const Put& put) {
  const int thread = machine.thread(), positions = call.positions, groups = call.groups.count;
  if constexpr (weighs_channels(method)) {
    weigh<method>(machine, call, a, g, begin, end, room);
    machine.sync();
  }
  if (call.channels_inside) {
    // A warp per position: its lanes read channels that lie side by side.
    for (int position = thread / WARP; position < positions; position += WARPS) {
      float sum[] = {0.0f};
      sum_at<method, 1>(a, g, room, position, begin, end, thread % WARP, WARP, sum);
      sum[0] = sum_of_lanes<WARP>(machine, sum[0]);
      if (thread % WARP == 0) put(position, sum[0]);
    }
  } else if (groups == 0) {
    for (int position = thread; position < positions; position += THREADS) {
      float sum[] = {0.0f};
      sum_at<method, RUN>(a, g, room, position, begin, end, 0, RUN, sum);
      put(position, sum[0]);
    }
  } else {
    const int group = call.positions.quotient(thread), position = thread - group * positions;
    float sums[RUN] = {};
    if (group < groups) sum_at<method, RUN>(a, g, room, position, begin, end, group * RUN, groups * RUN, sums);
    machine.sync();
    if (group < groups)
#pragma unroll
      for (int j = 0; j < RUN; ++j) room[(group * RUN + j) * positions + position] = sums[j];
    machine.sync();
    put_sums(machine, call, room, put);
  }
  machine.sync();
}

}  // namespace gradcam_fast::gpu
