// Captures of streams, and graphs made of them, as CUDA has them: what is captured is not done, what would wait is
// refused and ends the capture, and so does a stream left behind or one that waits for what is not captured. Knows
// nothing of what is done on a stream.
#include "state.h"

using namespace fake_cuda;

EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(own_mode, *mode);
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  Lock lock(state().mutex);
  const Capture* capture = capture_of(stream);
  *status = capture == nullptr ? cudaStreamCaptureStatusNone
            : capture->invalid ? cudaStreamCaptureStatusInvalidated
                               : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                            unsigned long long* id, cudaGraph_t* graph,
                                            const cudaGraphNode_t** dependencies, const cudaGraphEdgeData** edges,
                                            size_t* count) {
  Lock lock(state().mutex);
  cudaStreamIsCapturing(stream, status);
  const Capture* capture = capture_of(stream);
  if (id != nullptr) *id = reinterpret_cast<uintptr_t>(capture);
  if (graph != nullptr) *graph = nullptr;
  if (dependencies != nullptr) *dependencies = nullptr;
  if (edges != nullptr) *edges = nullptr;
  if (count != nullptr) *count = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  Lock lock(state().mutex);
  if (stream == nullptr || capture_of(stream) != nullptr) return fail(cudaErrorStreamCaptureUnsupported);
  state().captures.push_back(std::make_unique<Capture>(Capture{stream, mode, this_thread, {{stream, {}}}}));
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  Lock lock(state().mutex);
  *graph = nullptr;
  auto& captures = state().captures;
  for (size_t i = 0; i < captures.size(); ++i) {
    if (captures[i]->origin != stream) continue;
    const auto capture = std::move(captures[i]);
    captures.erase(captures.begin() + i);
    for (auto& event : state().events)
      if (event.second.capture == capture.get()) event.second.capture = nullptr;
    if (capture->invalid) return fail(cudaErrorStreamCaptureInvalidated);
    for (auto& [other, before] : capture->streams)
      if (capture->streams[stream][other] < before[other])
        return fail(cudaErrorStreamCaptureUnjoined, "a stream was left behind in a capture");
    *graph = reinterpret_cast<cudaGraph_t>(new Nodes(capture->nodes));
    return cudaSuccess;
  }
  return fail(cudaErrorIllegalState);
}
EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = reinterpret_cast<cudaGraphExec_t>(new Nodes(*reinterpret_cast<Nodes*>(graph)));
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  *count = reinterpret_cast<Nodes*>(graph)->size();
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<Nodes*>(graph);
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete reinterpret_cast<Nodes*>(executable);
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  return enqueue(stream, [executable] {
    for (const auto& node : *reinterpret_cast<Nodes*>(executable)) node();
  });
}

EXPORT cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  Lock lock(state().mutex);
  Capture* capture = capture_of(stream);
  state().events[event] = {capture, capture == nullptr ? Before() : capture->streams[stream]};
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  return cudaEventRecord(event, stream);
}
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  Lock lock(state().mutex);
  const auto mark = state().events.find(event);
  if (mark == state().events.end()) return cudaSuccess;
  const auto& [captured, before] = mark->second;
  Capture* capture = capture_of(stream);
  if (capture != nullptr && capture != captured) {
    capture->invalid = true;
    if (captured == nullptr)
      return fail(cudaErrorStreamCaptureIsolation, "a stream in a capture waits for what was not captured");
    captured->invalid = true;
    return fail(cudaErrorStreamCaptureMerge, "a stream in a capture waits for another capture");
  }
  if (captured != nullptr) {
    Before& seen = captured->streams[stream];
    for (const auto& [other, count] : before) seen[other] = std::max(seen[other], count);
  }
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventQuery(cudaEvent_t event) {
  Lock lock(state().mutex);
  const auto mark = state().events.find(event);
  if (mark != state().events.end() && mark->second.capture != nullptr) {
    mark->second.capture->invalid = true;
    return fail(cudaErrorCapturedEvent);
  }
  return unless_captured(concerns_all);
}
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t event) { return cudaEventQuery(event); }
