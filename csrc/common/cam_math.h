// The arithmetic of one class activation map: per channel, per position and per pixel. Shared by all backends, and
// tested function by function through tests/csrc/white_box.cpp. No tensors, threads, memory layouts or PyTorch.
#pragma once

#include "common/methods.h"

#include <cmath>

namespace gradcam_fast {

// The denominator of Grad-CAM++, with S = sum_ij A_k. It is computed in float64 because a negative S may cancel it to
// almost nothing.
GCF_INLINE float plus_plus_denominator(float gradient, double activation_sum) {
  return static_cast<float>(2.0 + activation_sum * gradient);
}

// One position's term of the Grad-CAM++ channel weight; T is float or a vector of floats.
template <class T>
GCF_INLINE void plus_plus_term(const T& gradient, const T& denominator, T& term) {
  term = (gradient > 0.0f) & (denominator > 0.0f) ? gradient / denominator : 0.0f * gradient;
}

// The XGrad-CAM channel weight; 0 for a channel that sums to zero, unless the product is not finite. Both sums may
// cancel, hence float64.
GCF_INLINE float xgradcam_weight(double product_sum, double activation_sum) {
  return static_cast<float>(activation_sum == 0.0 ? 0.0 * product_sum : product_sum / activation_sum);
}

// What one position adds to the map under the methods without channel weights; T is float or a vector of floats. NaN
// and Inf pass the ReLU as NaN, so that a broken input shows in the sum.
template <Method method, class T>
GCF_INLINE void position_term(const T& activation, const T& gradient, T& term) {
  if constexpr (method == Method::layercam) {
    term = (gradient > 0.0f ? gradient : 0.0f * gradient) * activation;
  } else {
    term = gradient * activation;
    if constexpr (method == Method::elementwise) term = term > 0.0f ? term : 0.0f * term;
  }
}

// Unlike a (1 - t) + b t, this returns exactly a if a == b: a flat map stays flat.
GCF_INLINE float lerp(float a, float b, float t) { return a + t * (b - a); }

// Powers of two that scale a map so that neither its range nor the reciprocal of its range leaves float32. power_down()
// follows from the map's magnitude; power_up() from the divisor of the normalisation, if the magnitude allows.
GCF_INLINE float power_down(float magnitude) { return magnitude > 0x1p63f ? 0x1p-64f : 1.0f; }
GCF_INLINE float power_up(float magnitude, float extent) {
  return extent < 0x1p-63f && magnitude < 0x1p30f ? 0x1p96f : 1.0f;
}

// The larger or smaller of two numbers; `b` if `a` is NaN. On a device this is one instruction, for which -0 < +0.
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

// The smallest reciprocal for which range * reciprocal reaches 1, so that the hottest pixel is exactly 1.
GCF_INLINE float reciprocal_reaching_one(float range) {
  const float reciprocal = 1.0f / range;
  return range * reciprocal < 1.0f ? nextafterf(reciprocal, INFINITY) : reciprocal;
}

// The divisor of the normalisation: max - min under `minmax`, max under `max`.
GCF_INLINE float extent_of(Normalize normalize, float min, float max) {
  return normalize == Normalize::max ? max : max - min;
}

// `min` and `max` are the extremes of the upsampled map, scaled by `power`. A map that is flat, or has no positive
// divisor, becomes zeros.
GCF_INLINE Affine normalisation(Normalize normalize, float min, float max, float power) {
  if (normalize == Normalize::none) return {0.0f, 1.0f / power, -INFINITY, INFINITY};
  const float extent = extent_of(normalize, min, max);
  if (!(extent > 0.0f && 1.0f / extent < INFINITY)) return {0.0f, 0.0f, 0.0f, 0.0f};
  if (normalize == Normalize::max) return {0.0f, reciprocal_reaching_one(extent), -INFINITY, 1.0f};
  return {min, reciprocal_reaching_one(extent), 0.0f, 1.0f};
}

}  // namespace gradcam_fast
