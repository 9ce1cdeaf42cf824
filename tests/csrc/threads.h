// Stands in for PyTorch behind the CPU operators: the functions of the stable ABI that they call, with tensors in plain
// memory, and with threads that ThreadSanitizer follows. PyTorch's own threads come from OpenMP, whose barriers it does
// not see.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

// A tensor; copies share the memory.
struct AtenTensorOpaque {
  std::vector<int64_t> sizes, strides;
  int32_t dtype;
  std::shared_ptr<std::vector<char>> memory;
  int64_t offset = 0;  // in bytes

  void* data() const { return memory->data() + offset; }
};

// The operators that the library registers, as boxed functions by name.
using Boxed = void (*)(StableIValue*, uint64_t, uint64_t);
Boxed operator_named(const std::string& name);

// How many threads an operator uses that is called from this thread.
void use_threads(uint32_t count);
