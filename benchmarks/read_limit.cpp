// The lower limit of a map's time: reads every byte of A and G once and writes every byte of the map once, with
// PyTorch's threads. The fused kernel is measured against it; the values it writes mean nothing.
#define TORCH_TARGET_VERSION 0x020a000000000000
#include <torch/csrc/stable/ops.h>

#include <cstdint>

namespace {

constexpr int64_t ACCUMULATORS = 64;

// Integer sums, which the compiler may vectorise whatever the bits mean.
__attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"))) uint64_t read_words(const uint32_t* words,
                                                                                                  int64_t count) {
  uint32_t accumulators[ACCUMULATORS] = {};
  int64_t i = 0;
  for (; i + ACCUMULATORS <= count; i += ACCUMULATORS)
    for (int64_t j = 0; j < ACCUMULATORS; ++j) accumulators[j] += words[i + j];
  for (; i < count; ++i) accumulators[0] += words[i];
  uint64_t sum = 0;
  for (int64_t j = 0; j < ACCUMULATORS; ++j) sum += accumulators[j];
  return sum;
}

__attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"))) void write_words(float* out, float value,
                                                                                               int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = value;
}

int64_t bound(int64_t total, int64_t part, int64_t parts) { return total * part / parts; }

}  // namespace

// Words are 4 bytes. Images are read and written one after another, as in the kernel, by `threads` threads.
extern "C" void read_limit(const uint32_t* a, int64_t a_words, const uint32_t* g, int64_t g_words, float* out,
                           int64_t out_words, int64_t images) {
  const int64_t threads = torch::stable::get_num_threads();
  torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      // With fewer images than threads each image is cut into pieces.
      const int64_t pieces = images >= threads ? images : threads;
      for (int64_t piece = bound(pieces, part, threads); piece < bound(pieces, part + 1, threads); ++piece) {
        uint64_t sum = 0;
        const int64_t a0 = bound(a_words, piece, pieces), a1 = bound(a_words, piece + 1, pieces);
        const int64_t g0 = bound(g_words, piece, pieces), g1 = bound(g_words, piece + 1, pieces);
        const int64_t o0 = bound(out_words, piece, pieces), o1 = bound(out_words, piece + 1, pieces);
        sum += read_words(a + a0, a1 - a0);
        sum += read_words(g + g0, g1 - g0);
        write_words(out + o0, static_cast<float>(sum), o1 - o0);
      }
    }
  });
}
