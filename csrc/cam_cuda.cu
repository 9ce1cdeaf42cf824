// The CUDA half of the extension. The operator's CUDA kernel is not written yet: this library
// registers nothing, and CUDA tensors take the reference. What stands here proves the path it
// will come by: cam_math.h compiles for the device on every architecture, and the library
// links against torch's CUDA half and loads.
#include "cam_math.h"

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

namespace gradcam_fast {

__global__ void normalise_pixels(float* pixels, int64_t count, Affine affine) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) pixels[i] = apply(affine, pixels[i]);
}

}  // namespace gradcam_fast

extern "C" __attribute__((visibility("default"))) int gradcam_fast_normalise_on_current_stream(float* pixels,
                                                                                               int64_t count,
                                                                                               int32_t device) {
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream(device, &stream) != AOTI_TORCH_SUCCESS) return -1;
  const gradcam_fast::Affine affine = gradcam_fast::normalisation(gradcam_fast::Normalize::minmax, 0.0f, 1.0f, 1.0f);
  gradcam_fast::normalise_pixels<<<(count + 255) / 256, 256, 0, static_cast<cudaStream_t>(stream)>>>(pixels, count,
                                                                                                     affine);
  return static_cast<int>(cudaGetLastError());
}
