// Maps of channels on their way through shared memory. A thread that reads memory itself waits for the few numbers its
// registers can hold; here the next channels arrive by asynchronous copies while a block works on those that are there.
// Every sum is that of cuda/channel_sums.h, number by number in the same order. Machine is what cuda/cam_block.h says.
#pragma once

#include "cuda/channel_sums.h"

namespace gradcam_fast::gpu {

// Asks for `bytes`, sixteen at a time, of which all is a multiple.
template <class Machine>
GCF_DEVICE void fetch(Machine& machine, const void* from, int bytes, void* to) {
  constexpr int step = THREADS * 16;
  const int mine = machine.thread() * 16;
  const char* source = static_cast<const char*>(from) + mine;
  char* target = static_cast<char*>(to) + mine;
#pragma unroll 1
  for (int left = bytes - mine; left > 0; left -= 4 * step, source += 4 * step, target += 4 * step) {
    machine.template copy16<0>(target, source);
    if (left > step) machine.template copy16<step>(target, source);
    if (left > 2 * step) machine.template copy16<2 * step>(target, source);
    if (left > 3 * step) machine.template copy16<3 * step>(target, source);
  }
}

// The slabs [first, end) cut into parts of as many channels as a stage holds, and the stages in shared memory that they
// go through by turns.
template <class Stored>
struct Stages {
  const Call& call;
  const Planes<Stored>&a, &g;
  int first, end;
  Stored* memory;

  // Channels of a slab, from `begin` on. An empty slab has one part without any.
  struct Part {
    int slab, begin, channels;
    bool ends_slab;
  };

  GCF_DEVICE Part part(int slab, int begin) const {
    const int left = call.slabs.begin(slab + 1) - begin;
    const bool ends = left <= call.staged;
    return {slab, begin, ends ? left : call.staged, ends};
  }
  GCF_DEVICE Part after(const Part& one) const { return part(one.slab + one.ends_slab, one.begin + one.channels); }

  GCF_DEVICE Stored* activations(int stage) const {
    return memory + stage * call.staged * (call.a.pitch + call.g.pitch);
  }
  GCF_DEVICE Stored* gradients(int stage) const { return activations(stage) + call.staged * call.a.pitch; }

  // Asks for a part, or for nothing behind the last.
  template <class Machine>
  GCF_DEVICE void ask(Machine& machine, const Part& part, int stage) const {
    if (part.slab < end) {
      const int bytes = part.channels * static_cast<int>(sizeof(Stored));
      fetch(machine, a.data + int64_t{part.begin} * call.a.pitch, bytes * call.a.pitch, activations(stage));
      fetch(machine, g.data + int64_t{part.begin} * call.g.pitch, bytes * call.g.pitch, gradients(stage));
    }
    machine.end_of_copies();
  }
};

// A run of channels that lie one behind the other holds as many numbers of each channel as positions, so that RUN
// numbers side by side are as many vectors. `vector` is which of them: its numbers are the same positions of the same
// channels of every run, and of two channels at most if there is more than one position.
struct VectorOfRun {
  int first, last, of_first;

  GCF_DEVICE VectorOfRun(int vector, const Divisor& positions)
      : first(positions.quotient(vector * RUN)),
        last(positions.quotient(vector * RUN + RUN - 1)),
        of_first(first == last ? RUN : last * positions - vector * RUN) {}
};

template <class Number>
struct alignas(RUN * sizeof(Number)) Vector {
  Number of[RUN];
};

// One number for each of the channels from `data` on: those of a vector's.
template <class Number>
struct FactorsOfChannels {
  const Number *first, *last;
  int of_first;

  struct Some {
    Number first, last;
  };
  GCF_DEVICE FactorsOfChannels(const Number* data, const VectorOfRun& vector)
      : first(data + vector.first), last(data + vector.last), of_first(vector.of_first) {}
  GCF_DEVICE Some some(int channels, int) const { return {first[channels], last[channels]}; }
  GCF_DEVICE float factor(const Some& some, int i) const {
    return to_float(i == 0 || (i < RUN - 1 && i < of_first) ? some.first : some.last);
  }
  GCF_DEVICE void go(int channels, int) { first += channels, last += channels; }
};

// A number for each position.
template <class Number>
struct FactorsOfPositions {
  const Vector<Number>* at;

  using Some = Vector<Number>;
  GCF_DEVICE Some some(int, int vectors) const { return at[vectors]; }
  GCF_DEVICE float factor(const Some& some, int i) const { return to_float(some.of[i]); }
  GCF_DEVICE void go(int, int vectors) { at += vectors; }
};

// Adds to the sums what a vector has of every `count`th run of so many channels; how many channels that were.
template <Method method, class Number, class Factors>
GCF_DEVICE int sum_vectors(const Vector<Number>* activations, Factors factors, int positions, int count, int channels,
                           float (&sums)[RUN]) {
  const int step = count * RUN, jump = count * positions;
  int left = channels;
  const auto add = [&](auto many) {
    Vector<Number> activation[many.value];
    typename Factors::Some factor[many.value];
#pragma unroll
    for (int i = 0; i < many.value; ++i) {
      activation[i] = activations[i * jump];
      factor[i] = factors.some(i * step, i * jump);
    }
#pragma unroll
    for (int i = 0; i < many.value; ++i)
#pragma unroll
      for (int j = 0; j < RUN; ++j)
        add_term<method>(to_float(activation[i].of[j]), factors.factor(factor[i], j), sums[j]);
    activations += many.value * jump;
    factors.go(many.value * step, many.value * jump);
    left -= many.value * step;
  };
#pragma unroll 1
  while (left > step) add(std::integral_constant<int, 2>());
  if (left > 0) add(std::integral_constant<int, 1>());
  return channels - left;
}

// The maps of the slabs: put(slab, position, sum) by one thread for each position, slab after slab from zero on.
// `partial(slab)` is where a slab's map is kept while it grows.
template <Method method, class Stored, class Machine, class Partial, class Put>
GCF_DEVICE void sum_slabs(Machine& machine, const Stages<Stored>& stages, float* room, const Partial& partial,
                          const Put& put) {
  const Call& call = stages.call;
  const int thread = machine.thread(), positions = call.positions, groups = call.groups.count;
  const int group = call.positions.quotient(thread), place = thread - group * positions;
  const VectorOfRun vector(place, call.positions);
  static_assert(STAGES == 2);
  auto here = stages.part(stages.first, call.slabs.begin(stages.first));
  stages.ask(machine, here, 0);
  auto next = stages.after(here);
  stages.ask(machine, next, 1);
  int stage = 0;
  bool begins = true;
  // The channel of this part with which the next run of this thread's group begins.
  int due = group * RUN;
  float sums[RUN] = {};
  while (true) {
    // What comes now is there for all threads.
    machine.template wait_for_copies<1>();
    machine.sync();
    const int slab = here.slab - stages.first, channels = here.channels;
    const bool ends = here.ends_slab;
    const StagedPlanes<Stored> a{stages.activations(stage), call.a.pitch}, g{stages.gradients(stage), call.g.pitch};
    if constexpr (weighs_channels(method)) {
      weigh<method>(machine, call, a, g, 0, channels, room);
      machine.sync();
    }
    if (groups == 0) {
      float* map = partial(slab);
      for (int position = thread; position < positions; position += THREADS) {
        float sum[] = {begins ? 0.0f : map[position]};
        sum_at<method, RUN>(a, g, room, position, 0, channels, 0, RUN, sum);
        if (ends)
          put(slab, position, sum[0]);
        else
          map[position] = sum[0];
      }
    } else {
      if (group < groups) {
        const auto vectors = [&](const Stored* data) {
          return reinterpret_cast<const Vector<Stored>*>(data + due * positions) + place;
        };
        const auto sum = [&](const auto& factors) {
          due += sum_vectors<method>(vectors(a.data), factors, positions, groups, channels - due, sums);
        };
        if constexpr (weighs_channels(method))
          sum(FactorsOfChannels<float>(room + due, vector));
        else if (call.g.pitch == 1)
          sum(FactorsOfChannels<Stored>(g.data + due, vector));
        else
          sum(FactorsOfPositions<Stored>{vectors(g.data)});
        due = ends ? group * RUN : due - channels;
      }
      if (ends) {
        machine.sync();
        if (group < groups) reinterpret_cast<Vector<float>*>(room)[thread] = {{sums[0], sums[1], sums[2], sums[3]}};
        machine.sync();
        put_sums(machine, call, room, [&](int position, float sum) { put(slab, position, sum); });
#pragma unroll
        for (float& sum : sums) sum = 0.0f;
      }
    }
    if (ends && here.slab + 1 == stages.end) break;
    begins = ends;
    // No thread is still at this part, whose stage is free.
    machine.sync();
    here = next;
    next = stages.after(next);
    stages.ask(machine, next, stage);
    stage = 1 - stage;
  }
  machine.sync();
}

}  // namespace gradcam_fast::gpu
