// The methods and normalisations of the operator, numbered as in its schema.
#pragma once

#include "common/inline.h"

#include <cstdint>
#include <type_traits>

namespace gradcam_fast {

// gradcam_fast/ops/arguments.py lists the names in this order.
enum class Method : int64_t { gradcam, gradcam_plus_plus, xgradcam, hirescam, elementwise, layercam };
enum class Normalize : int64_t { minmax, max, none };

inline constexpr int64_t method_count = 6;
inline constexpr int64_t normalize_count = 3;

// A method either weights whole channels (one number per channel, computed by pooling) or multiplies position by
// position.
GCF_INLINE constexpr bool weights_channels(Method method) {
  return method == Method::gradcam || method == Method::gradcam_plus_plus || method == Method::xgradcam;
}

// Whether a gradient that is the same at all positions of a channel acts as one factor of that channel. Under Grad-CAM
// this factor is the channel's weight.
GCF_INLINE constexpr bool factors_uniform(Method method) {
  return method == Method::gradcam || method == Method::hirescam || method == Method::layercam;
}

// Calls f with the method as a compile-time constant.
template <class F>
GCF_HOST_INLINE void with_method(Method method, const F& f) {
  switch (method) {
    case Method::gradcam: return f(std::integral_constant<Method, Method::gradcam>());
    case Method::gradcam_plus_plus: return f(std::integral_constant<Method, Method::gradcam_plus_plus>());
    case Method::xgradcam: return f(std::integral_constant<Method, Method::xgradcam>());
    case Method::hirescam: return f(std::integral_constant<Method, Method::hirescam>());
    case Method::elementwise: return f(std::integral_constant<Method, Method::elementwise>());
    case Method::layercam: return f(std::integral_constant<Method, Method::layercam>());
  }
}

}  // namespace gradcam_fast
