// The operator cam on CUDA devices: checks its arguments, plans the launch and starts one kernel on the current stream.
// A CUDA graph can record the call: there are no atomics, no waits, and no workspace except for maps that do not fit in
// shared memory. The kernel itself is in cuda/cam_block.h.
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

// The Machine of cuda/cam_block.h on a GPU. Blocks that share an image read each other's shared memory, which needs a
// cluster (compute capability 9.0).
class DeviceMachine {
 public:
  GCF_DEVICE DeviceMachine(float* shared, const Params& params)
      : shared_(shared),
        map_(params.blocks.quotient(blockIdx.x)),
        rank_(blockIdx.x - map_ * params.blocks),
        image_(params.targets.quotient(map_)),
        target_(map_ - image_ * params.targets) {}

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
  GCF_DEVICE float load_from_rank([[maybe_unused]] int rank, const float* address) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    const uint32_t own_address = static_cast<uint32_t>(__cvta_generic_to_shared(address));
    uint32_t target_address;
    float value;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(target_address) : "r"(own_address), "r"(rank));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(target_address) : "memory");
    return value;
#else
    return *address;
#endif
  }

  // Copies sixteen bytes to shared memory, at `offset` bytes from both addresses; asynchronously from compute
  // capability 8.0 on.
  template <int offset>
  GCF_DEVICE void copy16(void* to, const void* from) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    const uint32_t target_address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    const size_t own_address = __cvta_generic_to_global(from);
    asm volatile("cp.async.cg.shared.global [%0 + %2], [%1 + %2], 16;" ::"r"(target_address), "l"(own_address),
                 "n"(offset)
                 : "memory");
#else
    constexpr int index = offset / sizeof(uint4);
    static_cast<uint4*>(to)[index] = static_cast<const uint4*>(from)[index];
#endif
  }
  GCF_DEVICE void commit_copies() const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
  }
  // Waits until this thread's copies have arrived, except those of the last `pending` commits.
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
__global__ void __launch_bounds__(THREADS, BLOCKS_PER_MULTIPROCESSOR)
    cam_kernel(const __grid_constant__ Params params) {
  extern __shared__ __align__(16) float shared[];
  DeviceMachine machine(shared, params);
  gpu::cam<method, Stored>(machine, params);
}

void check_cuda(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, "cam: ", what, " failed: ", cudaGetErrorString(error));
}

// Queried once per device and kernel: the queries take longer than the kernel.
template <class Kernel>
DeviceLimits query(Kernel kernel, int device) {
  DeviceLimits limits{};
  int cluster_launch = 0;
  cudaFuncAttributes attributes{};
  check_cuda(cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device),
             "querying the device");
  check_cuda(cudaDeviceGetAttribute(&limits.shared_bytes_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
             "querying the device");
  check_cuda(cudaDeviceGetAttribute(&limits.shared_bytes_per_multiprocessor,
                                    cudaDevAttrMaxSharedMemoryPerMultiprocessor, device),
             "querying the device");
  check_cuda(cudaDeviceGetAttribute(&cluster_launch, cudaDevAttrClusterLaunch, device), "querying the device");
  check_cuda(cudaFuncGetAttributes(&attributes, kernel), "querying the kernel");
  // The limits of the code, which may be lower than those of the device: the driver may have compiled it from PTX of an
  // older architecture, which was then __CUDA_ARCH__.
  const int architecture = std::min(attributes.ptxVersion, attributes.binaryVersion);
  limits.clusters = cluster_launch != 0 && architecture >= 90;
  limits.asynchronous_copies = architecture >= 80;
  limits.shared_bytes_per_block -= static_cast<int>(attributes.sharedSizeBytes);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limits.shared_bytes_per_block),
             "requesting shared memory");
  return limits;
}

template <Method method, class Stored>
DeviceLimits limits_of(int device) {
  constexpr int max_devices = 64;
  static DeviceLimits known_limits[max_devices];
  static std::atomic<bool> queried[max_devices];
  if (device >= max_devices) return query(cam_kernel<method, Stored>, device);
  if (!queried[device].load(std::memory_order_acquire)) {
    // Threads that query at the same time write the same values.
    known_limits[device] = query(cam_kernel<method, Stored>, device);
    queried[device].store(true, std::memory_order_release);
  }
  return known_limits[device];
}

template <Method method, class Stored>
void launch(Params params, int64_t images, int device, cudaStream_t stream) {
  const DeviceLimits limits = limits_of<method, Stored>(device);
  const int64_t maps = images * params.targets;
  plan_launch(params, method, maps, sizeof(Stored), limits);
  Tensor spill;
  if (shared_bytes(params) > limits.shared_bytes_per_block) {
    const int64_t size = maps * params.positions;
    spill = empty(&size, 1, aoti_torch_device_type_cuda(), device);
    params.spill = static_cast<float*>(spill.mutable_data_ptr());
  }
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(params.blocks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(maps * params.blocks));
  config.blockDim = dim3(THREADS);
  config.dynamicSmemBytes = shared_bytes(params);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = params.blocks > 1;
  check_cuda(cudaLaunchKernelEx(&config, cam_kernel<method, Stored>, params), "the launch");
}

std::tuple<Tensor, Tensor, Tensor> cam(const Tensor& activations, const Tensor& gradients, int64_t height,
                                       int64_t width, int64_t method, int64_t normalize, bool relu) {
  check(activations, gradients, height, width, method, normalize);
  const int32_t device = activations.get_device_index();
  STD_TORCH_CHECK(activations.is_cuda() && gradients.is_cuda() && gradients.get_device_index() == device,
                  "cam: activations and gradients should be on one CUDA device");
  for (const auto [in, out] : {std::pair(activations.size(2), height), std::pair(activations.size(3), width)})
    STD_TORCH_CHECK(fits_int32(in, out), "cam: maps of ", in, " positions a side and heatmaps of ", out,
                    " pixels are too large for the CUDA kernel, which takes less than 2^29 of either, and about 2^30 "
                    "multiplied");
  const int64_t most = (INT32_MAX - THREADS) / 2;
  STD_TORCH_CHECK(activations.size(1) <= most && activations.size(2) * activations.size(3) <= most, "cam: maps of ",
                  activations.size(1), " channels of ", activations.size(2), "x", activations.size(3),
                  " are too large for the CUDA kernel");
  const int64_t images = activations.size(0), targets = gradients.dim() == 5 ? gradients.size(1) : 1;
  STD_TORCH_CHECK(images == 0 || targets <= INT32_MAX / MAX_BLOCKS_PER_CLUSTER / images, "cam: ", targets,
                  " maps of each of ", images, " images are too many for one launch");
  const torch::stable::accelerator::DeviceGuard guard(device);
  Results results = results_for(gradients, height, width, aoti_torch_device_type_cuda(), device);
  if (images != 0) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    const Params params = make_params(
        activations.const_data_ptr(), strides_of(activations), gradients.const_data_ptr(), strides_of(gradients),
        {targets, activations.size(1), activations.size(2), activations.size(3), height, width},
        static_cast<Normalize>(normalize), relu, results.heatmap_data(), results.raw_min_data(), results.raw_max_data(),
        nullptr);
    const auto run = [&](auto stored) {
      with_method(static_cast<Method>(method), [&](auto chosen) {
        launch<chosen.value, decltype(stored)>(params, images, device, static_cast<cudaStream_t>(stream));
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
