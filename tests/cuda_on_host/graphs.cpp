// Captures of streams, and graphs made of them. Knows nothing of what is done on a stream.
#include "state.h"

using namespace cuda_on_host;

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
  state().captures.push_back(std::make_unique<Capture>(Capture{stream, mode, this_thread, {stream}}));
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
      if (event.second == capture.get()) event.second = nullptr;
    if (capture->invalid) return fail(cudaErrorStreamCaptureInvalidated);
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
