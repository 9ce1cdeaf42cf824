// The types that feature maps are stored in, and their conversion to float32.
#pragma once

#include "common/inline.h"

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace gradcam_fast {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// IEEE half precision to float by integer arithmetic, which vectorises on every instruction set. The multiplication
// rebiases the exponent and normalises subnormal numbers.
GCF_INLINE float half_to_float(uint16_t bits) {
  union {
    uint32_t u;
    float f;
  } value;
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fffu) << 13;
  value.u = magnitude;
  value.f *= 0x1p112f;
  if (magnitude >= 0x0f800000u) value.u |= 0x7f800000u;
  value.u |= static_cast<uint32_t>(bits & 0x8000u) << 16;
  return value.f;
}

GCF_INLINE float bfloat16_to_float(uint16_t bits) {
  union {
    uint32_t u;
    float f;
  } value;
  value.u = static_cast<uint32_t>(bits) << 16;
  return value.f;
}

GCF_INLINE float to_float(float value) { return value; }
GCF_INLINE float to_float(BFloat16 value) { return bfloat16_to_float(value.bits); }
GCF_INLINE float to_float(Half value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  return half_to_float(value.bits);
#endif
}

}  // namespace gradcam_fast
