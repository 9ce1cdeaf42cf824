// Maps of channels on their way through shared memory. A thread that reads memory itself waits for the few numbers its
// registers can hold; here the next channels arrive by asynchronous copies while a block works on those that are there.
// Every sum is that of gpu_sum.h, number by number in the same order. Machine is what cam_block.h says.
#pragma once

#include "gpu_sum.h"

namespace gradcam_fast::gpu {

// How many numbers behind a multiple of sixteen bytes an address is.
template <class Stored>
GCF_DEVICE int behind(const Stored* address) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(address) % 16 / sizeof(Stored));
}

// Asks for `count` numbers, sixteen bytes at a time but for the ends; `to` is as far behind a multiple of sixteen
// bytes.
template <class Stored, class Machine>
GCF_DEVICE void fetch(Machine& machine, const Stored* from, int count, Stored* to) {
  constexpr int many = 16 / sizeof(Stored);
  const int before = (many - behind(from)) % many;
  const int head = before < count ? before : count;
  const int vectors = (count - head) / many, tail = head + vectors * many;
  for (int i = machine.thread(); i < vectors; i += THREADS)
    machine.template copy<16>(to + head + i * many, from + head + i * many);
  const int end = machine.thread() < head ? machine.thread() : tail + machine.thread() - head;
  if (end < count) machine.template copy<sizeof(Stored)>(to + end, from + end);
}

// The slabs [first, end) cut into parts of as many channels as a stage holds, and the stages in shared memory that they
// go through by turns.
template <class Stored>
struct Stages {
  const Call& call;
  const Planes<Stored>&a, &g;
  int first, end;
  Stored* memory;

  // Some channels of a slab, those behind the first `before`, and the stage they go through. The last part of a slab
  // may have none.
  struct Part {
    int slab, slab_begin, slab_end, before, stage;
  };

  GCF_DEVICE Part begin_of_slab(int slab, int stage) const {
    return {slab, call.slab_begin(slab), call.slab_begin(slab + 1), 0, stage};
  }
  GCF_DEVICE bool is_last_of_slab(const Part& part) const {
    return part.before + call.staged >= call.most_channels_of_a_slab();
  }
  GCF_DEVICE Part after(const Part& part) const {
    const int stage = part.stage + 1 < STAGES ? part.stage + 1 : 0;
    if (is_last_of_slab(part)) return begin_of_slab(part.slab + 1, stage);
    return {part.slab, part.slab_begin, part.slab_end, part.before + call.staged, stage};
  }

  GCF_DEVICE int channels(const Part& part) const {
    const int left = part.slab_end - part.slab_begin - part.before;
    return left < 0 ? 0 : left < call.staged ? left : call.staged;
  }
  GCF_DEVICE const Stored* in_memory(const Planes<Stored>& of, const Part& part) const {
    return of.data + (part.slab_begin + part.before) * of.strides.channel;
  }
  GCF_DEVICE Stored* activations(const Part& part) const {
    return memory + part.stage * (size(call.a) + size(call.g)) + behind(in_memory(a, part));
  }
  GCF_DEVICE Stored* gradients(const Part& part) const {
    return memory + part.stage * (size(call.a) + size(call.g)) + size(call.a) + behind(in_memory(g, part));
  }
  GCF_DEVICE int64_t size(const Strides& of) const {
    return bytes_of_stage(of.pitch, call.staged, sizeof(Stored)) / sizeof(Stored);
  }

  // Asks for a part, or for nothing behind the last.
  template <class Machine>
  GCF_DEVICE void ask(Machine& machine, const Part& part) const {
    if (part.slab < end) {
      fetch(machine, in_memory(a, part), channels(part) * call.a.pitch, activations(part));
      fetch(machine, in_memory(g, part), channels(part) * call.g.pitch, gradients(part));
    }
    machine.end_of_copies();
  }
};

// The maps of the slabs: put(slab, position, sum) by one thread for each position, slab after slab from zero on.
// `partial(slab)` is where a slab's map is kept while it grows.
template <Method method, class Stored, class Machine, class Partial, class Put>
GCF_DEVICE void sum_slabs(Machine& machine, const Stages<Stored>& stages, float* room, const Partial& partial,
                          const Put& put) {
  const Call& call = stages.call;
  const int thread = machine.thread(), positions = call.positions();
  const Groups groups(positions);
  const int group = thread / groups.width, place = thread % groups.width;
  auto here = stages.begin_of_slab(stages.first, 0), next = here;
#pragma unroll 1
  for (int i = 0; i < STAGES; ++i, next = stages.after(next)) stages.ask(machine, next);
  machine.template wait_for_copies<STAGES - 1>();
  machine.sync();
  float sum = 0.0f;
  while (true) {
    const int slab = here.slab - stages.first, channels = stages.channels(here);
    const StagedPlanes<Stored> a{stages.activations(here), call.a.pitch}, g{stages.gradients(here), call.g.pitch};
    float* weights = room + here.before;
    if constexpr (weighs_channels(method)) {
      weigh_by_warps<method>(machine, call, a, g, 0, channels, weights);
      machine.sync();
    }
    const bool begins = here.before == 0, ends = stages.is_last_of_slab(here);
    if (groups.count == 1) {
      float* map = partial(slab);
      for (int position = thread; position < positions; position += THREADS) {
        const float before = begins ? 0.0f : map[position];
        const float now = sum_at<method>(a, g, weights, position, 0, channels, 0, 1, before);
        if (ends)
          put(slab, position, now);
        else
          map[position] = now;
      }
    } else {
      if (begins) sum = 0.0f;
      if (place < positions && group < groups.count)
        sum = sum_at<method>(a, g, weights, place, 0, channels, group, groups.count, sum);
      const auto put_here = [&](int position, float total) { put(slab, position, total); };
      if (ends) add_groups(machine, groups, positions, sum, room, put_here);
    }
    here = stages.after(here);
    if (here.slab == stages.end) break;
    // What comes now is there for all threads, and none is still at the part before, whose stage is free.
    machine.template wait_for_copies<STAGES - 2>();
    machine.sync();
    stages.ask(machine, next);
    next = stages.after(next);
  }
  machine.sync();
}

}  // namespace gradcam_fast::gpu
