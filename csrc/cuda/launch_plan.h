// How a launch is spread over the device: how many blocks share an image, and whether the channels go through shared
// memory. This changes the time of a launch, and no bit of its result.
#pragma once

#include "cuda/channel_sums.h"

#include <algorithm>

namespace gradcam_fast::gpu {

// As many blocks as a multiprocessor's registers allow, so that some have loads in flight while others compute.
inline constexpr int BLOCKS_PER_MULTIPROCESSOR = 4;
// Stages of fewer channels are not worth their barriers.
inline constexpr int MIN_STAGE_CHANNELS = 8;
// Shared memory that the driver reserves for each block.
inline constexpr int64_t RESERVED_BYTES_PER_BLOCK = 1024;

// The limits of the device and of the code that was built for it.
struct DeviceLimits {
  int multiprocessors, shared_bytes_per_block, shared_bytes_per_multiprocessor;
  bool clusters, asynchronous_copies;
};

// The number of blocks per map that fills every multiprocessor, as long as their shared memory suffices.
inline int blocks_for(Params params, int64_t maps, const DeviceLimits& limits) {
  int blocks = 1;
  while (limits.clusters && blocks < MAX_BLOCKS_PER_CLUSTER &&
         maps * blocks < BLOCKS_PER_MULTIPROCESSOR * limits.multiprocessors)
    blocks *= 2;
  const auto fits = [&](int block_count) {
    params.split_among(block_count);
    return shared_bytes(params) <= limits.shared_bytes_per_block;
  };
  if (blocks > 1 && !fits(blocks)) blocks = MAX_BLOCKS_PER_CLUSTER;
  return fits(blocks) ? blocks : 1;
}

// Whether the channels are contiguous, a multiple of RUN, and each image's channels begin and end at a multiple of
// sixteen bytes.
inline bool can_be_staged(const Params& params, Method method, int64_t maps, int bytes_per_number) {
  const auto is_aligned = [&](const void* data, const Strides& strides) {
    const auto whole = [&](int64_t numbers) { return numbers * bytes_per_number % 16 == 0; };
    return strides.pitch > 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0 &&
           whole(static_cast<int64_t>(params.slabs.channels) * strides.pitch) &&
           (maps == params.targets || whole(strides.image)) && (params.targets == 1 || whole(strides.target));
  };
  // These two methods pool one number per position, so a gradient that is one number per channel does not suit them;
  // and there must be several positions.
  const bool pools_positions = method == Method::gradcam_plus_plus || method == Method::xgradcam;
  const bool pools = params.positions > 1 && params.a.pitch == params.positions &&
                     !(pools_positions && params.g.pitch != params.positions);
  return pools && params.slabs.channels % RUN == 0 && is_aligned(params.activations, params.a) &&
         is_aligned(params.gradients, params.g);
}

// The number of channels per stage, or 0 if the maps are better read in place. A stage holds as many channels as fit in
// the shared memory of a multiprocessor's blocks, but few enough that a block begins to work while channels are still
// arriving.
inline int channels_per_stage(Params params, Method method, int64_t maps, int bytes_per_number,
                              const DeviceLimits& limits) {
  if (!limits.asynchronous_copies || !can_be_staged(params, method, maps, bytes_per_number)) return 0;
  const auto fits = [&](int channels, int64_t resident) {
    params.set_stage(channels, bytes_per_number);
    const int64_t bytes = shared_bytes(params);
    return bytes <= limits.shared_bytes_per_block &&
           resident * (bytes + RESERVED_BYTES_PER_BLOCK) <= limits.shared_bytes_per_multiprocessor;
  };
  const int64_t per_multiprocessor = (maps * params.blocks + limits.multiprocessors - 1) / limits.multiprocessors;
  int64_t resident = std::clamp<int64_t>(per_multiprocessor, 1, BLOCKS_PER_MULTIPROCESSOR);
  // Eight channels are a multiple of sixteen bytes in every stored type.
  const auto whole = [](int channels) { return (channels + 7) / 8 * 8; };
  // At least one run per group of threads, and enough channels to be worth the barriers.
  const int fewest = whole(std::max(MIN_STAGE_CHANNELS, RUN * params.groups.count));
  // At least two blocks per multiprocessor: while one waits at a barrier, the other works.
  while (resident > 2 && !fits(fewest, resident)) --resident;
  if (!fits(fewest, resident)) return 0;
  const int slab = params.slabs.begin(1);
  // If there are many channels, a block begins to work while half of them are still arriving.
  int channels = whole(std::min(slab, std::max(WARP, (slab * params.slabs_per_block + STAGES - 1) / STAGES)));
  while (!fits(channels, resident)) channels -= 8;
  // The same number of stages, but all of one size.
  const int stages = (slab + channels - 1) / channels;
  return whole((slab + stages - 1) / stages);
}

// Sets how many blocks share a map, and how many channels a stage holds. There may be more blocks than fill the device,
// if the stages fit in shared memory only then.
inline void plan_launch(Params& params, Method method, int64_t maps, int bytes_per_number, const DeviceLimits& limits) {
  const int fewest = blocks_for(params, maps, limits);
  for (int blocks = fewest; blocks == fewest || (limits.clusters && blocks <= MAX_BLOCKS_PER_CLUSTER); blocks *= 2) {
    params.split_among(blocks);
    params.set_stage(channels_per_stage(params, method, maps, bytes_per_number, limits), bytes_per_number);
    if (params.stage_channels > 0) return;
  }
  params.split_among(fewest);
}

}  // namespace gradcam_fast::gpu
