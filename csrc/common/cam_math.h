// The arithmetic of one class activation map: what is computed per channel, per position and per pixel. Meant for every
// backend and bound as it is by tests/csrc/white_box.cpp; free of tensors, threads, memory layouts and PyTorch.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define GCF_INLINE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define GCF_INLINE inline __attribute__((always_inline))
#else
#define GCF_INLINE inline
#endif

namespace gradcam_fast {

// The numbers are the schema's; gradcam_fast/contract.py lists the names in this order.
enum class Method : int64_t { gradcam, gradcam_plus_plus, xgradcam, hirescam, elementwise, layercam };
enum class Normalize : int64_t { minmax, max, none };

inline constexpr int64_t method_count = 6;
inline constexpr int64_t normalize_count = 3;

// A method either weighs whole channels (one number per channel, found by pooling)
// or multiplies position by position; nothing else distinguishes the six.
GCF_INLINE constexpr bool weighs_channels(Method method) {
  return method == Method::gradcam || method == Method::gradcam_plus_plus || method == Method::xgradcam;
}

// Whether a gradient that is the same at all positions of a channel makes one factor of it; Grad-CAM's weight is that.
GCF_INLINE constexpr bool factors_uniform(Method method) {
  return method == Method::gradcam || method == Method::hirescam || method == Method::layercam;
}

// What Grad-CAM++ divides by, with S = sum_ij A_k. Where S is negative it may cancel to almost nothing, hence double.
GCF_INLINE float plus_plus_denominator(float gradient, double activation_sum) {
  return static_cast<float>(2.0 + activation_sum * gradient);
}

// One position's share of the Grad-CAM++ channel weight; T is float or a vector of floats.
template <class T>
GCF_INLINE void plus_plus_term(const T& gradient, const T& denominator, T& term) {
  term = (gradient > 0.0f) & (denominator > 0.0f) ? gradient / denominator : 0.0f * gradient;
}

// XGrad-CAM's channel weight; a channel that sums to zero weighs nothing, unless it is broken.
// Both sums may cancel too, hence double.
GCF_INLINE float xgradcam_weight(double product_sum, double activation_sum) {
  return static_cast<float>(activation_sum == 0.0 ? 0.0 * product_sum : product_sum / activation_sum);
}

// What one position adds to the map under the position-by-position methods; T is float or a vector of floats.
// ReLU lets NaN and Inf through as NaN, so that a broken input is still visible in the sum when the image is judged.
template <Method method, class T>
GCF_INLINE void position_term(const T& activation, const T& gradient, T& term) {
  if constexpr (method == Method::layercam) {
    term = (gradient > 0.0f ? gradient : 0.0f * gradient) * activation;
  } else {
    term = gradient * activation;
    if constexpr (method == Method::elementwise) term = term > 0.0f ? term : 0.0f * term;
  }
}

// This form, unlike a (1 - t) + b t, returns a exactly when a == b: a flat map stays flat.
GCF_INLINE float lerp(float a, float b, float t) { return a + t * (b - a); }

// Powers of two that bring a map to where neither its range nor the reciprocal of that leaves float32: the first from
// the map's magnitude, the second, if the map can bear it, from the extent of what will be seen of it.
GCF_INLINE float power_down(float magnitude) { return magnitude > 0x1p63f ? 0x1p-64f : 1.0f; }
GCF_INLINE float power_up(float magnitude, float extent) {
  return extent < 0x1p-63f && magnitude < 0x1p30f ? 0x1p96f : 1.0f;
}

// A number of the two, `b` if `a` is none; on a device one instruction, of whose zeros the positive one is the larger.
GCF_INLINE float larger(float a, float b) {
#if defined(__CUDA_ARCH__)
  return fmaxf(a, b);
#else
  return a > b ? a : b;
#endif
}
GCF_INLINE float smaller(float a, float b) {
#if defined(__CUDA_ARCH__)
  return fminf(a, b);
#else
  return a < b ? a : b;
#endif
}

// pixel -> clamp((pixel - shift) * scale, low, high)
struct Affine {
  float shift;
  float scale;
  float low;
  float high;
};

GCF_INLINE float apply(const Affine& affine, float pixel) {
  return smaller(larger((pixel - affine.shift) * affine.scale, affine.low), affine.high);
}

// The smallest reciprocal with which `range` itself reaches 1, so that the hottest pixel is exactly 1.
GCF_INLINE float reciprocal_reaching_one(float range) {
  const float reciprocal = 1.0f / range;
  return range * reciprocal < 1.0f ? nextafterf(reciprocal, INFINITY) : reciprocal;
}

// What the normalisation divides by: the extent of the map under `minmax`, its maximum under `max`.
GCF_INLINE float extent_of(Normalize normalize, float min, float max) {
  return normalize == Normalize::max ? max : max - min;
}

// `min` and `max` are the extremes of the upsampled map, scaled by `power`; a map that has nothing to show (flat, or
// without a positive maximum to divide by) becomes zeros.
GCF_INLINE Affine normalisation(Normalize normalize, float min, float max, float power) {
  if (normalize == Normalize::none) return {0.0f, 1.0f / power, -INFINITY, INFINITY};
  const float extent = extent_of(normalize, min, max);
  if (!(extent > 0.0f && 1.0f / extent < INFINITY)) return {0.0f, 0.0f, 0.0f, 0.0f};
  if (normalize == Normalize::max) return {0.0f, reciprocal_reaching_one(extent), -INFINITY, 1.0f};
  return {min, reciprocal_reaching_one(extent), 0.0f, 1.0f};
}

// IEEE half precision to float by integer arithmetic, because it vectorises on every
// instruction set; the multiplication rebiases the exponent and normalises subnormals.
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

}  // namespace gradcam_fast
