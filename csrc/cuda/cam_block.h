// Class activation maps by thread blocks: one image and target per block, or per cluster of blocks that share the
// channels and then the rows. Device code, written against a Machine (a thread's place, barriers, shuffles, shared
// memory and copies to it) so that cuda/cam.cu runs it on a GPU and tests/csrc/gpu_on_host.h on the host.
//
// No atomics, and nothing depends on how many blocks share the work: channels are summed in slabs whose number follows
// from the number of channels alone, and the slabs' maps are added in order.
#pragma once

#include "cuda/heatmap.h"
#include "cuda/pipeline.h"

namespace gradcam_fast::gpu {

// What one thread of a block does.
template <Method method, class Stored, class Machine>
GCF_DEVICE void cam(Machine& machine, const Call& call) {
  const int rank = machine.rank();
  const int64_t index = machine.image() * call.targets + machine.target();
  const Planes<Stored> a{static_cast<const Stored*>(call.activations) + machine.image() * call.a.image, call.a,
                         call.columns};
  const Planes<Stored> g{
      static_cast<const Stored*>(call.gradients) + machine.image() * call.g.image + machine.target() * call.g.target,
      call.g, call.columns};
  float* room = machine.shared() + call.bytes_of_stages / sizeof(float);
  float* told = room + ROOM;
  float* partials = told + TOLD;
  const int positions = call.positions, own = call.own;
  const bool alone = call.blocks == 1;
  float* map = partials + static_cast<int64_t>(partial_maps(call)) * positions;
  if (call.spill != nullptr) map = call.spill + index * positions;

  const auto partial = [&](int slab) { return alone ? partials : partials + static_cast<int64_t>(slab) * positions; };
  const auto put = [&](int slab, int position, float sum) {
    if (alone)
      map[position] = slab == 0 ? sum : map[position] + sum;
    else
      partial(slab)[position] = sum;
  };
  if (call.staged > 0) {
    const Stages<Stored> stages{call, a, g, rank * own, (rank + 1) * own, reinterpret_cast<Stored*>(machine.shared())};
    sum_slabs<method>(machine, stages, room, partial, put);
  } else {
    for (int i = 0; i < own; ++i) {
      const int begin = call.slabs.begin(rank * own + i), end = call.slabs.begin(rank * own + i + 1);
      const auto put_here = [&](int position, float sum) { put(i, position, sum); };
      sum_slab<method>(machine, call, a, g, begin, end, room, put_here);
    }
  }
  const auto whole = [&](int position) {
    if (alone) return map[position];
    float sum = 0.0f;
    // Eight slabs at a time, of which there is a multiple, so that their loads are under way together.
    for (int slab = 0, there = 0, its = 0; slab < call.slabs.count; slab += MOST_BLOCKS) {
      float sums[MOST_BLOCKS];
#pragma unroll
      for (int i = 0; i < MOST_BLOCKS; ++i) {
        sums[i] = machine.of_rank(there, partial(its) + position);
        if (++its == own) its = 0, ++there;
      }
#pragma unroll
      for (int i = 0; i < MOST_BLOCKS; ++i) sum = slab + i == 0 ? sums[0] : sum + sums[i];
    }
    return sum;
  };
  if (!alone) {
    machine.arrive_at_cluster();
    machine.wait_for_cluster();
  }
  const Seen seen = rectify(machine, call, whole, map);
  if (!alone) machine.arrive_at_cluster();
  machine.sync();

  Affine affine{0.0f, 0.0f, 0.0f, 0.0f};
  float min = NAN, max = NAN;
  const bool finite = finish(machine, call, seen, map, told, affine, min, max);
  if (rank == 0 && machine.thread() == 0) {
    call.raw_min[index] = min;
    call.raw_max[index] = max;
  }
  const int64_t width = call.x.out;
  float* heatmap = call.heatmap + index * call.y.out * width;
  const int begin = call.rows.begin(rank), end = call.rows.begin(rank + 1);
  if (!finite) {
    for (int64_t i = begin * width + machine.thread(); i < end * width; i += THREADS) heatmap[i] = 0.0f;
  } else if (call.writers.pixels == 4) {
    write_rows<4>(machine, call, map, affine, begin, end, heatmap);
  } else {
    write_rows<1>(machine, call, map, affine, begin, end, heatmap);
  }
  // No block may end while another reads its partial maps.
  if (!alone) machine.wait_for_cluster();
}

}  // namespace gradcam_fast::gpu
