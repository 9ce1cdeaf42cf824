// A CUDA runtime for a process without a GPU: the devices' memory is the host's, and streams do their work at once.
// Preloaded, it replaces the functions of libcudart that PyTorch and csrc/cuda/cam.cu call; all others reach libcudart,
// which finds no driver. PyTorch's own operators run on the host (operators.py). Time and concurrency are not modelled.
//
// This header is the state that runtime.cpp, graphs.cpp and kernel_launch.cpp share.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace fake_cuda {

// The devices, set by environment variables: their number, compute capability, and the architecture of the kernel's
// code.
inline int environment_number(const char* name, int fallback) {
  const char* value = std::getenv(name);
  return value == nullptr ? fallback : std::atoi(value);
}
inline int devices() { return environment_number("FAKE_CUDA_DEVICES", 1); }
inline int capability() { return environment_number("FAKE_CUDA_CAPABILITY", 90); }
inline int architecture() { return environment_number("FAKE_CUDA_ARCHITECTURE", capability()); }

// The number of operations of each stream.
using Progress = std::map<cudaStream_t, int>;

struct StreamCapture {
  cudaStream_t origin;
  cudaStreamCaptureMode mode;
  int thread;
  // Per captured stream: the operations that its next one must wait for.
  std::map<cudaStream_t, Progress> streams;
  bool invalid = false;
  std::vector<std::function<void()>> nodes;
};
// An event as it was last recorded. `capture` is nullptr outside a capture, and after its end.
struct RecordedEvent {
  StreamCapture* capture;
  Progress progress;
};
using GraphNodes = std::vector<std::function<void()>>;

struct State {
  std::recursive_mutex mutex;
  std::map<uintptr_t, std::pair<size_t, int>> memory;
  std::map<const void*, std::string> kernels;
  std::map<std::pair<const void*, int>, int> most_shared_bytes;
  std::vector<std::unique_ptr<StreamCapture>> captures;
  std::map<cudaEvent_t, RecordedEvent> events;
  uintptr_t handles = 4096;
  std::atomic<int> threads{0};
};
inline State& state() {
  static State state;
  return state;
}
using Lock = std::lock_guard<std::recursive_mutex>;

inline thread_local int device = 0;
// The capture mode that applies to the calls of this thread.
inline thread_local cudaStreamCaptureMode thread_capture_mode = cudaStreamCaptureModeGlobal;
inline thread_local cudaError_t last_error = cudaSuccess;
inline thread_local const int this_thread = ++state().threads;

inline cudaError_t fail(cudaError_t error, const char* why = nullptr) {
  if (why != nullptr) std::fprintf(stderr, "fake CUDA: %s\n", why);
  return last_error = error;
}

template <class Handle>
Handle new_handle() {
  return reinterpret_cast<Handle>(state().handles += 16);
}

inline StreamCapture* capture_of(cudaStream_t stream) {
  for (const auto& capture : state().captures)
    if (capture->streams.count(stream)) return capture.get();
  return nullptr;
}

// Does the work now, or records it if the stream is being captured.
inline cudaError_t enqueue(cudaStream_t stream, const std::function<void()>& work) {
  {
    Lock lock(state().mutex);
    if (StreamCapture* capture = capture_of(stream)) {
      if (capture->invalid) return fail(cudaErrorStreamCaptureInvalidated);
      capture->nodes.push_back(work);
      ++capture->streams[stream][stream];
      return cudaSuccess;
    }
  }
  // Without the lock: the work may need Python's lock, which another thread may hold while it waits for this one.
  work();
  return cudaSuccess;
}

// Ends the captures that the present call is not allowed in; waits and allocations call this.
inline cudaError_t end_captures(const std::function<bool(const StreamCapture&)>& is_ended) {
  Lock lock(state().mutex);
  bool refused = false;
  for (const auto& capture : state().captures)
    if (is_ended(*capture)) refused = capture->invalid = true;
  return refused ? fail(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}
inline bool ended_by_unsafe_call(const StreamCapture& capture) {
  if (thread_capture_mode == cudaStreamCaptureModeRelaxed || capture.mode == cudaStreamCaptureModeRelaxed) return false;
  return capture.thread == this_thread ||
         (capture.mode == cudaStreamCaptureModeGlobal && thread_capture_mode == cudaStreamCaptureModeGlobal);
}

}  // namespace fake_cuda
