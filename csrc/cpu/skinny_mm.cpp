// The operator skinny_mm on the CPU: a few rows times a large matrix, which is the backward pass of a large linear
// layer for a few images. Checks its arguments, lists the rows of the matrix that are not multiplied by zeros only, and
// splits the columns among threads.
#include "common/arguments.h"
#include "cpu/kernels.h"

#include <torch/csrc/stable/library.h>

#include <vector>

namespace gradcam_fast {
namespace {

// The fewest columns per thread. gradcam_fast/ops/skinny_mm.py calls the operator only for far more columns.
constexpr int64_t MIN_COLUMNS_PER_THREAD = 128;

Tensor skinny_mm(const Tensor& rows, const Tensor& matrix) {
  STD_TORCH_CHECK(rows.dim() == 2 && matrix.dim() == 2, "skinny_mm: expected two matrices, got ", rows.dim(), "D and ",
                  matrix.dim(), "D");
  STD_TORCH_CHECK(rows.size(1) == matrix.size(0), "skinny_mm: rows have ", rows.size(1), " columns and the matrix ",
                  matrix.size(0), " rows");
  STD_TORCH_CHECK(rows.is_cpu() && matrix.is_cpu() && rows.scalar_type() == ScalarType::Float &&
                      matrix.scalar_type() == ScalarType::Float,
                  "skinny_mm: expected float32 on the CPU");
  STD_TORCH_CHECK(matrix.size(1) <= 1 || matrix.stride(1) == 1,
                  "skinny_mm: the matrix's columns should lie side by side, got stride ", matrix.stride(1));
  const int64_t sizes[] = {rows.size(0), matrix.size(1)};
  Tensor out = empty(sizes, 2, aoti_torch_device_type_cpu(), 0);
  SkinnyProduct product{static_cast<const float*>(rows.const_data_ptr()),
                        rows.size(0),
                        rows.stride(0),
                        rows.stride(1),
                        static_cast<const float*>(matrix.const_data_ptr()),
                        matrix.stride(0),
                        matrix.size(1),
                        nullptr,
                        0,
                        static_cast<float*>(out.mutable_data_ptr())};
  std::vector<int64_t> used;
  used.reserve(matrix.size(0));
  for (int64_t i = 0; i < matrix.size(0); ++i) {
    bool is_used = false;
    for (int64_t r = 0; r < product.rows; ++r) is_used |= product.at(r, i) != 0.0f;
    if (is_used) used.push_back(i);
  }
  product.used = used.data();
  product.used_count = static_cast<int64_t>(used.size());
  torch::stable::parallel_for(0, product.columns, MIN_COLUMNS_PER_THREAD,
                              [&](int64_t begin, int64_t end) { kernels().skinny_mm(product, begin, end); });
  return out;
}

}  // namespace
}  // namespace gradcam_fast

STABLE_TORCH_LIBRARY_IMPL(gradcam_fast, CPU, library) {
  library.impl("skinny_mm", TORCH_BOX(&gradcam_fast::skinny_mm));
}
