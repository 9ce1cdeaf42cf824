// CUDA's runtime for a process without a GPU: devices whose memory is the host's, and whose streams do at once what
// they are asked for. Loaded first, it takes the place of what PyTorch and csrc/cuda/cam.cu call of libcudart; what is
// not here that library answers, which finds no driver. PyTorch's own operators come as functions of the host, from
// operators.py. Says nothing of time, nor of what runs at the same time.
//
// Here is what its parts share: runtime.cpp, graphs.cpp, kernels.cpp.
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

// What the environment says of the devices: their number, compute capability, and the architecture of the kernel's
// code.
inline int number_of(const char* name, int otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::atoi(value);
}
inline int devices() { return number_of("DEVICES_ON_HOST", 1); }
inline int capability() { return number_of("CAPABILITY_ON_HOST", 90); }
inline int architecture() { return number_of("ARCHITECTURE_ON_HOST", capability()); }

// Of each stream how many of its operations come before.
using Before = std::map<cudaStream_t, int>;

struct Capture {
  cudaStream_t origin;
  cudaStreamCaptureMode mode;
  int thread;
  // What comes before the next operation of each stream that is captured.
  std::map<cudaStream_t, Before> streams;
  bool invalid = false;
  std::vector<std::function<void()>> nodes;
};
// An event as it was last recorded; in no capture, or in one that is over: nullptr.
struct Mark {
  Capture* capture;
  Before before;
};
using Nodes = std::vector<std::function<void()>>;

struct State {
  std::recursive_mutex mutex;
  std::map<uintptr_t, std::pair<size_t, int>> memory;
  std::map<const void*, std::string> kernels;
  std::map<std::pair<const void*, int>, int> most_shared_bytes;
  std::vector<std::unique_ptr<Capture>> captures;
  std::map<cudaEvent_t, Mark> events;
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
      ++capture->streams[stream][stream];
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

}  // namespace fake_cuda
