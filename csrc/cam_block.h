// Class activation maps by thread blocks: one image and target per block, or per cluster of blocks that share the
// channels and then the rows. Device code, written against a Machine (a thread's place, barriers, shuffles, shared
// memory) so that cam_cuda.cu runs it on a GPU and tests/gpu_on_host.h thread by thread on the host.
//
// No atomics, and nothing depends on how many blocks share the work: channels are summed in slabs whose number follows
// from the number of channels alone, and the slabs' maps are added in order.
#pragma once

#include "gpu_sum.h"
#include "gpu_write.h"

namespace gradcam_fast::gpu {

// What one thread of a block does.
template <Method method, class Stored, class Machine>
GCF_DEVICE void cam(Machine& machine, const Call& call) {
  const int blocks = machine.blocks(), rank = machine.rank();
  const int64_t index = machine.image() * call.targets + machine.target();
  const Planes<Stored> a{static_cast<const Stored*>(call.activations) + machine.image() * call.a.image, call.a,
                         call.columns};
  const Planes<Stored> g{
      static_cast<const Stored*>(call.gradients) + machine.image() * call.g.image + machine.target() * call.g.target,
      call.g, call.columns};
  float* room = machine.shared();
  float* told = room + THREADS;
  float* partials = told + 2 * WARPS;
  const int positions = call.positions(), own = call.slabs() / blocks;
  float* map = blocks > 1 ? partials + static_cast<int64_t>(own) * positions : partials;
  if (call.spill != nullptr) map = call.spill + index * positions;

  for (int i = 0; i < own; ++i) {
    const int slab = rank * own + i;
    const bool alone = blocks == 1;
    sum_slab<method>(machine, call, a, g, call.slab_begin(slab), call.slab_begin(slab + 1), alone && i > 0, room,
                     alone ? map : partials + static_cast<int64_t>(i) * positions);
  }
  if (blocks > 1) {
    machine.sync_cluster();
    for (int position = machine.thread(); position < positions; position += THREADS) {
      float sum = 0.0f;
      for (int slab = 0; slab < call.slabs(); ++slab) {
        const float partial =
            machine.of_rank(slab / own, partials + static_cast<int64_t>(slab % own) * positions + position);
        sum = slab == 0 ? partial : sum + partial;
      }
      map[position] = sum;
    }
    // No block may end, nor go on, while another reads its partial maps.
    machine.sync_cluster();
  }

  Affine affine{0.0f, 0.0f, 0.0f, 0.0f};
  float min = NAN, max = NAN;
  const bool finite = finish(machine, call, map, told, affine, min, max);
  if (rank == 0 && machine.thread() == 0) {
    call.raw_min[index] = min;
    call.raw_max[index] = max;
  }
  float* heatmap = call.heatmap + index * call.height * call.width;
  const int64_t begin = call.height * rank / blocks, end = call.height * (rank + 1) / blocks;
  if (!finite) {
    for (int64_t i = begin * call.width + machine.thread(); i < end * call.width; i += THREADS) heatmap[i] = 0.0f;
  } else if (call.width % 4 == 0) {
    write_rows<4>(machine, call, map, affine, begin, end, heatmap);
  } else {
    write_rows<1>(machine, call, map, affine, begin, end, heatmap);
  }
}

}  // namespace gradcam_fast::gpu
