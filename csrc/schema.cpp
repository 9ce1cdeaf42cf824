// The schemas of the operators; the files in cpu/ and cuda/ register their kernels against them.
#include <torch/csrc/stable/library.h>

// activations (B,C,h,w); gradients (B,C,h,w) or (B,K,C,h,w); any strides. Returns heatmap (B[,K],height,width), raw_min
// (B[,K]) and raw_max (B[,K]), float32. gradcam_fast/ops/cam.py holds the checks, the fake kernel and the numbers of
// `method` and `normalize`.
STABLE_TORCH_LIBRARY(gradcam_fast, library) {
  library.def(
      "cam(Tensor activations, Tensor gradients, SymInt height, SymInt width, int method, int normalize, bool relu)"
      " -> (Tensor heatmap, Tensor raw_min, Tensor raw_max)");
  // rows (N,R), N small; matrix (R,M) with contiguous rows; both float32 on the CPU. Returns their product (N,M). A row
  // of the matrix whose factors are all zero counts as zeros, even if it holds NaN or Inf.
  library.def("skinny_mm(Tensor rows, Tensor matrix) -> Tensor");
}
