// The registration, attributes and launch of kernels. A launch runs csrc/cuda/cam_block.h thread by thread.
#include "gpu_on_host.h"
#include "state.h"

using namespace fake_cuda;
using namespace gradcam_fast;
using namespace gradcam_fast::gpu;

namespace {

template <class Stored>
void run_kernel(int method, const Params& params, int64_t maps, size_t shared) {
  // All clusters use the same stacks.
  static std::mutex mutex;
  std::lock_guard<std::mutex> lock(mutex);
  for (int64_t map = 0; map < maps; ++map) {
    Cluster cluster(params.blocks, shared / sizeof(float), map / params.targets, map % params.targets, map % 2 != 0);
    cluster.run([&](HostMachine& machine) {
      with_method(static_cast<Method>(method), [&](auto m) { gpu::cam<m.value, Stored>(machine, params); });
    });
  }
}

}  // namespace

EXPORT void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
EXPORT void __cudaRegisterFatBinaryEnd(void**) {}
EXPORT void __cudaUnregisterFatBinary(void**) {}
EXPORT void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
EXPORT void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, uint3*, uint3*, dim3*,
                                   dim3*, int*) {
  if (std::strstr(name, "gradcam_fast") != nullptr) state().kernels[function] = name;
}
EXPORT cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  if (!state().kernels.count(function)) return fail(cudaErrorInvalidDeviceFunction);
  std::memset(attributes, 0, sizeof(*attributes));
  attributes->ptxVersion = architecture();
  attributes->binaryVersion = capability();
  return cudaSuccess;
}
EXPORT cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (!state().kernels.count(function) || attribute != cudaFuncAttributeMaxDynamicSharedMemorySize)
    return fail(cudaErrorInvalidValue, "an unknown attribute of a kernel");
  int most = 0;
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (value > most) return fail(cudaErrorInvalidValue);
  state().most_shared_bytes[{function, device}] = value;
  return cudaSuccess;
}
EXPORT cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) {
  return fail(cudaErrorInvalidDeviceFunction,
              "a kernel of PyTorch was launched that operators.py should have replaced");
}
EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** arguments) {
  const auto kernel = state().kernels.find(function);
  if (kernel == state().kernels.end()) return fail(cudaErrorInvalidDeviceFunction, "an unknown kernel was launched");
  const std::string& name = kernel->second;
  const Params params = **reinterpret_cast<const Params* const*>(arguments);
  int cluster = 1;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    if (config->attrs[i].id != cudaLaunchAttributeClusterDimension) return fail(cudaErrorNotSupported);
    cluster = config->attrs[i].val.clusterDim.x;
  }
  const bool clustered = cluster > 1 && architecture() >= 90;
  const auto shared = static_cast<int>(config->dynamicSmemBytes);
  if (config->blockDim.x != THREADS || config->gridDim.x % cluster != 0 || (cluster > 1 && !clustered) ||
      params.blocks != cluster || shared > std::max(state().most_shared_bytes[{function, device}], 49152))
    return fail(cudaErrorInvalidConfiguration);
  const int64_t maps = config->gridDim.x / cluster;
  const int method = name[name.find("MethodE") + 7] - '0';
  return enqueue(config->stream, [=] {
    if (name.find("BFloat16") != std::string::npos)
      run_kernel<BFloat16>(method, params, maps, shared);
    else if (name.find("4Half") != std::string::npos)
      run_kernel<Half>(method, params, maps, shared);
    else
      run_kernel<float>(method, params, maps, shared);
  });
}
