// The arithmetic of one class activation map: what is computed per channel, per
// source cell and per pixel. Shared by every backend and bound as it is by the
// white-box tests; it knows nothing of tensors, threads, memory layouts or PyTorch.
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

// ReLU that lets NaN and Inf through as NaN, so that a broken input is still
// visible in the sum when the image is judged.
GCF_INLINE float rectify(float x) { return x > 0.0f ? x : 0.0f * x; }

// One position's share of the Grad-CAM++ channel weight, with S = sum_ij A_k. The denominator
// may cancel to almost nothing, and is therefore found in double precision.
GCF_INLINE float plus_plus_term(float gradient, double activation_sum) {
  const float denominator = static_cast<float>(2.0 + activation_sum * gradient);
  return gradient > 0.0f && denominator > 0.0f ? gradient / denominator : 0.0f * gradient;
}

// XGrad-CAM's channel weight; a channel that sums to zero weighs nothing, unless it is broken.
// Both sums may cancel too, hence double.
GCF_INLINE float xgradcam_weight(double product_sum, double activation_sum) {
  return static_cast<float>(activation_sum == 0.0 ? 0.0 * product_sum : product_sum / activation_sum);
}

// What one position adds to the map under the position-by-position methods.
template <Method method>
GCF_INLINE float position_term(float activation, float gradient) {
  if constexpr (method == Method::layercam) return rectify(gradient) * activation;
  const float product = gradient * activation;
  return method == Method::elementwise ? rectify(product) : product;
}

// Where an output pixel of one axis reads: between samples `low` and `high`, at `fraction`.
struct SourceIndex {
  int32_t low;
  int32_t high;
  float fraction;
};

// Half-pixel centres: (2 dst + 1) in / (2 out) - 1/2, in integers so that it is exact at every size.
GCF_INLINE SourceIndex source_index(int64_t dst, int64_t in, int64_t out) {
  const int64_t denominator = 2 * out;
  int64_t numerator = (2 * dst + 1) * in - out;
  if (numerator < 0) numerator = 0;
  const int64_t low = numerator / denominator;
  const float fraction = static_cast<float>(numerator - low * denominator) / static_cast<float>(denominator);
  return {static_cast<int32_t>(low), static_cast<int32_t>(low + 1 < in ? low + 1 : in - 1), fraction};
}

// This form, unlike a (1 - t) + b t, returns a exactly when a == b: a flat map stays flat.
GCF_INLINE float lerp(float a, float b, float t) { return a + t * (b - a); }

// Inside one source cell a bilinear surface is extremal at the cell's corner SAMPLES:
// along each axis only the first and the last pixel of a cell can hold an extreme.
GCF_INLINE bool bounds_a_cell(int64_t dst, int64_t in, int64_t out) {
  const int32_t low = source_index(dst, in, out).low;
  return dst == 0 || dst == out - 1 || source_index(dst - 1, in, out).low != low ||
         source_index(dst + 1, in, out).low != low;
}

// The power of two that brings a map of this magnitude to where neither the range nor
// its reciprocal leaves float32; a power of two, so that nothing is rounded by it.
GCF_INLINE float safe_power(float magnitude) {
  return magnitude < 0x1p-63f ? 0x1p96f : magnitude > 0x1p63f ? 0x1p-64f : 1.0f;
}

// pixel -> clamp((pixel - shift) * scale, low, high)
struct Affine {
  float shift;
  float scale;
  float low;
  float high;
};

GCF_INLINE float apply(const Affine& affine, float pixel) {
  const float x = (pixel - affine.shift) * affine.scale;
  const float above = x > affine.low ? x : affine.low;
  return above < affine.high ? above : affine.high;
}

// The smallest reciprocal with which `range` itself reaches 1, so that the hottest pixel is exactly 1.
GCF_INLINE float reciprocal_reaching_one(float range) {
  const float reciprocal = 1.0f / range;
  return range * reciprocal < 1.0f ? nextafterf(reciprocal, INFINITY) : reciprocal;
}

// `min` and `max` are the extremes of the upsampled map after safe_power; a map that has
// nothing to show (flat, or without a positive maximum to divide by) becomes zeros.
GCF_INLINE Affine normalisation(Normalize normalize, float min, float max, float power) {
  if (normalize == Normalize::none) return {0.0f, 1.0f / power, -INFINITY, INFINITY};
  if (normalize == Normalize::max) {
    if (!(max > 0.0f)) return {0.0f, 0.0f, 0.0f, 0.0f};
    return {0.0f, reciprocal_reaching_one(max), -INFINITY, 1.0f};
  }
  if (!(max > min)) return {0.0f, 0.0f, 0.0f, 0.0f};
  return {min, reciprocal_reaching_one(max - min), 0.0f, 1.0f};
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
