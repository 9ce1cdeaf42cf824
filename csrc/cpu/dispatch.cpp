// Compiles the CPU kernels once per instruction set, and chooses one set when the library is first used.
//
// Whole namespaces are compiled under a target pragma instead of single functions under target_clones: with
// target_clones a lambda inside a cloned function is compiled for the baseline and, where it is not inlined, called.
#include "cpu/kernels.h"

#include <cstdlib>

#if !defined(__GNUC__)
#error "the CPU kernels need GCC or Clang: they are written with vector extensions"
#endif

#if defined(__x86_64__) && !defined(__clang__)
#define GCF_X86_LEVELS
#endif

namespace gradcam_fast {

namespace baseline {
#include "simd.inl"

#include "channels_last.inl"
#include "planar.inl"
#include "skinny_mm.inl"
#include "upsample.inl"

#include "kernels.inl"
}  // namespace baseline

#if defined(GCF_X86_LEVELS)
#pragma GCC push_options
#pragma GCC target("avx2,f16c,bmi,bmi2")
#define GCF_X86_64_V3
namespace x86_64_v3 {
#include "simd.inl"

#include "channels_last.inl"
#include "planar.inl"
#include "skinny_mm.inl"
#include "upsample.inl"

#include "kernels.inl"
}  // namespace x86_64_v3
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")
namespace x86_64_v4 {
#include "simd.inl"

#include "channels_last.inl"
#include "planar.inl"
#include "skinny_mm.inl"
#include "upsample.inl"

#include "kernels.inl"
}  // namespace x86_64_v4
#undef GCF_X86_64_V3
#pragma GCC pop_options
#endif

namespace {

#if defined(__x86_64__)
constexpr char BASELINE[] = "x86-64";
#elif defined(__aarch64__)
constexpr char BASELINE[] = "AArch64";
#else
constexpr char BASELINE[] = "the compiler's default";
#endif

#if defined(GCF_X86_LEVELS)
// The environment variable that limits the instruction sets of PyTorch limits those of this library, too.
bool allowed(const char* capability) {
  const char* limit = std::getenv("ATEN_CPU_CAPABILITY");
  if (limit == nullptr) return true;
  if (std::strcmp(limit, "default") == 0) return false;
  return std::strcmp(limit, "avx2") != 0 || std::strcmp(capability, "avx2") == 0;
}
#endif

Kernels choose() {
#if defined(GCF_X86_LEVELS)
  __builtin_cpu_init();
  // All features named by the pragmas above: a virtual machine may hide any of them.
  const bool v3 = allowed("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && allowed("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (v4) return x86_64_v4::table("x86-64-v4");
  if (v3) return x86_64_v3::table("x86-64-v3");
#endif
  return baseline::table(BASELINE);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels chosen = choose();
  return chosen;
}

}  // namespace gradcam_fast

// Read by gradcam_fast.backend().
extern "C" __attribute__((visibility("default"))) const char* gradcam_fast_instruction_set() {
  return gradcam_fast::kernels().instruction_set;
}
