// From a raw map to its heatmap: ReLU, extremes, bilinear upsampling and normalisation in one pass over the output.
//
// The extremes are known before a pixel is written, from the few pixels that can hold one; a source row is stretched
// once, and an output row is a blend of two stretched ones.

// Half-pixel centres: pixel x reads at (2 x + 1) in / (2 out) - 1/2, in integers so that it is exact at every size.
// Inside one run a bilinear surface is extremal at the first and the last pixel, so only these can hold an extreme.
GCF_INLINE void fill_axis(int64_t in, int64_t out, float* memory, Axis& axis) {
  axis = {in, out, 0, reinterpret_cast<Run*>(memory + out), memory};
  int64_t numerator = in - out;
  int64_t low = -1;
  int64_t start = 0;  // numerator at which sample `low` begins
  for (int64_t x = 0; x < out; ++x, numerator += 2 * in) {
    const int64_t clamped = std::max<int64_t>(numerator, 0);
    if (low < 0 || clamped >= start + 2 * out) {
      low = x == 0 ? clamped / (2 * out) : low + (clamped - start) / (2 * out);
      start = low * 2 * out;
      axis.run[axis.runs++] = {static_cast<int32_t>(low), static_cast<int32_t>(std::min(low + 1, in - 1)),
                               static_cast<int32_t>(x), static_cast<int32_t>(x)};
    }
    axis.fraction[x] = static_cast<float>(clamped - start);
    axis.run[axis.runs - 1].end = static_cast<int32_t>(x + 1);
  }
  const float denominator = static_cast<float>(2 * out);
  for (int64_t x = 0; x < out; ++x) axis.fraction[x] /= denominator;
}

GCF_INLINE void smaller(const Vector& a, Vector& to) { to = a < to ? a : to; }
GCF_INLINE void larger(const Vector& a, Vector& to) { to = a > to ? a : to; }

// The extremes of the upsampled map. `columns` is room for two floats per source column and row, and one vector.
GCF_INLINE void extremes(const Axis& rows, const Axis& columns, const float* map, float* candidates, float& min,
                         float& max) {
  const int64_t count = (2 * columns.runs + LANES - 1) / LANES * LANES;
  for (int64_t y = 0; y < rows.in; ++y) {
    const float* row = map + y * columns.in;
    float* to = candidates + y * count;
    for (int64_t r = 0; r < columns.runs; ++r) {
      const Run& run = columns.run[r];
      to[2 * r] = lerp(row[run.low], row[run.high], columns.fraction[run.begin]);
      to[2 * r + 1] = lerp(row[run.low], row[run.high], columns.fraction[run.end - 1]);
    }
    for (int64_t i = 2 * columns.runs; i < count; ++i) to[i] = to[0];
  }
  Vector least = Vector{} + INFINITY;
  Vector most = Vector{} - INFINITY;
  for (int64_t r = 0; r < rows.runs; ++r) {
    const Run& run = rows.run[r];
    const float first = rows.fraction[run.begin];
    const float last = rows.fraction[run.end - 1];
    for (int64_t i = 0; i < count; i += LANES) {
      Vector low, high;
      load(candidates + run.low * count + i, low);
      load(candidates + run.high * count + i, high);
      const Vector step = high - low;
      const Vector a = low + first * step;
      const Vector b = low + last * step;
      smaller(a, least);
      smaller(b, least);
      larger(a, most);
      larger(b, most);
    }
  }
  min = INFINITY;
  max = -INFINITY;
  for (int64_t i = 0; i < LANES; ++i) {
    min = std::min(min, least[i]);
    max = std::max(max, most[i]);
  }
}

// ReLU in place, and what the pixels to come will go through. A map that is not finite has NaN extremes.
GCF_INLINE void finish_map(bool relu, Normalize normalize, const Axis& rows, const Axis& columns, float* map,
                           float* candidates, Finish& finish) {
  const int64_t positions = rows.in * columns.in;
  float poison = 0.0f;
  float magnitude = 0.0f;
  for (int64_t p = 0; p < positions; ++p) {
    poison += 0.0f * map[p];
    if (relu) map[p] = map[p] > 0.0f ? map[p] : 0.0f;
    magnitude = std::max(magnitude, std::fabs(map[p]));
  }
  if (poison != 0.0f) {
    finish = {{0.0f, 0.0f, 0.0f, 0.0f}, NAN, NAN};
    return;
  }
  const auto scale = [&](float factor) {
    if (factor != 1.0f)
      for (int64_t p = 0; p < positions; ++p) map[p] *= factor;
    return factor;
  };
  const float down = scale(power_down(magnitude));
  float min, max;
  extremes(rows, columns, map, candidates, min, max);
  const float up = scale(power_up(magnitude * down, extent_of(normalize, min, max)));
  min *= up;
  max *= up;
  const float power = down * up;
  finish = {normalisation(normalize, min, max, power), min / power, max / power};
}

GCF_INLINE void stretch_row(const Axis& columns, const float* row, float* to) {
  for (int64_t r = 0; r < columns.runs; ++r) {
    const Run& run = columns.run[r];
    const float low = row[run.low];
    const float high = row[run.high];
    for (int64_t x = run.begin; x < run.end; ++x) to[x] = lerp(low, high, columns.fraction[x]);
  }
}

// Rows [begin, end) of one heatmap; `stretched` is room for two output rows.
GCF_INLINE void write_rows(const Axis& rows, const Axis& columns, const float* map, const Finish& finish, int64_t begin,
                           int64_t end, float* stretched, float* heatmap) {
  const int64_t width = columns.out;
  if (!(finish.raw_max == finish.raw_max)) {
    std::fill(heatmap + begin * width, heatmap + end * width, 0.0f);
    return;
  }
  int64_t held[2] = {-1, -1};
  for (int64_t r = 0; r < rows.runs; ++r) {
    const Run& run = rows.run[r];
    const int64_t first = std::max<int64_t>(begin, run.begin);
    const int64_t last = std::min<int64_t>(end, run.end);
    if (first >= last) continue;
    for (const int64_t y : {run.low, run.high}) {
      if (held[y % 2] == y) continue;
      stretch_row(columns, map + y * columns.in, stretched + (y % 2) * width);
      held[y % 2] = y;
    }
    const float* low = stretched + (run.low % 2) * width;
    const float* high = stretched + (run.high % 2) * width;
    for (int64_t y = first; y < last; ++y) {
      const float fraction = rows.fraction[y];
      float* out = heatmap + y * width;
      for (int64_t x = 0; x < width; ++x) out[x] = apply(finish.affine, lerp(low[x], high[x], fraction));
    }
  }
}
