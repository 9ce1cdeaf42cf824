// How a call of the CUDA kernel is spread over a device: how many blocks share an image, and whether its channels go
// through shared memory. Changes what a call costs, and no bit of what it gives.
#pragma once

#include "cuda/channel_sums.h"

#include <algorithm>

namespace gradcam_fast::gpu {

// Enough registers for four blocks of a processor, so that there are always loads under way.
inline constexpr int BLOCKS_PER_PROCESSOR = 4;
// Fewer channels are not worth a stage's barriers.
inline constexpr int LEAST_OF_STAGE = 8;
// What the driver keeps of a processor's shared memory for each block.
inline constexpr int64_t BYTES_KEPT_PER_BLOCK = 1024;

// What a device, and the code that was built for it, offer a kernel.
struct Offer {
  int processors, shared_bytes_of_block, shared_bytes_of_processor;
  bool clusters, asynchronous_copies;
};

// As many blocks for a map as fill every processor, while their shared memory lasts.
inline int blocks_for(Call call, int64_t maps, const Offer& offer) {
  int blocks = 1;
  while (offer.clusters && blocks < MOST_BLOCKS && maps * blocks < BLOCKS_PER_PROCESSOR * offer.processors) blocks *= 2;
  const auto fits = [&](int among) {
    call.share(among);
    return shared_bytes(call) <= offer.shared_bytes_of_block;
  };
  if (blocks > 1 && !fits(blocks)) blocks = MOST_BLOCKS;
  return fits(blocks) ? blocks : 1;
}

// Whether channels follow one another, in runs, and each image's begin and end at a multiple of sixteen bytes.
inline bool can_be_staged(const Call& call, Method method, int64_t maps, int bytes_per_number) {
  const auto even = [&](const void* data, const Strides& strides) {
    const auto whole = [&](int64_t numbers) { return numbers * bytes_per_number % 16 == 0; };
    return strides.pitch > 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0 &&
           whole(static_cast<int64_t>(call.slabs.channels) * strides.pitch) &&
           (maps == call.targets || whole(strides.image)) && (call.targets == 1 || whole(strides.target));
  };
  // A number for each position is what these two pool; and there have to be several.
  const bool pooled = method == Method::gradcam_plus_plus || method == Method::xgradcam;
  const bool pools =
      call.positions > 1 && call.a.pitch == call.positions && !(pooled && call.g.pitch != call.positions);
  return pools && call.slabs.channels % RUN == 0 && even(call.activations, call.a) && even(call.gradients, call.g);
}

// How many channels a stage holds: what a processor's blocks have room for, if that is enough to keep loads under way,
// and no more than lets a block begin to work while channels are still arriving; zero if maps are better read in place.
inline int channels_of_stage(Call call, Method method, int64_t maps, int bytes_per_number, const Offer& offer) {
  if (!offer.asynchronous_copies || !can_be_staged(call, method, maps, bytes_per_number)) return 0;
  const auto fits = [&](int channels, int64_t resident) {
    call.stage(channels, bytes_per_number);
    const int64_t bytes = shared_bytes(call);
    return bytes <= offer.shared_bytes_of_block &&
           resident * (bytes + BYTES_KEPT_PER_BLOCK) <= offer.shared_bytes_of_processor;
  };
  const int64_t per_processor = (maps * call.blocks + offer.processors - 1) / offer.processors;
  int64_t resident = std::clamp<int64_t>(per_processor, 1, BLOCKS_PER_PROCESSOR);
  // Eight channels are a multiple of sixteen bytes in every type.
  const auto whole = [](int channels) { return (channels + 7) / 8 * 8; };
  // A run for each group of threads, and not so few that barriers take the time.
  const int fewest = whole(std::max(LEAST_OF_STAGE, RUN * call.groups.count));
  // Two blocks of a processor at least: while one waits at a barrier the other works.
  while (resident > 2 && !fits(fewest, resident)) --resident;
  if (!fits(fewest, resident)) return 0;
  const int slab = call.slabs.begin(1);
  // A block begins to work while the other half of its channels arrive, if they are many.
  int channels = whole(std::min(slab, std::max(WARP, (slab * call.own + STAGES - 1) / STAGES)));
  while (!fits(channels, resident)) channels -= 8;
  // As many stages, but of one size.
  const int stages = (slab + channels - 1) / channels;
  return whole((slab + stages - 1) / stages);
}

// Sets how many blocks share a map, which are more than fill the device if it takes that to have room for stages, and
// how many channels a stage holds.
inline void spread(Call& call, Method method, int64_t maps, int bytes_per_number, const Offer& offer) {
  const int fewest = blocks_for(call, maps, offer);
  for (int blocks = fewest; blocks == fewest || (offer.clusters && blocks <= MOST_BLOCKS); blocks *= 2) {
    call.share(blocks);
    call.stage(channels_of_stage(call, method, maps, bytes_per_number, offer), bytes_per_number);
    if (call.staged > 0) return;
  }
  call.share(fewest);
}

}  // namespace gradcam_fast::gpu
