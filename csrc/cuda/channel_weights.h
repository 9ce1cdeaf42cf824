// What the threads of a block do to weigh channels: pool gradients, and activations where a method asks for it. Machine
// is what cuda/cam_block.h says.
#pragma once

#include "cuda/call.h"

namespace gradcam_fast::gpu {

// A value summed over as many neighbouring lanes of a warp, and given to each of them.
template <int lanes, class Machine, class T>
GCF_DEVICE T sum_of_lanes(Machine& machine, T value) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) value += machine.shuffle_xor(value, mask);
  return value;
}

// A long sum of floats: so many of them as such, those in double, which few GPUs are quick at.
inline constexpr int AS_FLOATS = 16;
struct LongSum {
  double total = 0.0;
  float some = 0.0f;

  GCF_DEVICE void fold() {
    total += some;
    some = 0.0f;
  }
};

// f(activation, gradient) for a channel's positions first, first + step, ...; zero for what is not `taken`. `deep` of
// them are asked for before any is used. After every AS_FLOATS of them, fold().
template <int deep, bool take_activations, bool take_gradients, class Planes, class F, class Fold>
GCF_DEVICE void for_positions(const Planes& a, const Planes& g, int channel, int first, int step, int positions,
                              const F& f, const Fold& fold) {
  using Number = typename Planes::Number;
  const auto some = [&](auto count, const auto& at_a, const auto& at_g, const auto& there) {
    [[maybe_unused]] Number activation[count.value], gradient[count.value];
#pragma unroll
    for (int i = 0; i < count.value; ++i) {
      if constexpr (take_activations) activation[i] = *at_a(i);
      if constexpr (take_gradients) gradient[i] = *at_g(i);
    }
#pragma unroll
    for (int i = 0; i < count.value; ++i) {
      float one = 0.0f, other = 0.0f;
      if constexpr (take_activations) one = there(i) ? to_float(activation[i]) : 0.0f;
      if constexpr (take_gradients) other = there(i) ? to_float(gradient[i]) : 0.0f;
      f(one, other);
    }
  };
  const auto all = [](int) { return true; };
  const std::integral_constant<int, deep> batch;
  static_assert(AS_FLOATS % deep == 0);
  if constexpr (Planes::FAR) {
    int p = first;
    const auto in = [&](const Planes& planes) {
      return [&planes, &p, channel, step, positions](int i) {
        return planes.at(channel, p + i * step < positions ? p + i * step : positions - 1);
      };
    };
    for (int done = 0; p + (deep - 1) * step < positions;) {
      some(batch, in(a), in(g), all);
      p += deep * step;
      if ((done += deep) % AS_FLOATS == 0) fold();
    }
    // One wait for all that is left; zeros add nothing.
    if (p < positions) some(batch, in(a), in(g), [&](int i) { return p + i * step < positions; });
  } else {
    const Number *of_a = a.at(channel, first), *of_g = g.at(channel, first);
    const auto take = [&](auto count, int from) {
      const auto in = [step, from](const Number* of) {
        return [of, step, from](int i) { return of + (from + i) * step; };
      };
      some(count, in(of_a), in(of_g), all);
    };
    int left = (positions - first + step - 1) / step;
#pragma unroll 1
    for (; left >= AS_FLOATS; left -= AS_FLOATS, of_a += AS_FLOATS * step, of_g += AS_FLOATS * step) {
#pragma unroll
      for (int from = 0; from < AS_FLOATS; from += deep) take(batch, from);
      fold();
    }
    constexpr int few = 4;
#pragma unroll 1
    for (; left >= few; left -= few, of_a += few * step, of_g += few * step)
      take(std::integral_constant<int, few>(), 0);
#pragma unroll 1
    for (; left > 0; --left, of_a += step, of_g += step) take(std::integral_constant<int, 1>(), 0);
  }
}

// The weight of a channel, of which this thread has the positions first, first + step, ...; `sum` adds up what the
// threads that share it have.
template <Method method, class Planes, class Sum>
GCF_DEVICE float weight_of(const Call& call, const Planes& a, const Planes& g, int channel, int first, int step,
                           const Sum& sum) {
  const int positions = call.positions;
  const auto as_it_is = [] {};
  LongSum own;
  const auto fold = [&] { own.fold(); };
  if constexpr (method == Method::gradcam) {
    const auto add = [&](float, float gradient) { own.some += gradient; };
    for_positions<AT_ONCE, false, true>(a, g, channel, first, step, positions, add, fold);
    own.fold();
    return sum(static_cast<float>(own.total)) * call.over_positions;
  } else if constexpr (method == Method::xgradcam) {
    double total = 0.0, products = 0.0;
    const auto add = [&](float activation, float gradient) {
      total += activation;
      products += static_cast<double>(activation) * gradient;
    };
    for_positions<AT_ONCE / 2, true, true>(a, g, channel, first, step, positions, add, as_it_is);
    return xgradcam_weight(sum(products), sum(total));
  } else {
    double total = 0.0;
    const auto add = [&](float activation, float) { total += activation; };
    for_positions<AT_ONCE, true, false>(a, g, channel, first, step, positions, add, as_it_is);
    total = sum(total);
    const auto weigh = [&](float, float gradient) {
      float term;
      plus_plus_term(gradient, plus_plus_denominator(gradient, total), term);
      own.some += term;
    };
    for_positions<AT_ONCE, false, true>(a, g, channel, first, step, positions, weigh, fold);
    own.fold();
    return sum(static_cast<float>(own.total));
  }
}

// The weights of channels whose gradients are the same everywhere, at most as many as threads: the mean is any of them.
template <class Planes>
GCF_DEVICE void weigh_uniform(int thread, const Planes& g, int begin, int end, float* weights) {
  if (begin + thread < end) weights[thread] = to_float(*g.at(begin + thread, 0));
}

// The weights of the channels [begin, end), so many lanes of a warp to each.
template <Method method, int lanes, class Planes, class Machine>
GCF_DEVICE void weigh_by_lanes(Machine& machine, const Call& call, const Planes& a, const Planes& g, int begin, int end,
                               float* weights) {
  constexpr int of_warp = WARP / lanes;
  const int lane = machine.thread() % lanes;
  const auto sum = [&](auto value) { return sum_of_lanes<lanes>(machine, value); };
  for (int first = begin + machine.thread() / WARP * of_warp; first < end; first += WARPS * of_warp) {
    // Where there is no channel the last is weighed once more: all threads of a warp are needed.
    const int wanted = first + machine.thread() % WARP / lanes, channel = wanted < end ? wanted : end - 1;
    const float weight = weight_of<method>(call, a, g, channel, lane, lanes, sum);
    if (lane == 0 && channel == wanted) weights[channel - begin] = weight;
  }
}

// The more channels a warp weighs at a time, the less it does beside adding. What keeps it from giving each lane one is
// that lanes should read neighbours: banks of shared memory, of which there are as many as lanes, or bytes of a sector.
// Where a map has an odd number of positions, lanes find their channels' floats in a bank each. For methods that do
// more than add, so few warps would be at work on the channels of a stage that it is not worth it.
template <Method method, class Planes, class Machine>
GCF_DEVICE void weigh_by_warps(Machine& machine, const Call& call, const Planes& a, const Planes& g, int begin, int end,
                               float* weights) {
  const int positions = call.positions;
  if (positions > THREADS || positions % 16 == 0)
    weigh_by_lanes<method, 16>(machine, call, a, g, begin, end, weights);
  else if (method != Method::gradcam || positions % 2 == 0)
    weigh_by_lanes<method, 4>(machine, call, a, g, begin, end, weights);
  else
    weigh_by_lanes<method, 1>(machine, call, a, g, begin, end, weights);
}

// The same where channels lie side by side in memory, at most as many as threads: one to a thread.
template <Method method, class Planes>
GCF_DEVICE void weigh_by_threads(int thread, const Call& call, const Planes& a, const Planes& g, int begin, int end,
                                 float* weights) {
  const auto alone = [](auto value) { return value; };
  if (begin + thread < end) weights[thread] = weight_of<method>(call, a, g, begin + thread, 0, 1, alone);
}

// The weights of the channels [begin, end), at most as many as threads, in whichever way suits how they lie.
template <Method method, class Planes, class Machine>
GCF_DEVICE void weigh(Machine& machine, const Call& call, const Planes& a, const Planes& g, int begin, int end,
                      float* weights) {
  if (method == Method::gradcam && call.g.uniform)
    weigh_uniform(machine.thread(), g, begin, end, weights);
  else if (Planes::FAR && call.channels_inside)
    weigh_by_threads<method>(machine.thread(), call, a, g, begin, end, weights);
  else
    weigh_by_warps<method>(machine, call, a, g, begin, end, weights);
}

}  // namespace gradcam_fast::gpu
