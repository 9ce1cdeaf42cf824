// Maps of channels on their way through shared memory. A thread that reads memory itself waits for the few numbers its
// registers can hold; here the next channels arrive by asynchronous copies while a block works on those that are there.
// Every sum is that of gpu_sum.h, number by number in the same order. Machine is what cam_block.h says.
#pragma once

#include "gpu_sum.h"

namespace gradcam_fast::gpu {

// Asks for `bytes`, sixteen at a time, of which all is a multiple.
template <class Machine>
GCF_DEVICE void fetch(Machine& machine, const void* from, int bytes, void* to) {
  const char* at = static_cast<const char*>(from);
#pragma unroll 1
  for (int i = machine.thread() * 16; i < bytes; i += THREADS * 16) machine.copy16(static_cast<char*>(to) + i, at + i);
}

// The slabs [first, end) cut into parts of as many channels as a stage holds, and the stages in shared memory that they
// go through by turns.
template <class Stored>
struct Stages {
  const Call& call;
  const Planes<Stored>&a, &g;
  int first, end;
  Stored* memory;

  // Channels of a slab, from `begin` on, and the stage they go through. An empty slab has one part without any.
  struct Part {
    int slab, begin, slab_end, stage;
  };

  GCF_DEVICE Part begin_of_slab(int slab, int stage) const {
    return {slab, call.slab_begin(slab), call.slab_begin(slab + 1), stage};
  }
  GCF_DEVICE bool ends_slab(const Part& part) const { return part.begin + call.staged >= part.slab_end; }
  GCF_DEVICE Part after(const Part& part) const {
    const int stage = part.stage + 1 < STAGES ? part.stage + 1 : 0;
    if (ends_slab(part)) return begin_of_slab(part.slab + 1, stage);
    return {part.slab, part.begin + call.staged, part.slab_end, stage};
  }
  GCF_DEVICE int channels(const Part& part) const { return ends_slab(part) ? part.slab_end - part.begin : call.staged; }

  GCF_DEVICE Stored* activations(const Part& part) const {
    return memory + part.stage * call.staged * (call.a.pitch + call.g.pitch);
  }
  GCF_DEVICE Stored* gradients(const Part& part) const { return activations(part) + call.staged * call.a.pitch; }

  // Asks for a part, or for nothing behind the last.
  template <class Machine>
  GCF_DEVICE void ask(Machine& machine, const Part& part) const {
    if (part.slab < end) {
      const int bytes = channels(part) * static_cast<int>(sizeof(Stored));
      fetch(machine, a.at(part.begin, 0), bytes * call.a.pitch, activations(part));
      fetch(machine, g.at(part.begin, 0), bytes * call.g.pitch, gradients(part));
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
  bool begins = true;
  float sum = 0.0f;
  while (true) {
    const int slab = here.slab - stages.first, channels = stages.channels(here);
    const StagedPlanes<Stored> a{stages.activations(here), call.a.pitch}, g{stages.gradients(here), call.g.pitch};
    const bool ends = stages.ends_slab(here);
    if constexpr (weighs_channels(method)) {
      weigh<method>(machine, call, a, g, 0, channels, room);
      machine.sync();
    }
    if (groups.count == 1) {
      float* map = partial(slab);
      for (int position = thread; position < positions; position += THREADS) {
        const float before = begins ? 0.0f : map[position];
        const float now = sum_at<method, RUN>(a, g, room, position, 0, channels, 0, RUN, before);
        if (ends)
          put(slab, position, now);
        else
          map[position] = now;
      }
    } else {
      if (begins) sum = 0.0f;
      if (place < positions && group < groups.count)
        sum = sum_at<method, RUN>(a, g, room, place, 0, channels, group * RUN, groups.count * RUN, sum);
      const auto put_here = [&](int position, float total) { put(slab, position, total); };
      if (ends) add_groups(machine, groups, positions, sum, room, put_here);
    }
    here = stages.after(here);
    if (here.slab == stages.end) break;
    begins = ends;
    // What comes now is there for all threads, and none is still at the part before, whose stage is free.
    machine.template wait_for_copies<STAGES - 2>();
    machine.sync();
    stages.ask(machine, next);
    next = stages.after(next);
  }
  machine.sync();
}

}  // namespace gradcam_fast::gpu
