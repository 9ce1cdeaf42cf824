// Feature maps on their way through shared memory. A thread that reads global memory directly waits for the few numbers
// that its registers can hold. Here asynchronous copies bring the next channels while the block works on those that
// have arrived. Every sum adds the same numbers in the same order as in cuda/channel_sums.h. Machine: see
// cuda/cam_block.h.
#pragma once

#include "cuda/channel_sums.h"

namespace gradcam_fast::gpu {

// Starts the copies of `bytes`, a multiple of sixteen, sixteen per thread.
template <class Machine>
GCF_DEVICE void fetch(Machine& machine, const void* from, int bytes, void* to) {
  constexpr int step = THREADS * 16;
  const int offset = machine.thread() * 16;
  const char* source = static_cast<const char*>(from) + offset;
  char* target = static_cast<char*>(to) + offset;
#pragma unroll 1
  for (int left = bytes - offset; left > 0; left -= 4 * step, source += 4 * step, target += 4 * step) {
    machine.template copy16<0>(target, source);
    if (left > step) machine.template copy16<step>(target, source);
    if (left > 2 * step) machine.template copy16<2 * step>(target, source);
    if (left > 3 * step) machine.template copy16<3 * step>(target, source);
  }
}

// The slabs [first, end) cut into chunks of params.stage_channels channels, and the stages in shared memory that the
// chunks go through in turn.
template <class Stored>
struct Stages {
  const Params& params;
  const GlobalMaps<Stored>&a, &g;
  int first, end;
  Stored* memory;

  // `channels` channels of a slab, from `begin` on. An empty slab has one chunk without channels.
  struct Chunk {
    int slab, begin, channels;
    bool ends_slab;
  };

  GCF_DEVICE Chunk chunk_at(int slab, int begin) const {
    const int left = params.slabs.begin(slab + 1) - begin;
    const bool ends = left <= params.stage_channels;
    return {slab, begin, ends ? left : params.stage_channels, ends};
  }
  GCF_DEVICE Chunk after(const Chunk& chunk) const {
    return chunk_at(chunk.slab + chunk.ends_slab, chunk.begin + chunk.channels);
  }

  GCF_DEVICE Stored* activations(int stage) const {
    return memory + stage * params.stage_channels * (params.a.pitch + params.g.pitch);
  }
  GCF_DEVICE Stored* gradients(int stage) const { return activations(stage) + params.stage_channels * params.a.pitch; }

  // Starts the copies of a chunk; starts none if the chunk is behind the last slab.
  template <class Machine>
  GCF_DEVICE void request(Machine& machine, const Chunk& chunk, int stage) const {
    if (chunk.slab < end) {
      const int bytes = chunk.channels * static_cast<int>(sizeof(Stored));
      fetch(machine, a.data + int64_t{chunk.begin} * params.a.pitch, bytes * params.a.pitch, activations(stage));
      fetch(machine, g.data + int64_t{chunk.begin} * params.g.pitch, bytes * params.g.pitch, gradients(stage));
    }
    machine.commit_copies();
  }
};

// RUN contiguous channels hold RUN numbers per position, which are as many packs of RUN adjacent numbers as there are
// positions. Pack number `pack` covers the same positions of the same channels in every run; at most two channels,
// unless there is only one position.
struct PackOfRun {
  int first, last, first_count;

  GCF_DEVICE PackOfRun(int pack, const Divisor& positions)
      : first(positions.quotient(pack * RUN)),
        last(positions.quotient(pack * RUN + RUN - 1)),
        first_count(first == last ? RUN : last * positions - pack * RUN) {}
};

template <class Number>
struct alignas(RUN * sizeof(Number)) Pack {
  Number of[RUN];
};

// One factor per channel, for the channels of a pack.
template <class Number>
struct FactorsOfChannels {
  const Number *first, *last;
  int first_count;

  struct Loaded {
    Number first, last;
  };
  GCF_DEVICE FactorsOfChannels(const Number* data, const PackOfRun& pack)
      : first(data + pack.first), last(data + pack.last), first_count(pack.first_count) {}
  GCF_DEVICE Loaded load(int channels, int) const { return {first[channels], last[channels]}; }
  GCF_DEVICE float factor(const Loaded& loaded, int i) const {
    return to_float(i == 0 || (i < RUN - 1 && i < first_count) ? loaded.first : loaded.last);
  }
  GCF_DEVICE void advance(int channels, int) { first += channels, last += channels; }
};

// One factor per position.
template <class Number>
struct FactorsOfPositions {
  const Pack<Number>* at;

  using Loaded = Pack<Number>;
  GCF_DEVICE Loaded load(int, int packs) const { return at[packs]; }
  GCF_DEVICE float factor(const Loaded& loaded, int i) const { return to_float(loaded.of[i]); }
  GCF_DEVICE void advance(int, int packs) { at += packs; }
};

// Adds one pack of every `count`th run of `channels` channels to the sums; returns the number of channels passed.
template <Method method, class Number, class Factors>
GCF_DEVICE int sum_packs(const Pack<Number>* activations, Factors factors, int positions, int count, int channels,
                         float (&sums)[RUN]) {
  const int step = count * RUN, jump = count * positions;
  int left = channels;
  const auto add = [&](auto batch) {
    Pack<Number> activation[batch.value];
    typename Factors::Loaded factor[batch.value];
#pragma unroll
    for (int i = 0; i < batch.value; ++i) {
      activation[i] = activations[i * jump];
      factor[i] = factors.load(i * step, i * jump);
    }
#pragma unroll
    for (int i = 0; i < batch.value; ++i)
#pragma unroll
      for (int j = 0; j < RUN; ++j)
        add_term<method>(to_float(activation[i].of[j]), factors.factor(factor[i], j), sums[j]);
    activations += batch.value * jump;
    factors.advance(batch.value * step, batch.value * jump);
    left -= batch.value * step;
  };
#pragma unroll 1
  while (left > step) add(std::integral_constant<int, 2>());
  if (left > 0) add(std::integral_constant<int, 1>());
  return channels - left;
}

// The maps of the slabs: one thread calls store_sum(slab, position, sum) for each position, slab after slab from 0 on.
// partial(slab) is the memory of a slab's map while it grows.
template <Method method, class Stored, class Machine, class Partial, class StoreSum>
GCF_DEVICE void sum_slabs(Machine& machine, const Stages<Stored>& stages, float* scratch, const Partial& partial,
                          const StoreSum& store_sum) {
  const Params& params = stages.params;
  const int thread = machine.thread(), positions = params.positions, groups = params.groups.count;
  const int group = params.positions.quotient(thread), place = thread - group * positions;
  const PackOfRun pack(place, params.positions);
  static_assert(STAGES == 2);
  auto current = stages.chunk_at(stages.first, params.slabs.begin(stages.first));
  stages.request(machine, current, 0);
  auto next = stages.after(current);
  stages.request(machine, next, 1);
  int stage = 0;
  bool begins_slab = true;
  // The channel of this chunk at which the next run of this thread's group begins.
  int next_run = group * RUN;
  float sums[RUN] = {};
  while (true) {
    // After this the chunk has arrived for all threads.
    machine.template wait_for_copies<1>();
    machine.sync();
    const int slab = current.slab - stages.first, channels = current.channels;
    const bool ends = current.ends_slab;
    const StagedMaps<Stored> a{stages.activations(stage), params.a.pitch}, g{stages.gradients(stage), params.g.pitch};
    if constexpr (weights_channels(method)) {
      weigh<method>(machine, params, a, g, 0, channels, scratch);
      machine.sync();
    }
    if (groups == 0) {
      float* map = partial(slab);
      for (int position = thread; position < positions; position += THREADS) {
        float sum[] = {begins_slab ? 0.0f : map[position]};
        sum_at<method, RUN>(a, g, scratch, position, 0, channels, 0, RUN, sum);
        if (ends)
          store_sum(slab, position, sum[0]);
        else
          map[position] = sum[0];
      }
    } else {
      if (group < groups) {
        const auto packs = [&](const Stored* data) {
          return reinterpret_cast<const Pack<Stored>*>(data + next_run * positions) + place;
        };
        const auto sum = [&](const auto& factors) {
          next_run += sum_packs<method>(packs(a.data), factors, positions, groups, channels - next_run, sums);
        };
        if constexpr (weights_channels(method))
          sum(FactorsOfChannels<float>(scratch + next_run, pack));
        else if (params.g.pitch == 1)
          sum(FactorsOfChannels<Stored>(g.data + next_run, pack));
        else
          sum(FactorsOfPositions<Stored>{packs(g.data)});
        next_run = ends ? group * RUN : next_run - channels;
      }
      if (ends) {
        machine.sync();
        if (group < groups) reinterpret_cast<Pack<float>*>(scratch)[thread] = {{sums[0], sums[1], sums[2], sums[3]}};
        machine.sync();
        add_group_sums(machine, params, scratch, [&](int position, float sum) { store_sum(slab, position, sum); });
#pragma unroll
        for (float& sum : sums) sum = 0.0f;
      }
    }
    if (ends && current.slab + 1 == stages.end) break;
    begins_slab = ends;
    // All threads are done with this chunk, so its stage is free.
    machine.sync();
    current = next;
    next = stages.after(next);
    stages.request(machine, next, stage);
    stage = 1 - stage;
  }
  machine.sync();
}

}  // namespace gradcam_fast::gpu
