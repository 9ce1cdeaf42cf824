// The kernel: class activation maps by thread blocks. Each image and target has one block, or one cluster of blocks
// that split the channels, and then the rows of the heatmap. The code is written against a Machine, which provides the
// thread's index, barriers, shuffles, shared memory and copies to it: cuda/cam.cu has one for the GPU,
// tests/csrc/gpu_on_host.h one for the host.
//
// There are no atomics, and the result does not depend on the number of blocks: channels are summed in slabs whose
// number follows from the number of channels alone, and the maps of the slabs are added in order.
#pragma once

#include "cuda/heatmap.h"
#include "cuda/pipeline.h"

namespace gradcam_fast::gpu {

// The work of one thread.
template <Method method, class Stored, class Machine>
GCF_DEVICE void cam(Machine& machine, const Params& params) {
  const int rank = machine.rank();
  const int64_t index = machine.image() * params.targets + machine.target();
  const GlobalMaps<Stored> a{static_cast<const Stored*>(params.activations) + machine.image() * params.a.image,
                             params.a, params.columns};
  const GlobalMaps<Stored> g{static_cast<const Stored*>(params.gradients) + machine.image() * params.g.image +
                                 machine.target() * params.g.target,
                             params.g, params.columns};
  float* scratch = machine.shared() + params.bytes_of_stages / sizeof(float);
  float* exchange = scratch + SCRATCH_FLOATS;
  float* partials = exchange + EXCHANGE_FLOATS;
  const int positions = params.positions, own_slabs = params.slabs_per_block;
  const bool alone = params.blocks == 1;
  float* map = partials + static_cast<int64_t>(partial_maps(params)) * positions;
  if (params.spill != nullptr) map = params.spill + index * positions;

  const auto partial = [&](int slab) { return alone ? partials : partials + static_cast<int64_t>(slab) * positions; };
  const auto store_sum = [&](int slab, int position, float sum) {
    if (alone)
      map[position] = slab == 0 ? sum : map[position] + sum;
    else
      partial(slab)[position] = sum;
  };
  if (params.stage_channels > 0) {
    const Stages<Stored> stages{
        params, a, g, rank * own_slabs, (rank + 1) * own_slabs, reinterpret_cast<Stored*>(machine.shared())};
    sum_slabs<method>(machine, stages, scratch, partial, store_sum);
  } else {
    for (int i = 0; i < own_slabs; ++i) {
      const int begin = params.slabs.begin(rank * own_slabs + i), end = params.slabs.begin(rank * own_slabs + i + 1);
      const auto store_slab_sum = [&](int position, float sum) { store_sum(i, position, sum); };
      sum_slab<method>(machine, params, a, g, begin, end, scratch, store_slab_sum);
    }
  }
  const auto sum_of_slabs = [&](int position) {
    if (alone) return map[position];
    float sum = 0.0f;
    // Eight slabs at a time, so that their loads are in flight together; the number of slabs is a multiple of eight.
    for (int slab = 0, owner = 0, slab_of_owner = 0; slab < params.slabs.count; slab += MAX_BLOCKS_PER_CLUSTER) {
      float sums[MAX_BLOCKS_PER_CLUSTER];
#pragma unroll
      for (int i = 0; i < MAX_BLOCKS_PER_CLUSTER; ++i) {
        sums[i] = machine.load_from_rank(owner, partial(slab_of_owner) + position);
        if (++slab_of_owner == own_slabs) slab_of_owner = 0, ++owner;
      }
#pragma unroll
      for (int i = 0; i < MAX_BLOCKS_PER_CLUSTER; ++i) sum = slab + i == 0 ? sums[0] : sum + sums[i];
    }
    return sum;
  };
  if (!alone) {
    machine.arrive_at_cluster();
    machine.wait_for_cluster();
  }
  const MapScan scan = rectify(machine, params, sum_of_slabs, map);
  if (!alone) machine.arrive_at_cluster();
  machine.sync();

  Affine affine{0.0f, 0.0f, 0.0f, 0.0f};
  float min = NAN, max = NAN;
  const bool finite = finish(machine, params, scan, map, exchange, affine, min, max);
  if (rank == 0 && machine.thread() == 0) {
    params.raw_min[index] = min;
    params.raw_max[index] = max;
  }
  const int64_t width = params.x.out;
  float* heatmap = params.heatmap + index * params.y.out * width;
  const int begin = params.rows.begin(rank), end = params.rows.begin(rank + 1);
  if (!finite) {
    for (int64_t i = begin * width + machine.thread(); i < end * width; i += THREADS) heatmap[i] = 0.0f;
  } else if (params.writers.pixels == 4) {
    write_rows<4>(machine, params, map, affine, begin, end, heatmap);
  } else {
    write_rows<1>(machine, params, map, affine, begin, end, heatmap);
  }
  // A block must not end while another reads its partial maps.
  if (!alone) machine.wait_for_cluster();
}

}  // namespace gradcam_fast::gpu
