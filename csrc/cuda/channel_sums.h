// How the threads of a block add weighted channels to the map of a slab. Machine: see cuda/cam_block.h.
#pragma once

#include "cuda/channel_weights.h"

namespace gradcam_fast::gpu {

// Adds what one position of one channel contributes to the map. `factor` is the channel's weight, or the gradient at
// this position.
template <Method method>
GCF_DEVICE void add_term(float activation, float factor, float& sum) {
  if constexpr (weights_channels(method)) {
    sum = fmaf(factor, activation, sum);
  } else {
    float term;
    position_term<method>(activation, factor, term);
    sum += term;
  }
}

// Adds the contributions of some of the channels [begin, end) at one position: `run` adjacent channels from begin +
// first on, as many from begin + first + step on, and so on. Channel j of a run goes to sums[j % many_sums]. `weights`
// begins with the weight of channel `begin`.
template <Method method, int run, int many_sums, class Source>
GCF_DEVICE void sum_at(const Source& a, const Source& g, const float* weights, int position, int begin, int end,
                       int first, int step, float (&sums)[many_sums]) {
  struct alignas(run * sizeof(float)) Weights {
    float of[run];
  };
  const typename Source::Number *a_data = a.at(begin + first, position), *g_data = g.at(begin + first, position);
  const auto a_jump = step * a.step(), g_jump = step * g.step();
  weights += first;
  // Issue all loads before the first use; a branch between them would serialise them.
  const auto add = [&](auto count) {
    constexpr int many = count.value;
    typename Source::Number activation[many];
    [[maybe_unused]] typename Source::Number gradient[many];
    [[maybe_unused]] Weights weight[many / run];
#pragma unroll
    for (int i = 0; i < many; i += run) {
#pragma unroll
      for (int j = 0; j < run; ++j) {
        activation[i + j] = a_data[i / run * a_jump + j * a.step()];
        if constexpr (!weights_channels(method)) gradient[i + j] = g_data[i / run * g_jump + j * g.step()];
      }
      if constexpr (weights_channels(method))
        weight[i / run] = *reinterpret_cast<const Weights*>(weights + i / run * step);
    }
#pragma unroll
    for (int i = 0; i < many; ++i) {
      const float activation_here = to_float(activation[i]);
      if constexpr (weights_channels(method))
        add_term<method>(activation_here, weight[i / run].of[i % run], sums[i % run % many_sums]);
      else
        add_term<method>(activation_here, to_float(gradient[i]), sums[i % run % many_sums]);
    }
  };
  constexpr int runs = LOADS_IN_FLIGHT / run;
  int channel = begin + first;
#pragma unroll 1
  for (; channel + (runs - 1) * step + run <= end; channel += runs * step) {
    add(std::integral_constant<int, LOADS_IN_FLIGHT>());
    a_data += runs * a_jump, g_data += runs * g_jump, weights += runs * step;
  }
#pragma unroll 1
  for (; channel + run <= end; channel += step) {
    add(std::integral_constant<int, run>());
    a_data += a_jump, g_data += g_jump, weights += step;
  }
  // The last run may be shorter.
  if constexpr (run > 1 && !Source::WHOLE_RUNS) {
#pragma unroll
    for (int j = 0; j < run - 1; ++j) {
      if (channel + j >= end) break;
      const float activation = to_float(a_data[j * a.step()]);
      if constexpr (weights_channels(method))
        add_term<method>(activation, weights[j], sums[j % many_sums]);
      else
        add_term<method>(activation, to_float(g_data[j * g.step()]), sums[j % many_sums]);
    }
  }
}

// Adds up the sums of the groups, stored in `scratch` as (group, channel of a run, position): store_sum(position, sum).
template <class Machine, class StoreSum>
GCF_DEVICE void add_group_sums(Machine& machine, const Params& params, const float* scratch,
                               const StoreSum& store_sum) {
  const int thread = machine.thread();
  if (thread < params.positions) {
    float total = scratch[thread];
    for (int i = 1; i < params.groups.count * RUN; ++i) total += scratch[i * params.positions + thread];
    store_sum(thread, total);
  }
}

// The map of the channels [begin, end), read from global memory: one thread calls store_sum(position, sum) for each
// position.
template <Method method, class Stored, class Machine, class StoreSum>
GCF_DEVICE void sum_slab(Machine& machine, const Params& params, const GlobalMaps<Stored>& a,
                         const GlobalMaps<Stored>& g, int begin, int end, float* scratch, const StoreSum& store_sum) {
  const int thread = machine.thread(), positions = params.positions, groups = params.groups.count;
  if constexpr (weights_channels(method)) {
    weigh<method>(machine, params, a, g, begin, end, scratch);
    machine.sync();
  }
  if (params.channels_innermost) {
    // One warp per position: its lanes read adjacent channels.
    for (int position = thread / WARP; position < positions; position += WARPS) {
      float sum[] = {0.0f};
      sum_at<method, 1>(a, g, scratch, position, begin, end, thread % WARP, WARP, sum);
      sum[0] = sum_of_lanes<WARP>(machine, sum[0]);
      if (thread % WARP == 0) store_sum(position, sum[0]);
    }
  } else if (groups == 0) {
    for (int position = thread; position < positions; position += THREADS) {
      float sum[] = {0.0f};
      sum_at<method, RUN>(a, g, scratch, position, begin, end, 0, RUN, sum);
      store_sum(position, sum[0]);
    }
  } else {
    const int group = params.positions.quotient(thread), position = thread - group * positions;
    float sums[RUN] = {};
    if (group < groups) sum_at<method, RUN>(a, g, scratch, position, begin, end, group * RUN, groups * RUN, sums);
    machine.sync();
    if (group < groups)
#pragma unroll
      for (int j = 0; j < RUN; ++j) scratch[(group * RUN + j) * positions + position] = sums[j];
    machine.sync();
    add_group_sums(machine, params, scratch, store_sum);
  }
  machine.sync();
}

}  // namespace gradcam_fast::gpu
