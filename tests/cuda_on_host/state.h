// What the parts of the runtime share: the devices' memory, the kernels, and what is being captured.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace cuda_on_host {

// What the environment says of the devices: their number, compute capability, and the architecture of the kernel's
// code.
inline int number_of(const char* name, int otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::atoi(value);
}
inline int devices() { return number_of("DEVICES_ON_HOST", 1); }
inline int capability() { return number_of("CAPABILITY_ON_HOST", 90); }
inline int architecture() { return number_of("ARCHITECTURE_ON_HOST", capability()); }

struct Capture {
  cudaStream_t origin;
  cudaStreamCaptureMode mode;
  int thread;
  std::set<cudaStream_t> streams;
  bool invalid = false;
  std::vector<std::function<void()>> nodes;
};
using Nodes = std::vector<std::function<void()>>;

struct State {
  std::recursive_mutex mutex;
  std::map<uintptr_t, std::pair<size_t, int>> memory;
  std::map<const void*, std::string> kernels;
  std::map<std::pair<const void*, int>, int> most_shared_bytes;
  std::vector<std::unique_ptr<Capture>> captures;
  std::map<cudaEvent_t, Capture*> events;
  uintptr_t handles = 4096;
  std::atomic<int> threads{0};
};
inline State& state() {
  static State state;
  return state;
}
using Lock = std::lock_guard<std::recursive_mutex>;

inline thread_local int device = 0;
// Under which mode this thread's calls are looked at while something is captured.
inline thread_local cudaStreamCaptureMode own_mode = cudaStreamCaptureModeGlobal;
inline thread_local cudaError_t error_before = cudaSuccess;
inline thread_local const int this_thread = ++state().threads;

inline cudaError_t fail(cudaError_t error, const char* why = nullptr) {
  if (why != nullptr) std::fprintf(stderr, "CUDA on the host: %s\n", why);
  return error_before = error;
}

template <class Handle>
Handle new_handle() {
  return reinterpret_cast<Handle>(state().handles += 16);
}

inline Capture* capture_of(cudaStream_t stream) {
  for (const auto& capture : state().captures)
    if (capture->streams.count(stream)) return capture.get();
  return nullptr;
}

// Later if the stream is captured, else now.
inline cudaError_t enqueue(cudaStream_t stream, const std::function<void()>& work) {
  {
    Lock lock(state().mutex);
    if (Capture* capture = capture_of(stream)) {
      if (capture->invalid) return fail(cudaErrorStreamCaptureInvalidated);
      capture->nodes.push_back(work);
      return cudaSuccess;
    }
  }
  // Not under the lock: work may be Python's, which another thread that waits for the lock may be about to go on with.
  work();
  return cudaSuccess;
}

// Waiting, and asking for memory, ends each capture that it concerns.
inline cudaError_t unless_captured(const std::function<bool(const Capture&)>& concerns) {
  Lock lock(state().mutex);
  bool refused = false;
  for (const auto& capture : state().captures)
    if (concerns(*capture)) refused = capture->invalid = true;
  return refused ? fail(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}
inline bool concerns_all(const Capture& capture) {
  if (own_mode == cudaStreamCaptureModeRelaxed || capture.mode == cudaStreamCaptureModeRelaxed) return false;
  return capture.thread == this_thread ||
         (capture.mode == cudaStreamCaptureModeGlobal && own_mode == cudaStreamCaptureModeGlobal);
}

}  // namespace cuda_on_host
