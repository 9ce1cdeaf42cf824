// How the threads of a block compute the weights of channels: they pool the gradients, and the activations where the
// method needs them. Machine: see cuda/cam_block.h.
#pragma once

#include "cuda/params.h"

namespace gradcam_fast::gpu {

// The sum of a value over `lanes` adjacent lanes of a warp, returned to each of them.
template <int lanes, class Machine, class T>
GCF_DEVICE T sum_of_lanes(Machine& machine, T value) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) value += machine.shuffle_xor(value, mask);
  return value;
}

// A long sum: FLOATS_PER_FOLD numbers at a time in float32, these partial sums in float64, which is slow on most GPUs.
inline constexpr int FLOATS_PER_FOLD = 16;
struct LongSum {
  double total = 0.0;
  float recent = 0.0f;

  GCF_DEVICE void fold() {
    total += recent;
    recent = 0.0f;
  }
};

// Calls f(activation, gradient) for the positions first, first + step, ... of a channel; an input that is not taken is
// 0. Loads `batch_size` positions before it uses the first. Calls fold() after every FLOATS_PER_FOLD positions.
template <int batch_size, bool take_activations, bool take_gradients, class Source, class F, class Fold>
GCF_DEVICE void for_positions(const Source& a, const Source& g, int channel, int first, int step, int positions,
                              const F& f, const Fold& fold) {
  using Number = typename Source::Number;
  const auto apply_batch = [&](auto count, const auto& at_a, const auto& at_g, const auto& inside) {
    [[maybe_unused]] Number activation[count.value], gradient[count.value];
#pragma unroll
    for (int i = 0; i < count.value; ++i) {
      if constexpr (take_activations) activation[i] = *at_a(i);
      if constexpr (take_gradients) gradient[i] = *at_g(i);
    }
#pragma unroll
    for (int i = 0; i < count.value; ++i) {
      float activation_here = 0.0f, gradient_here = 0.0f;
      if constexpr (take_activations) activation_here = inside(i) ? to_float(activation[i]) : 0.0f;
      if constexpr (take_gradients) gradient_here = inside(i) ? to_float(gradient[i]) : 0.0f;
      f(activation_here, gradient_here);
    }
  };
  const auto everywhere = [](int) { return true; };
  const std::integral_constant<int, batch_size> batch;
  static_assert(FLOATS_PER_FOLD % batch_size == 0);
  if constexpr (Source::IN_GLOBAL_MEMORY) {
    int p = first;
    const auto in = [&](const Source& planes) {
      return [&planes, &p, channel, step, positions](int i) {
        return planes.at(channel, p + i * step < positions ? p + i * step : positions - 1);
      };
    };
    for (int done = 0; p + (batch_size - 1) * step < positions;) {
      apply_batch(batch, in(a), in(g), everywhere);
      p += batch_size * step;
      if ((done += batch_size) % FLOATS_PER_FOLD == 0) fold();
    }
    // All remaining positions in one batch, so that there is one wait; positions beyond the end add zeros.
    if (p < positions) apply_batch(batch, in(a), in(g), [&](int i) { return p + i * step < positions; });
  } else {
    const Number *a_data = a.at(channel, first), *g_data = g.at(channel, first);
    const auto take = [&](auto count, int from) {
      const auto in = [step, from](const Number* of) {
        return [of, step, from](int i) { return of + (from + i) * step; };
      };
      apply_batch(count, in(a_data), in(g_data), everywhere);
    };
    int left = (positions - first + step - 1) / step;
#pragma unroll 1
    for (; left >= FLOATS_PER_FOLD;
         left -= FLOATS_PER_FOLD, a_data += FLOATS_PER_FOLD * step, g_data += FLOATS_PER_FOLD * step) {
#pragma unroll
      for (int from = 0; from < FLOATS_PER_FOLD; from += batch_size) take(batch, from);
      fold();
    }
    constexpr int few = 4;
#pragma unroll 1
    for (; left >= few; left -= few, a_data += few * step, g_data += few * step)
      take(std::integral_constant<int, few>(), 0);
#pragma unroll 1
    for (; left > 0; --left, a_data += step, g_data += step) take(std::integral_constant<int, 1>(), 0);
  }
}

// The weight of a channel. This thread reads the positions first, first + step, ...; `sum` adds up the shares of the
// threads that work on the channel.
template <Method method, class Source, class Sum>
GCF_DEVICE float weight_of(const Params& params, const Source& a, const Source& g, int channel, int first, int step,
                           const Sum& sum) {
  const int positions = params.positions;
  const auto no_fold = [] {};
  LongSum long_sum;
  const auto fold = [&] { long_sum.fold(); };
  if constexpr (method == Method::gradcam) {
    const auto add = [&](float, float gradient) { long_sum.recent += gradient; };
    for_positions<LOADS_IN_FLIGHT, false, true>(a, g, channel, first, step, positions, add, fold);
    long_sum.fold();
    return sum(static_cast<float>(long_sum.total)) * params.inverse_positions;
  } else if constexpr (method == Method::xgradcam) {
    double total = 0.0, products = 0.0;
    const auto add = [&](float activation, float gradient) {
      total += activation;
      products += static_cast<double>(activation) * gradient;
    };
    for_positions<LOADS_IN_FLIGHT / 2, true, true>(a, g, channel, first, step, positions, add, no_fold);
    return xgradcam_weight(sum(products), sum(total));
  } else {
    double total = 0.0;
    const auto add = [&](float activation, float) { total += activation; };
    for_positions<LOADS_IN_FLIGHT, true, false>(a, g, channel, first, step, positions, add, no_fold);
    total = sum(total);
    const auto weigh = [&](float, float gradient) {
      float term;
      plus_plus_term(gradient, plus_plus_denominator(gradient, total), term);
      long_sum.recent += term;
    };
    for_positions<LOADS_IN_FLIGHT, false, true>(a, g, channel, first, step, positions, weigh, fold);
    long_sum.fold();
    return sum(static_cast<float>(long_sum.total));
  }
}

// The weights of channels with the same gradient at all positions: the mean is any of them. At most THREADS channels.
template <class Source>
GCF_DEVICE void weigh_uniform(int thread, const Source& g, int begin, int end, float* weights) {
  if (begin + thread < end) weights[thread] = to_float(*g.at(begin + thread, 0));
}

// The weights of the channels [begin, end), with `lanes` lanes of a warp per channel.
template <Method method, int lanes, class Source, class Machine>
GCF_DEVICE void weigh_by_lanes(Machine& machine, const Params& params, const Source& a, const Source& g, int begin,
                               int end, float* weights) {
  constexpr int channels_per_warp = WARP / lanes;
  const int lane = machine.thread() % lanes;
  const auto sum = [&](auto value) { return sum_of_lanes<lanes>(machine, value); };
  for (int first = begin + machine.thread() / WARP * channels_per_warp; first < end;
       first += WARPS * channels_per_warp) {
    // Beyond the end the last channel is computed again, because the shuffles need all threads of the warp.
    const int wanted = first + machine.thread() % WARP / lanes, channel = wanted < end ? wanted : end - 1;
    const float weight = weight_of<method>(params, a, g, channel, lane, lanes, sum);
    if (lane == 0 && channel == wanted) weights[channel - begin] = weight;
  }
}

// Chooses how many lanes of a warp share a channel. Fewer lanes per channel mean fewer shuffles, but adjacent lanes
// should read from different banks of shared memory, or from one sector of global memory. With one lane per channel the
// banks differ where a map has an odd number of positions. Methods that do more than add would then keep too few warps
// busy with the channels of a stage.
template <Method method, class Source, class Machine>
GCF_DEVICE void weigh_by_warps(Machine& machine, const Params& params, const Source& a, const Source& g, int begin,
                               int end, float* weights) {
  const int positions = params.positions;
  if (positions > THREADS || positions % 16 == 0)
    weigh_by_lanes<method, 16>(machine, params, a, g, begin, end, weights);
  else if (method != Method::gradcam || positions % 2 == 0)
    weigh_by_lanes<method, 4>(machine, params, a, g, begin, end, weights);
  else
    weigh_by_lanes<method, 1>(machine, params, a, g, begin, end, weights);
}

// The weights of the channels [begin, end), at most THREADS, where channels are adjacent in memory: one thread per
// channel.
template <Method method, class Source>
GCF_DEVICE void weigh_by_threads(int thread, const Params& params, const Source& a, const Source& g, int begin, int end,
                                 float* weights) {
  const auto alone = [](auto value) { return value; };
  if (begin + thread < end) weights[thread] = weight_of<method>(params, a, g, begin + thread, 0, 1, alone);
}

// The weights of the channels [begin, end), at most THREADS, in the way that suits their memory layout.
template <Method method, class Source, class Machine>
GCF_DEVICE void weigh(Machine& machine, const Params& params, const Source& a, const Source& g, int begin, int end,
                      float* weights) {
  if (method == Method::gradcam && params.g.uniform)
    weigh_uniform(machine.thread(), g, begin, end, weights);
  else if (Source::IN_GLOBAL_MEMORY && params.channels_innermost)
    weigh_by_threads<method>(machine.thread(), params, a, g, begin, end, weights);
  else
    weigh_by_warps<method>(machine, params, a, g, begin, end, weights);
}

}  // namespace gradcam_fast::gpu
