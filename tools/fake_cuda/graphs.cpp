// Stream capture and graphs, as in CUDA: captured work is not done, and a call that would wait fails and ends the
// capture, as do a stream that is not joined and a wait for uncaptured work.
#include "state.h"

using namespace fake_cuda;

EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(thread_capture_mode, *mode);
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  Lock lock(state().mutex);
  const StreamCapture* capture = capture_of(stream);
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
  const StreamCapture* capture = capture_of(stream);
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
  state().captures.push_back(std::make_unique<StreamCapture>(StreamCapture{stream, mode, this_thread, {{stream, {}}}}));
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
    for (auto& [other, progress] : capture->streams)
      if (capture->streams[stream][other] < progress[other])
        return fail(cudaErrorStreamCaptureUnjoined, "a captured stream was not joined");
    *graph = reinterpret_cast<cudaGraph_t>(new GraphNodes(capture->nodes));
    return cudaSuccess;
  }
  return fail(cudaErrorIllegalState);
}
EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = reinterpret_cast<cudaGraphExec_t>(new GraphNodes(*reinterpret_cast<GraphNodes*>(graph)));
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  *count = reinterpret_cast<GraphNodes*>(graph)->size();
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<GraphNodes*>(graph);
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete reinterpret_cast<GraphNodes*>(executable);
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  return enqueue(stream, [executable] {
    for (const auto& node : *reinterpret_cast<GraphNodes*>(executable)) node();
  });
}

EXPORT cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  Lock lock(state().mutex);
  StreamCapture* capture = capture_of(stream);
  state().events[event] = {capture, capture == nullptr ? Progress() : capture->streams[stream]};
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  return cudaEventRecord(event, stream);
}
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  Lock lock(state().mutex);
  const auto recorded = state().events.find(event);
  if (recorded == state().events.end()) return cudaSuccess;
  const auto& [captured, progress] = recorded->second;
  StreamCapture* capture = capture_of(stream);
  if (capture != nullptr && capture != captured) {
    capture->invalid = true;
    if (captured == nullptr)
      return fail(cudaErrorStreamCaptureIsolation, "a captured stream waits for work that was not captured");
    captured->invalid = true;
    return fail(cudaErrorStreamCaptureMerge, "a captured stream waits for another capture");
  }
  if (captured != nullptr) {
    Progress& seen = captured->streams[stream];
    for (const auto& [other, count] : progress) seen[other] = std::max(seen[other], count);
  }
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventQuery(cudaEvent_t event) {
  Lock lock(state().mutex);
  const auto recorded = state().events.find(event);
  if (recorded != state().events.end() && recorded->second.capture != nullptr) {
    recorded->second.capture->invalid = true;
    return fail(cudaErrorCapturedEvent);
  }
  return end_captures(ended_by_unsafe_call);
}
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t event) { return cudaEventQuery(event); }
