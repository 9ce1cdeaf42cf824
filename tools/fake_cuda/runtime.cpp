// Devices and their properties, memory, streams and events.
#include "state.h"

using namespace fake_cuda;

EXPORT cudaError_t cudaGetDeviceCount(int* count) {
  *count = devices();
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetDevice(int* which) {
  *which = device;
  return cudaSuccess;
}
EXPORT cudaError_t cudaSetDevice(int which) {
  if (which < 0 || which >= devices()) return fail(cudaErrorInvalidDevice);
  device = which;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 1;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }
EXPORT cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
EXPORT cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = environment_number("FAKE_CUDA_MULTIPROCESSORS", 2); break;
    // As on an H200, an A100 and a T4.
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = capability() >= 90 ? 232448 : capability() >= 80 ? 166912 : 65536;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = capability() >= 90 ? 233472 : capability() >= 80 ? 167936 : 65536;
      break;
    case cudaDevAttrClusterLaunch: *value = capability() >= 90; break;
    case cudaDevAttrComputeCapabilityMajor: *value = capability() / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = capability() % 10; break;
    default: return fail(cudaErrorNotSupported, "an unknown attribute of a device");
  }
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int which) {
  std::memset(properties, 0, sizeof(*properties));
  std::strcpy(properties->name, "host");
  properties->major = capability() / 10;
  properties->minor = capability() % 10;
  properties->totalGlobalMem = size_t{4} << 30;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = 2048;
  cudaDeviceGetAttribute(&properties->multiProcessorCount, cudaDevAttrMultiProcessorCount, which);
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
EXPORT cudaError_t cudaPeekAtLastError() { return last_error; }

// Memory starts as NaN.
EXPORT cudaError_t cudaMalloc(void** memory, size_t bytes) {
  Lock lock(state().mutex);
  if (end_captures(ended_by_unsafe_call) != cudaSuccess) return last_error;
  *memory = std::aligned_alloc(512, (bytes + 511) / 512 * 512);
  std::memset(*memory, 0xff, bytes);
  state().memory[reinterpret_cast<uintptr_t>(*memory)] = {bytes, device};
  return cudaSuccess;
}
EXPORT cudaError_t cudaFree(void* memory) {
  if (memory == nullptr) return cudaSuccess;
  Lock lock(state().mutex);
  if (end_captures(ended_by_unsafe_call) != cudaSuccess) return last_error;
  if (state().memory.erase(reinterpret_cast<uintptr_t>(memory)) == 0) return fail(cudaErrorInvalidValue);
  std::free(memory);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = size_t{4} << 30;
  return cudaSuccess;
}
EXPORT cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  *memory = std::aligned_alloc(512, (bytes + 511) / 512 * 512);
  return cudaSuccess;
}
EXPORT cudaError_t cudaFreeHost(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
EXPORT cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  Lock lock(state().mutex);
  std::memset(attributes, 0, sizeof(*attributes));
  attributes->type = cudaMemoryTypeUnregistered;
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  auto at = state().memory.upper_bound(address);
  if (at != state().memory.begin() && address < (--at)->first + at->second.first) {
    attributes->type = cudaMemoryTypeDevice;
    attributes->device = at->second.second;
    attributes->devicePointer = const_cast<void*>(pointer);
  }
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return enqueue(stream, [=] { std::memmove(to, from, bytes); });
}
EXPORT cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t stream) {
  return enqueue(stream, [=] { std::memmove(to, from, bytes); });
}
EXPORT cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  return enqueue(stream, [=] { std::memset(memory, value, bytes); });
}
EXPORT cudaError_t fake_cuda_enqueue(cudaStream_t stream, void (*work)(int64_t), int64_t which) {
  return enqueue(stream, [=] { work(which); });
}

EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  if (least != nullptr) *least = 0;
  if (greatest != nullptr) *greatest = -5;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  Lock lock(state().mutex);
  *stream = new_handle<cudaStream_t>();
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return end_captures(
      [&](const StreamCapture& capture) { return capture.streams.count(stream) || ended_by_unsafe_call(capture); });
}
EXPORT cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }
EXPORT cudaError_t cudaDeviceSynchronize() {
  return end_captures([](const StreamCapture& capture) { return capture.mode != cudaStreamCaptureModeRelaxed; });
}
EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  Lock lock(state().mutex);
  *event = new_handle<cudaEvent_t>();
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t event) {
  Lock lock(state().mutex);
  state().events.erase(event);
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 1.0f;
  return cudaSuccess;
}

// PyTorch looks up some functions of the driver that these tests do not call.
namespace {
int absent() { return 801; }
}  // namespace
EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned, unsigned long long,
                                                    cudaDriverEntryPointQueryResult* result) {
  *function = reinterpret_cast<void*>(absent);
  if (result != nullptr) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
EXPORT int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) {
  *flags = 0;
  *active = 1;
  return 0;
}
