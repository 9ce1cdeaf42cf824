// The operator on CUDA devices: its arguments, how many blocks share an image, and the launch. One kernel per call, on
// the current stream, without atomics or a wait, and without a workspace but for maps beyond shared memory, so that a
// CUDA graph can hold it. What is computed is cuda/cam_block.h's affair.
#include "common/arguments.h"
#include "cuda/cam_block.h"
#include "cuda/launch_plan.h"

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <tuple>
#include <utility>

namespace gradcam_fast {
namespace {

using namespace gpu;

// Blocks that share an image talk through each other's shared memory, which takes a cluster: compute capability 9.0.
class DeviceMachine {
 public:
  GCF_DEVICE DeviceMachine(float* shared, const Call& call)
      : shared_(shared),
        map_(call.blocks.quotient(blockIdx.x)),
        rank_(blockIdx.x - map_ * call.blocks),
        image_(call.targets.quotient(map_)),
        target_(map_ - image_ * call.targets) {}

  GCF_DEVICE int thread() const {
    const int thread = threadIdx.x;
    __builtin_assume(thread >= 0 && thread < THREADS);
    return thread;
  }
  GCF_DEVICE int rank() const { return rank_; }
  GCF_DEVICE int64_t image() const { return image_; }
  GCF_DEVICE int64_t target() const { return target_; }
  GCF_DEVICE float* shared() const { return shared_; }
  GCF_DEVICE void sync() const { __syncthreads(); }
  template <class T>
  GCF_DEVICE T shuffle_xor(T value, int mask) const {
    return __shfl_xor_sync(0xffffffff, value, mask);
  }
  GCF_DEVICE void arrive_at_cluster() const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    __syncwarp();
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
  }
  GCF_DEVICE void wait_for_cluster() const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    __syncwarp();
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
  }
  GCF_DEVICE float of_rank([[maybe_unused]] int rank, const float* own) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    const uint32_t here = static_cast<uint32_t>(__cvta_generic_to_shared(own));
    uint32_t there;
    float value;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(rank));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(there) : "memory");
    return value;
#else
    return *own;
#endif
  }

  // Sixteen bytes to shared memory, so far behind both addresses, asynchronously where the architecture can.
  template <int behind>
  GCF_DEVICE void copy16(void* to, const void* from) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    const uint32_t there = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    const size_t here = __cvta_generic_to_global(from);
    asm volatile("cp.async.cg.shared.global [%0 + %2], [%1 + %2], 16;" ::"r"(there), "l"(here), "n"(behind) : "memory");
#else
    constexpr int many = behind / sizeof(uint4);
    static_cast<uint4*>(to)[many] = static_cast<const uint4*>(from)[many];
#endif
  }
  GCF_DEVICE void end_of_copies() const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
  }
  // Until this thread's copies have arrived, but for those of the last `pending` ends.
  template <int pending>
  GCF_DEVICE void wait_for_copies() const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
  }

 private:
  float* shared_;
  int map_, rank_, image_, target_;
};

template <Method method, class Stored>
__global__ void __launch_bounds__(THREADS, BLOCKS_PER_PROCESSOR) cam_kernel(const __grid_constant__ Call call) {
  extern __shared__ __align__(16) float shared[];
  DeviceMachine machine(shared, call);
  gpu::cam<method, Stored>(machine, call);
}

void succeed(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, "cam: ", what, " failed: ", cudaGetErrorString(error));
}

// Asked once, since a call should not take longer than the kernel.
template <class Kernel>
Offer ask(Kernel kernel, int device) {
  Offer offer{};
  int cluster_launch = 0;
  cudaFuncAttributes attributes{};
  succeed(cudaDeviceGetAttribute(&offer.processors, cudaDevAttrMultiProcessorCount, device), "asking the device");
  succeed(cudaDeviceGetAttribute(&offer.shared_bytes_of_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          "asking the device");
  succeed(cudaDeviceGetAttribute(&offer.shared_bytes_of_processor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device),
          "asking the device");
  succeed(cudaDeviceGetAttribute(&cluster_launch, cudaDevAttrClusterLaunch, device), "asking the device");
  succeed(cudaFuncGetAttributes(&attributes, kernel), "asking the kernel");
  // Not what the device could do, but what the code does. The driver may have compiled it for the device from PTX of an
  // older architecture: __CUDA_ARCH__ was that one.
  const int architecture = std::min(attributes.ptxVersion, attributes.binaryVersion);
  offer.clusters = cluster_launch != 0 && architecture >= 90;
  offer.asynchronous_copies = architecture >= 80;
  offer.shared_bytes_of_block -= static_cast<int>(attributes.sharedSizeBytes);
  succeed(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, offer.shared_bytes_of_block),
          "asking for shared memory");
  return offer;
}

template <Method method, class Stored>
Offer offer_of(int device) {
  constexpr int known = 64;
  static Offer offers[known];
  static std::atomic<bool> asked[known];
  if (device >= known) return ask(cam_kernel<method, Stored>, device);
  if (!asked[device].load(std::memory_order_acquire)) {
    // Threads that come here together write the same.
    offers[device] = ask(cam_kernel<method, Stored>, device);
    asked[device].store(true, std::memory_order_release);
  }
  return offers[device];
}

template <Method method, class Stored>
void launch(Call call, int64_t images, int device, cudaStream_t stream) {
  const Offer offer = offer_of<method, Stored>(device);
  const int64_t maps = images * call.targets;
  spread(call, method, maps, sizeof(Stored), offer);
  Tensor spill;
  if (shared_bytes(call) > offer.shared_bytes_of_block) {
    const int64_t size = maps * call.positions;
    spill = empty(&size, 1, aoti_torch_device_type_cuda(), device);
    call.spill = static_cast<float*>(spill.mutable_data_ptr());
  }
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(call.blocks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(maps * call.blocks));
  config.blockDim = dim3(THREADS);
  config.dynamicSmemBytes = shared_bytes(call);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = call.blocks > 1;
  succeed(cudaLaunchKernelEx(&config, cam_kernel<method, Stored>, call), "the launch");
}

std::tuple<Tensor, Tensor, Tensor> cam(const Tensor& activations, const Tensor& gradients, int64_t height,
                                       int64_t width, int64_t method, int64_t normalize, bool relu) {
  check(activations, gradients, height, width, method, normalize);
  const int32_t device = activations.get_device_index();
  STD_TORCH_CHECK(activations.is_cuda() && gradients.is_cuda() && gradients.get_device_index() == device,
                  "cam: activations and gradients should be on one CUDA device");
  for (const auto [in, out] : {std::pair(activations.size(2), height), std::pair(activations.size(3), width)})
    STD_TORCH_CHECK(can_be_sized(in, out), "cam: maps of ", in, " positions a side and heatmaps of ", out,
                    " pixels are too large for the CUDA kernel, which takes less than 2^29 of either, and about 2^30 "
                    "multiplied");
  const int64_t most = (INT32_MAX - THREADS) / 2;
  STD_TORCH_CHECK(activations.size(1) <= most && activations.size(2) * activations.size(3) <= most, "cam: maps of ",
                  activations.size(1), " channels of ", activations.size(2), "x", activations.size(3),
                  " are too large for the CUDA kernel");
  const int64_t images = activations.size(0), targets = gradients.dim() == 5 ? gradients.size(1) : 1;
  STD_TORCH_CHECK(images == 0 || targets <= INT32_MAX / MOST_BLOCKS / images, "cam: ", targets, " maps of each of ",
                  images, " images are too many for one launch");
  const torch::stable::accelerator::DeviceGuard guard(device);
  Results results = results_for(gradients, height, width, aoti_torch_device_type_cuda(), device);
  if (images != 0) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    const Call call = make_call(
        activations.const_data_ptr(), strides_of(activations), gradients.const_data_ptr(), strides_of(gradients),
        {targets, activations.size(1), activations.size(2), activations.size(3), height, width},
        static_cast<Normalize>(normalize), relu, results.heatmaps(), results.least(), results.greatest(), nullptr);
    const auto run = [&](auto stored) {
      with_method(static_cast<Method>(method), [&](auto chosen) {
        launch<chosen.value, decltype(stored)>(call, images, device, static_cast<cudaStream_t>(stream));
      });
    };
    switch (activations.scalar_type()) {
      case ScalarType::Half: run(Half{}); break;
      case ScalarType::BFloat16: run(BFloat16{}); break;
      default: run(float{});
    }
  }
  return {results.heatmap, results.raw_min, results.raw_max};
}

}  // namespace
}  // namespace gradcam_fast

STABLE_TORCH_LIBRARY_IMPL(gradcam_fast, CUDA, library) { library.impl("cam", TORCH_BOX(&gradcam_fast::cam)); }
