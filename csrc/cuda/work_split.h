// How the work on a map is split: channels into slabs, positions and rows among threads, pixels into cells. Everything
// is computed before the launch.
#pragma once

#include "common/inline.h"

#include <cstdint>

namespace gradcam_fast::gpu {

inline constexpr int WARP = 32;
inline constexpr int THREADS = 256;
inline constexpr int WARPS = THREADS / WARP;
// A power of two.
inline constexpr int MAX_BLOCKS_PER_CLUSTER = 8;
// A slab's weights are in shared memory, at most one per thread.
inline constexpr int MAX_CHANNELS_PER_SLAB = THREADS;
// How many numbers of one input a thread loads before it uses the first.
inline constexpr int LOADS_IN_FLIGHT = 8;
// How many adjacent channels form a run, which is summed together.
inline constexpr int RUN = 4;
// Stages in shared memory: the block works on one while the others arrive.
inline constexpr int STAGES = 2;

// Division of int32 numbers >= 0 by a divisor known before the launch, as a multiplication and a shift, because a GPU
// divides slowly. With 2^shift the smallest power of two >= the divisor d, and the multiplier above 2^(31 + shift) / d
// by at most one, the product exceeds the quotient by less than 1 / d (Granlund and Montgomery, Division by Invariant
// Integers using Multiplication, 1994, theorem 4.2).
class Divisor {
 public:
  explicit Divisor(int divisor) : divisor_(divisor) {
    while ((int64_t{1} << shift_) < divisor) ++shift_;
    multiplier_ = static_cast<uint32_t>((uint64_t{1} << (31 + shift_)) / divisor + 1);
  }
  GCF_INLINE operator int() const { return divisor_; }
  GCF_INLINE int quotient(int number) const {
    return static_cast<int>(static_cast<uint32_t>(number) * static_cast<uint64_t>(multiplier_) >> (31 + shift_));
  }
  GCF_INLINE int remainder(int number) const { return number - quotient(number) * divisor_; }

 private:
  int divisor_, shift_ = 0;
  uint32_t multiplier_;
};

// A number split into parts of equal size; the first `remainder` parts have one more.
struct EvenSplit {
  int size, remainder;

  GCF_INLINE EvenSplit(int whole, const Divisor& parts)
      : size(parts.quotient(whole)), remainder(parts.remainder(whole)) {}
  GCF_INLINE int begin(int part) const { return size * part + (part < remainder ? part : remainder); }
};

// One axis: `in` samples of the map, `out` pixels of the heatmap. fits_int32() tells which pairs are allowed.
struct Axis {
  int in, out;
  Divisor twice_in, twice_out;
  float half_over_out;

  Axis(int64_t in, int64_t out)
      : in(static_cast<int>(in)),
        out(static_cast<int>(out)),
        twice_in(static_cast<int>(2 * in)),
        twice_out(static_cast<int>(2 * out)),
        half_over_out(static_cast<float>(0.5 / static_cast<double>(out))) {}

  // Where a pixel reads, in units of 1 / (2 out) samples from sample 0.
  GCF_INLINE int source_offset(int pixel) const { return (2 * pixel + 1) * in - out; }
};

// Whether all offsets on an axis, and the numerators of the divisions that find them, fit in 32 bits.
inline bool fits_int32(int64_t in, int64_t out) {
  const int64_t most = int64_t{1} << 29;
  return in < most && out < most && 2 * in * out + in + out < int64_t{1} << 31;
}

// Channels split into slabs; the number of slabs follows from the number of channels alone. Slabs begin at a multiple
// of eight channels, hence of sixteen bytes. If there are few channels, some slabs are empty.
struct Slabs {
  int channels, count;
  EvenSplit octets;

  explicit Slabs(int channels)
      : channels(channels),
        count((channels + MAX_BLOCKS_PER_CLUSTER * MAX_CHANNELS_PER_SLAB - 1) /
              (MAX_BLOCKS_PER_CLUSTER * MAX_CHANNELS_PER_SLAB) * MAX_BLOCKS_PER_CLUSTER),
        octets((channels + 7) / 8, Divisor(count)) {}
  GCF_INLINE int begin(int slab) const {
    const int begin = octets.begin(slab) * 8;
    return begin < channels ? begin : channels;
  }
};

// How threads split a small map: `count` groups, each with one thread per position, take runs of channels in turn. A
// group has RUN sums per position, one per channel of its runs. There are no groups if the map has more positions than
// threads.
struct Groups {
  int count;

  static constexpr int MOST = 8;
  explicit Groups(int positions) : count(positions <= THREADS / MOST ? MOST : THREADS / positions) {}
};

// How threads split the rows of a heatmap: each group writes whole rows, with `stores` stores of `pixels` pixels per
// row.
struct Writers {
  int pixels;
  Divisor stores, groups;

  explicit Writers(int width)
      : pixels(width % 4 == 0 ? 4 : 1), stores(width / pixels), groups(stores < THREADS ? THREADS / stores : 1) {}
};

}  // namespace gradcam_fast::gpu
