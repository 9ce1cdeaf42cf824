// The arithmetic of one class activation map: what is computed per channel, per position and per pixel. Shared by every
// backend, and bound as it is by tests/csrc/white_box.cpp; free of tensors, threads, memory layouts and PyTorch.
#pragma once

#include "common/methods.h"

#include <cmath>

namespace gradcam_fast {

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

}  // namespace gradcam_fast
