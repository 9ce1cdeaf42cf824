// How the work on a map is shared: channels among slabs, positions and rows among threads, pixels among cells. All of
// it is worked out before the launch.
#pragma once

#include "cuda/division.h"

namespace gradcam_fast::gpu {

inline constexpr int WARP = 32;
inline constexpr int THREADS = 256;
inline constexpr int WARPS = THREADS / WARP;
// Blocks of a cluster: any power of two up to this one.
inline constexpr int MOST_BLOCKS = 8;
// A slab's weights are in shared memory, one per thread at most.
inline constexpr int CHANNELS_PER_SLAB = THREADS;
// How many numbers of a kind a thread asks for at a time.
inline constexpr int AT_ONCE = 8;
// Channels that follow one another and are added up at a time.
inline constexpr int RUN = 4;
// Stages of the way through shared memory: one is worked on while the others arrive.
inline constexpr int STAGES = 2;

// One axis of map and heatmap: so many samples, so many pixels, whose product can_be_sized() allows.
struct Axis {
  int in, out;
  Divisor twice_in, twice_out;
  float over_out;

  Axis(int64_t in, int64_t out)
      : in(static_cast<int>(in)),
        out(static_cast<int>(out)),
        twice_in(static_cast<int>(2 * in)),
        twice_out(static_cast<int>(2 * out)),
        over_out(static_cast<float>(0.5 / static_cast<double>(out))) {}

  // Where a pixel reads, in parts of 2 out from sample 0.
  GCF_INLINE int place_of(int pixel) const { return (2 * pixel + 1) * in - out; }
};

// Whether no place on an axis, nor what is divided to find one, leaves 32 bits.
inline bool can_be_sized(int64_t in, int64_t out) {
  const int64_t most = int64_t{1} << 29;
  return in < most && out < most && 2 * in * out + in + out < int64_t{1} << 31;
}

// Channels in slabs, whose number follows from that of the channels alone. Slabs begin at a multiple of eight channels,
// which is one of sixteen bytes, too. Where there are few, some are empty.
struct Slabs {
  int channels, count;
  Parts eights;

  explicit Slabs(int channels)
      : channels(channels),
        count((channels + MOST_BLOCKS * CHANNELS_PER_SLAB - 1) / (MOST_BLOCKS * CHANNELS_PER_SLAB) * MOST_BLOCKS),
        eights((channels + 7) / 8, Divisor(count)) {}
  GCF_INLINE int begin(int slab) const {
    const int begin = eights.begin(slab) * 8;
    return begin < channels ? begin : channels;
  }
};

// How threads share a small map: there are `count` groups of as many threads as positions, and runs of channels go to
// them by turns. A group has RUN sums for each position, one for each channel of its runs. None if the map is large.
struct Groups {
  int count;

  static constexpr int MOST = 8;
  explicit Groups(int positions) : count(positions <= THREADS / MOST ? MOST : THREADS / positions) {}
};

// How threads share rows of the heatmap: a group of them has a row, so many pixels to a store, so many stores to a row.
struct Writers {
  int pixels;
  Divisor stores, groups;

  explicit Writers(int width)
      : pixels(width % 4 == 0 ? 4 : 1), stores(width / pixels), groups(stores < THREADS ? THREADS / stores : 1) {}
};

}  // namespace gradcam_fast::gpu
