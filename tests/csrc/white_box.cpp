// The kernels' arithmetic on the baseline instruction set, bound function by function for test_white_box.py.
#include "cpu/kernels.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

namespace gradcam_fast {
#include "cpu/simd.inl"

#include "cpu/channels_last.inl"
#include "cpu/planar.inl"
#include "cpu/upsample.inl"
}  // namespace gradcam_fast

namespace py = pybind11;
using namespace gradcam_fast;

namespace {

struct OwnedTable {
  std::vector<float> memory;
  ResizeTable table;

  OwnedTable(int64_t in, int64_t out) : memory(ResizeTable::floats(in, out)) {
    fill_resize_table(in, out, memory.data(), table);
  }
};

// (low, high, fraction) of every pixel, and the first and last pixel of every cell.
py::tuple resize_table(int64_t in, int64_t out) {
  const OwnedTable owned(in, out);
  py::list pixels, bounds;
  for (int64_t r = 0; r < owned.table.cell_count; ++r) {
    const Cell& cell = owned.table.cells[r];
    for (int64_t x = cell.begin; x < cell.end; ++x)
      pixels.append(py::make_tuple(cell.low, cell.high, owned.table.fraction[x]));
    bounds.append(cell.begin);
    bounds.append(cell.end - 1);
  }
  return py::make_tuple(pixels, bounds);
}

py::tuple upsampled_extremes(py::array_t<float, py::array::c_style> map, int64_t height, int64_t width) {
  const OwnedTable rows(map.shape(0), height), columns(map.shape(1), width);
  std::vector<float> candidates(map.shape(0) * (2 * map.shape(1) + LANES));
  float min, max;
  extremes(rows.table, columns.table, map.data(), candidates.data(), min, max);
  return py::make_tuple(min, max);
}

std::vector<float> normalised(int64_t normalize, std::vector<float> pixels, float min, float max) {
  const Affine affine = normalisation(static_cast<Normalize>(normalize), min, max, 1.0f);
  for (float& pixel : pixels) pixel = apply(affine, pixel);
  return pixels;
}

template <Method method>
float term(float activation, float gradient) {
  float result;
  position_term<method>(activation, gradient, result);
  return result;
}

// The sums of eight rows of eight lanes.
std::vector<float> lane_sums(py::array_t<float, py::array::c_style> rows) {
  Vector from[LANES], to;
  for (int64_t j = 0; j < LANES; ++j) load(rows.data(j, 0), from[j]);
  sum_lanes(from, to);
  std::vector<float> sums(LANES);
  store(to, sums.data());
  return sums;
}

template <class Stored>
std::vector<float> read_eight(std::vector<uint16_t> bits) {
  Vector v;
  load(reinterpret_cast<const Stored*>(bits.data()), v);
  std::vector<float> values(LANES);
  store(v, values.data());
  return values;
}

}  // namespace

PYBIND11_MODULE(white_box, module) {
  module.def("resize_table", resize_table);
  module.def("extremes", upsampled_extremes);
  module.def("lerp", [](float a, float b, float t) { return lerp(a, b, t); });
  module.def("normalised", normalised);
  module.def("plus_plus_term", [](float gradient, double sum) {
    float term;
    plus_plus_term(gradient, plus_plus_denominator(gradient, sum), term);
    return term;
  });
  module.def("xgradcam_weight", [](double products, double sum) { return xgradcam_weight(products, sum); });
  module.def("hirescam_term", term<Method::hirescam>);
  module.def("elementwise_term", term<Method::elementwise>);
  module.def("layercam_term", term<Method::layercam>);
  module.def("lane_sums", lane_sums);
  module.def("half_to_float", [](uint16_t bits) { return half_to_float(bits); });
  module.def("bfloat16_to_float", [](uint16_t bits) { return bfloat16_to_float(bits); });
  module.def("read_halves", read_eight<Half>);
  module.def("read_bfloat16s", read_eight<BFloat16>);
}
