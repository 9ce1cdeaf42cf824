// What the threads of a block do to add up weighed channels to the map of a slab. Machine is what cam_block.h says.
#pragma once

#include "gpu_weigh.h"

namespace gradcam_fast::gpu {

// `sum`, and what some of the channels [begin, end) add to the map at one position: `run` of them side by side from
// begin + first on, as many from begin + first + step on, and so on. Weights are those of the channels from `begin` on.
template <Method method, int run, class Planes>
GCF_DEVICE float sum_at(const Planes& a, const Planes& g, const float* weights, int position, int begin, int end,
                        int first, int step, float sum) {
  struct alignas(run * sizeof(float)) Weights {
    float of[run];
  };
  const typename Planes::Number *of_a = a.at(begin + first, position), *of_g = g.at(begin + first, position);
  const auto jump_a = step * a.step(), jump_g = step * g.step();
  weights += first;
  // All that is asked for is asked for before any of it is used, and nothing is asked for that is not there: a branch
  // in between would make each number wait for the one before.
  const auto add = [&](auto count) {
    constexpr int many = count.value, side_by_side = many < run ? many : run;
    typename Planes::Number activation[many];
    [[maybe_unused]] typename Planes::Number gradient[many];
    [[maybe_unused]] Weights weight[many / side_by_side];
#pragma unroll
    for (int i = 0; i < many; i += side_by_side) {
#pragma unroll
      for (int j = 0; j < side_by_side; ++j) {
        activation[i + j] = of_a[i / run * jump_a + j * a.step()];
        if constexpr (!weighs_channels(method)) gradient[i + j] = of_g[i / run * jump_g + j * g.step()];
      }
      if constexpr (weighs_channels(method)) {
        if constexpr (side_by_side == run)
          weight[i / run] = *reinterpret_cast<const Weights*>(weights + i / run * step);
        else
          weight[i].of[0] = *weights;
      }
    }
#pragma unroll
    for (int i = 0; i < many; ++i) {
      const float one = to_float(activation[i]);
      if constexpr (weighs_channels(method)) {
        sum = fmaf(weight[i / side_by_side].of[i % side_by_side], one, sum);
      } else {
        float term;
        position_term<method>(one, to_float(gradient[i]), term);
        sum += term;
      }
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
#pragma unroll 1
    for (; channel < end; ++channel) {
      add(std::integral_constant<int, 1>());
      of_a += a.step(), of_g += g.step(), ++weights;
    }
  }
  return sum;
}

// How threads share positions that lie side by side: a position's channels go to several groups of threads, a run to
// each by turns, as long as a warp has positions of one channel only.
struct Groups {
  int width, count;

  GCF_INLINE explicit Groups(int positions)
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
    weigh<method>(machine, call, a, g, begin, end, room);
    machine.sync();
  }
  const Groups groups(positions);
  if (call.channels_inside) {
    // A warp per position: its lanes read channels that lie side by side.
    for (int position = thread / WARP; position < positions; position += WARPS) {
      const float some = sum_at<method, 1>(a, g, room, position, begin, end, thread % WARP, WARP, 0.0f);
      const float sum = sum_of_lanes<WARP>(machine, some);
      if (thread % WARP == 0) put(position, sum);
    }
  } else if (groups.count == 1) {
    for (int position = thread; position < positions; position += THREADS)
      put(position, sum_at<method, RUN>(a, g, room, position, begin, end, 0, RUN, 0.0f));
  } else {
    const int position = thread % groups.width, group = thread / groups.width;
    float sum = 0.0f;
    if (position < positions && group < groups.count)
      sum = sum_at<method, RUN>(a, g, room, position, begin, end, group * RUN, groups.count * RUN, 0.0f);
    add_groups(machine, groups, positions, sum, room, put);
  }
  machine.sync();
}

}  // namespace gradcam_fast::gpu
