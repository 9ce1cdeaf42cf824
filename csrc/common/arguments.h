// Shared by the backends, before their kernels run: checks the arguments, and allocates the results.
#pragma once

#include "common/methods.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>

namespace gradcam_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The most elements of a tensor. Their number of bytes, and sums and small multiples of such counts, fit into an int64.
constexpr int64_t MAX_ELEMENTS = int64_t{1} << 58;

// The product of sizes that are at least 0; of sizes of 0 it takes 1, because strides do.
inline int64_t checked_elements(const int64_t* sizes, int64_t dimensions) {
  int64_t elements = 1;
  for (int64_t d = 0; d < dimensions; ++d) {
    const int64_t size = std::max<int64_t>(sizes[d], 1);
    STD_TORCH_CHECK(elements <= MAX_ELEMENTS / size, "gradcam_fast: out of memory: a tensor of more than ",
                    MAX_ELEMENTS, " elements");
    elements *= size;
  }
  return elements;
}

// The Python operator checks all of this first, with better messages; these checks protect callers of torch.ops.
inline void check(const Tensor& activations, const Tensor& gradients, int64_t height, int64_t width, int64_t method,
                  int64_t normalize) {
  STD_TORCH_CHECK(activations.dim() == 4, "cam: activations should be (B,C,h,w), got ", activations.dim(), "D");
  STD_TORCH_CHECK(gradients.dim() == 4 || gradients.dim() == 5,
                  "cam: gradients should be (B,C,h,w) or (B,K,C,h,w), got ", gradients.dim(), "D");
  const auto sizes = activations.sizes();
  const auto gradient_sizes = gradients.sizes();
  const int64_t target_axes = gradients.dim() - 4;
  for (int64_t d = 0; d < 4; ++d) {
    const int64_t gradient_size = gradient_sizes[d == 0 ? 0 : d + target_axes];
    STD_TORCH_CHECK(sizes[d] == gradient_size, "cam: activations and gradients differ in B, C, h or w, got ", sizes[d],
                    " and ", gradient_size);
    STD_TORCH_CHECK(d == 0 || sizes[d] > 0, "cam: C, h and w should be at least 1, got 0");
  }
  STD_TORCH_CHECK(target_axes == 0 || gradient_sizes[1] > 0, "cam: K should be at least 1, got 0");
  // Expanded tensors may have more elements than any memory holds.
  checked_elements(gradient_sizes.data(), gradients.dim());
  const ScalarType dtype = activations.scalar_type();
  STD_TORCH_CHECK(dtype == gradients.scalar_type(), "cam: activations and gradients differ in dtype");
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16,
                  "cam: expected float32, float16 or bfloat16");
  STD_TORCH_CHECK(height > 0 && width > 0, "cam: size should be at least 1x1, got ", height, "x", width);
  STD_TORCH_CHECK(0 <= method && method < method_count, "cam: method should be below ", method_count, ", got ", method);
  STD_TORCH_CHECK(0 <= normalize && normalize < normalize_count, "cam: normalize should be below ", normalize_count,
                  ", got ", normalize);
}

// Calls the C interface directly: the dispatcher would look up the operator by name, which takes microseconds.
inline Tensor empty(const int64_t* sizes, int64_t dimensions, int32_t device_type, int32_t device_index) {
  const int64_t elements = checked_elements(sizes, dimensions);
  int64_t strides[4];
  for (int64_t d = dimensions - 1, stride = 1; d >= 0; stride *= std::max<int64_t>(sizes[d--], 1)) strides[d] = stride;
  AtenTensorHandle handle;
  const AOTITorchError error = aoti_torch_empty_strided(dimensions, sizes, strides, aoti_torch_dtype_float32(),
                                                        device_type, device_index, &handle);
  STD_TORCH_CHECK(error == AOTI_TORCH_SUCCESS, "gradcam_fast: out of memory: ", elements * sizeof(float),
                  " bytes were asked for");
  return Tensor(handle);
}

// The strides of image, target, channel, row and column, in elements.
inline std::array<int64_t, 5> strides_of(const Tensor& maps) {
  const int64_t last = maps.dim() - 1;
  const auto strides = maps.strides();
  return {strides[0], last == 4 ? strides[1] : 0, strides[last - 2], strides[last - 1], strides[last]};
}

// heatmap (B[,K],H,W), raw_min and raw_max (B[,K]).
struct Results {
  Tensor heatmap, raw_min, raw_max;

  float* heatmap_data() { return static_cast<float*>(heatmap.mutable_data_ptr()); }
  float* raw_min_data() { return static_cast<float*>(raw_min.mutable_data_ptr()); }
  float* raw_max_data() { return static_cast<float*>(raw_max.mutable_data_ptr()); }
};

inline Results results_for(const Tensor& gradients, int64_t height, int64_t width, int32_t device_type,
                           int32_t device_index) {
  const bool several = gradients.dim() == 5;
  const int64_t sizes[4] = {gradients.size(0), several ? gradients.size(1) : height, several ? height : width, width};
  const int64_t maps = 1 + several;
  return {empty(sizes, maps + 2, device_type, device_index), empty(sizes, maps, device_type, device_index),
          empty(sizes, maps, device_type, device_index)};
}

}  // namespace gradcam_fast
