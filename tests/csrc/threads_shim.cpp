// The functions that tests/csrc/threads.h describes.
#include "threads.h"

#include <algorithm>
#include <exception>
#include <map>
#include <mutex>
#include <thread>

namespace {

std::map<std::string, Boxed>& operators() {
  static std::map<std::string, Boxed> registered;  // libraries register before main begins
  return registered;
}

thread_local uint32_t threads_of_this_one = 1;

AOTITorchError release(AtenTensorHandle tensor) {
  delete tensor;
  return AOTI_TORCH_SUCCESS;
}

}  // namespace

Boxed operator_named(const std::string& name) { return operators().at(name); }

void use_threads(uint32_t count) { threads_of_this_one = count; }

extern "C" {

// The numbers of the dtypes only have to differ.
#define GCF_DTYPE(name, number) \
  int32_t aoti_torch_dtype_##name() { return number; }
GCF_DTYPE(uint8, 0)
GCF_DTYPE(int8, 1)
GCF_DTYPE(int16, 2)
GCF_DTYPE(int32, 3)
GCF_DTYPE(int64, 4)
GCF_DTYPE(float16, 5)
GCF_DTYPE(float32, 6)
GCF_DTYPE(float64, 7)
GCF_DTYPE(complex32, 8)
GCF_DTYPE(complex64, 9)
GCF_DTYPE(complex128, 10)
GCF_DTYPE(bool, 11)
GCF_DTYPE(bfloat16, 12)
GCF_DTYPE(float8_e5m2, 13)
GCF_DTYPE(float8_e4m3fn, 14)
GCF_DTYPE(float8_e5m2fnuz, 15)
GCF_DTYPE(float8_e4m3fnuz, 16)
GCF_DTYPE(uint16, 17)
GCF_DTYPE(uint32, 18)
GCF_DTYPE(uint64, 19)
#undef GCF_DTYPE

size_t aoti_torch_dtype_element_size(int32_t dtype) { return dtype == aoti_torch_dtype_float32() ? 4 : 2; }
int32_t aoti_torch_device_type_cpu() { return 0; }
uint64_t aoti_torch_abi_version() { return 0x020a000000000000; }

AOTITorchError aoti_torch_get_dim(AtenTensorHandle tensor, int64_t* dim) {
  *dim = static_cast<int64_t>(tensor->sizes.size());
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_get_sizes(AtenTensorHandle tensor, int64_t** sizes) {
  *sizes = tensor->sizes.data();
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_get_strides(AtenTensorHandle tensor, int64_t** strides) {
  *strides = tensor->strides.data();
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_get_size(AtenTensorHandle tensor, int64_t d, int64_t* size) {
  *size = tensor->sizes[d];
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_get_stride(AtenTensorHandle tensor, int64_t d, int64_t* stride) {
  *stride = tensor->strides[d];
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_get_dtype(AtenTensorHandle tensor, int32_t* dtype) {
  *dtype = tensor->dtype;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_get_device_type(AtenTensorHandle, int32_t* type) {
  *type = aoti_torch_device_type_cpu();
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError torch_get_const_data_ptr(AtenTensorHandle tensor, const void** data) {
  *data = tensor->data();
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError torch_get_mutable_data_ptr(AtenTensorHandle tensor, void** data) {
  *data = tensor->data();
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_new_tensor_handle(AtenTensorHandle tensor, AtenTensorHandle* copy) {
  *copy = new AtenTensorOpaque(*tensor);
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor) { return release(tensor); }
AOTITorchError aoti_torch_empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                        int32_t, int32_t, AtenTensorHandle* tensor) {
  int64_t bytes = static_cast<int64_t>(aoti_torch_dtype_element_size(dtype));
  for (int64_t d = 0; d < dim; ++d) bytes *= sizes[d];
  *tensor = new AtenTensorOpaque{
      {sizes, sizes + dim}, {strides, strides + dim}, dtype, std::make_shared<std::vector<char>>(bytes)};
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_library_init_def(const char*, const char*, uint32_t, TorchLibraryHandle* library) {
  *library = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_library_init_impl(const char*, const char*, const char*, uint32_t,
                                            TorchLibraryHandle* library) {
  *library = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_library_def(TorchLibraryHandle, const char*) { return AOTI_TORCH_SUCCESS; }
AOTITorchError aoti_torch_delete_library_object(TorchLibraryHandle) { return AOTI_TORCH_SUCCESS; }
AOTITorchError torch_library_impl(TorchLibraryHandle, const char* name, Boxed function, uint64_t) {
  operators()[name] = function;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_get_num_threads(uint32_t* count) {
  *count = threads_of_this_one;
  return AOTI_TORCH_SUCCESS;
}

// As at::parallel_for does it: as many equal parts as there are threads, but none smaller than the grain; the calling
// thread takes the first one.
AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t grain, ParallelFunc function, void* context) {
  if (begin >= end) return AOTI_TORCH_SUCCESS;
  grain = std::max<int64_t>(grain, 1);
  const int64_t parts = std::min<int64_t>(threads_of_this_one, (end - begin + grain - 1) / grain);
  const int64_t length = (end - begin + parts - 1) / parts;
  std::mutex lock;
  std::exception_ptr failed;
  const auto run = [&](int64_t part) {
    const int64_t first = begin + part * length;
    if (first >= end) return;
    try {
      function(first, std::min(end, first + length), context);
    } catch (...) {
      const std::lock_guard<std::mutex> guard(lock);
      failed = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  for (int64_t part = 1; part < parts; ++part) threads.emplace_back(run, part);
  run(0);
  for (std::thread& thread : threads) thread.join();
  return failed ? AOTI_TORCH_FAILURE : AOTI_TORCH_SUCCESS;
}

}  // extern "C"
