// From a raw map to its heatmap: ReLU, extremes, bilinear upsampling and normalisation in one pass over the output.
//
// The extremes are computed before the first pixel is written, from the few pixels that can be extremal. Each source
// row is stretched to the output width once, and each output row blends two stretched rows.

// Half-pixel centres: pixel x reads at (2 x + 1) in / (2 out) - 1/2, computed in integers and therefore exact. A
// bilinear surface is extremal at the first and the last pixel of a cell, so only these can be extremes of the map.
GCF_INLINE void fill_resize_table(int64_t in, int64_t out, float* memory, ResizeTable& table) {
  table = {in, out, 0, reinterpret_cast<Cell*>(memory + out + LANES), memory};
  int64_t numerator = in - out;
  int64_t low = -1;
  int64_t start = 0;  // numerator at which sample `low` begins
  for (int64_t x = 0; x < out; ++x, numerator += 2 * in) {
    const int64_t clamped = std::max<int64_t>(numerator, 0);
    if (low < 0 || clamped >= start + 2 * out) {
      low = x == 0 ? clamped / (2 * out) : low + (clamped - start) / (2 * out);
      start = low * 2 * out;
      table.cells[table.cell_count++] = {static_cast<int32_t>(low), static_cast<int32_t>(std::min(low + 1, in - 1)),
                                         static_cast<int32_t>(x), static_cast<int32_t>(x)};
    }
    table.fraction[x] = static_cast<float>(clamped - start);
    table.cells[table.cell_count - 1].end = static_cast<int32_t>(x + 1);
  }
  const float denominator = static_cast<float>(2 * out);
  for (int64_t x = 0; x < out; ++x) table.fraction[x] /= denominator;
}

// The extremes of the upsampled map. `candidates` has room for two floats per source column plus one vector, for each
// source row.
GCF_INLINE void extremes(const ResizeTable& rows, const ResizeTable& columns, const float* map, float* candidates,
                         float& min, float& max) {
  const int64_t count = (2 * columns.cell_count + LANES - 1) / LANES * LANES;
  for (int64_t y = 0; y < rows.in; ++y) {
    const float* row = map + y * columns.in;
    float* to = candidates + y * count;
    for (int64_t r = 0; r < columns.cell_count; ++r) {
      const Cell& cell = columns.cells[r];
      to[2 * r] = lerp(row[cell.low], row[cell.high], columns.fraction[cell.begin]);
      to[2 * r + 1] = lerp(row[cell.low], row[cell.high], columns.fraction[cell.end - 1]);
    }
    for (int64_t i = 2 * columns.cell_count; i < count; ++i) to[i] = to[0];
  }
  Vector least = Vector{} + INFINITY;
  Vector most = Vector{} - INFINITY;
  for (int64_t r = 0; r < rows.cell_count; ++r) {
    const Cell& cell = rows.cells[r];
    const float first = rows.fraction[cell.begin];
    const float last = rows.fraction[cell.end - 1];
    for (int64_t i = 0; i < count; i += LANES) {
      Vector low, high;
      load(candidates + cell.low * count + i, low);
      load(candidates + cell.high * count + i, high);
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

// ReLU in place, if `relu`, and the largest magnitude. Returns false if a value is not finite.
GCF_INLINE bool rectify(bool relu, int64_t positions, float* map, float& magnitude) {
  Vector poison{}, most{}, v;
  // The last vector overlaps the one before, and rectifying a value twice changes nothing.
  const auto rectify_vector = [&](float* at) GCF_LAMBDA {
    load(at, v);
    poison += 0.0f * v;
    if (relu) {
      v = v > 0.0f ? v : Vector{};
      store(v, at);
    }
    larger(v < 0.0f ? -v : v, most);
  };
  if (positions < LANES) {
    Vector few{};
    std::memcpy(&few, map, positions * sizeof(float));
    rectify_vector(reinterpret_cast<float*>(&few));
    std::memcpy(map, &few, positions * sizeof(float));
  } else {
    for (int64_t p = 0; p + LANES <= positions; p += LANES) rectify_vector(map + p);
    rectify_vector(map + positions - LANES);
  }
  magnitude = 0.0f;
  bool finite = true;
  for (int64_t i = 0; i < LANES; ++i) {
    magnitude = std::max(magnitude, most[i]);
    finite = finite && poison[i] == 0.0f;
  }
  return finite;
}

// ReLU, the extremes, and the transform of the pixels. The extremes of a map that is not finite are NaN.
GCF_INLINE void finish_map(bool relu, Normalize normalize, const ResizeTable& rows, const ResizeTable& columns,
                           float* map, float* candidates, FinishedMap& finish) {
  const int64_t positions = rows.in * columns.in;
  float magnitude;
  if (!rectify(relu, positions, map, magnitude)) {
    finish = {{0.0f, 0.0f, 0.0f, 0.0f}, NAN, NAN, false};
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
  const Affine affine = normalisation(normalize, min, max, power);
  finish = {affine, min / power, max / power, relu && affine.shift == 0.0f};
}

// A source row stretched to the width of the heatmap. Writes up to seven floats beyond it.
GCF_INLINE void stretch_row(const ResizeTable& columns, const float* row, float* to) {
  Vector low, step, fraction;
  for (int64_t r = 0; r < columns.cell_count; ++r) {
    const Cell& cell = columns.cells[r];
    fill(row[cell.low], low);
    fill(row[cell.high] - row[cell.low], step);
    for (int64_t x = cell.begin; x < cell.end; x += LANES) {
      load(columns.fraction + x, fraction);
      store(low + fraction * step, to + x);
    }
  }
}

// Output rows are prefetched for writing: 3 to 6 % of the whole operator (two cores of an EPYC, 32 MiB of L3 cache).
// Writing two or four rows at a time was slower: the stores then go to as many places at once.
constexpr int64_t ROWS_AHEAD = 4;
constexpr int64_t FLOATS_PER_LINE = 16;
constexpr int64_t FLOATS_PER_TURN = 2 * FLOATS_PER_LINE;

// One row of a heatmap: low + fraction x step, normalised; `step` is the difference to the next stretched row.
//
// from_zero: the map has no negative values and its minimum is zero, so it needs no subtraction and no lower bound.
// nontemporal: `out` is aligned to a vector, `width` is a multiple of one, and the stores bypass the cache. Otherwise
// `prefetch_target` is prefetched, FLOATS_PER_TURN floats at a time.
template <bool from_zero, bool nontemporal>
GCF_INLINE void blend_row(const float* low, const float* step, float fraction, const Affine& affine, int64_t width,
                          const float* prefetch_target, float* out) {
  Vector by, shift, scale, least, most, v, slope;
  fill(fraction, by);
  fill(affine.shift, shift);
  fill(affine.scale, scale);
  fill(affine.low, least);
  fill(affine.high, most);
  const auto blend = [&](int64_t x, int64_t count) GCF_LAMBDA {
    load(low + x, v);
    load(step + x, slope);
    v += by * slope;
    if constexpr (!from_zero) v -= shift;
    v *= scale;
    // As in apply(), a tie takes the bound, so that no zero is negative.
    Vector above = least, pixels = most;
    if constexpr (!from_zero) larger(v, above);
    smaller(from_zero ? v : above, pixels);
    if constexpr (nontemporal)
      store_nontemporal(pixels, out + x);
    else
      std::memcpy(out + x, &pixels, count * sizeof(float));
  };
  int64_t x = 0;
  for (; x + FLOATS_PER_TURN <= width; x += FLOATS_PER_TURN) {
    if constexpr (!nontemporal)
      GCF_UNROLL for (int64_t i = 0; i < FLOATS_PER_TURN; i += FLOATS_PER_LINE)
          __builtin_prefetch(prefetch_target + x + i, 1, 3);
    GCF_UNROLL for (int64_t i = 0; i < FLOATS_PER_TURN; i += LANES) blend(x + i, LANES);
  }
  for (; x + LANES <= width; x += LANES) blend(x, LANES);
  if (x < width) blend(x, width - x);
}

// The rows [begin, end) of one heatmap, with non-temporal stores if `nontemporal` and alignment allow; `buffer` has
// stretched_floats(width).
GCF_INLINE void write_rows(const ResizeTable& rows, const ResizeTable& columns, const float* map,
                           const FinishedMap& finish, int64_t begin, int64_t end, bool nontemporal, float* buffer,
                           float* heatmap) {
  const int64_t width = columns.out;
  if (!(finish.raw_max == finish.raw_max)) {
    std::fill(heatmap + begin * width, heatmap + end * width, 0.0f);
    return;
  }
  // The stretched rows are placed a little ahead of the heatmap's rows within a page: a processor takes a load for a
  // recent store if their addresses agree in the last twelve bits.
  const uintptr_t distance = reinterpret_cast<uintptr_t>(heatmap) - reinterpret_cast<uintptr_t>(buffer);
  float* stretched[2];
  stretched[0] = buffer + (distance / sizeof(float)) % FLOATS_PER_PAGE + 2 * LANES;
  stretched[1] = stretched[0] + stretched_row(width);
  float* step = stretched[1] + stretched_row(width);
  nontemporal = HAS_NONTEMPORAL_STORES && nontemporal && reinterpret_cast<uintptr_t>(heatmap) % sizeof(Vector) == 0 &&
                width % LANES == 0;
  int64_t source_rows[2] = {-1, -1};
  for (int64_t r = 0; r < rows.cell_count; ++r) {
    const Cell& cell = rows.cells[r];
    const int64_t first = std::max<int64_t>(begin, cell.begin);
    const int64_t last = std::min<int64_t>(end, cell.end);
    if (first >= last) continue;
    for (const int64_t y : {cell.low, cell.high}) {
      if (source_rows[y % 2] == y) continue;
      stretch_row(columns, map + y * columns.in, stretched[y % 2]);
      source_rows[y % 2] = y;
    }
    const float* low = stretched[cell.low % 2];
    const float* high = stretched[cell.high % 2];
    for (int64_t x = 0; x < width; ++x) step[x] = high[x] - low[x];
    const auto blend = [&](auto from_zero, auto bypasses_cache) GCF_LAMBDA {
      for (int64_t y = first; y < last; ++y)
        blend_row<from_zero.value, bypasses_cache.value>(low, step, rows.fraction[y], finish.affine, width,
                                                         heatmap + std::min(y + ROWS_AHEAD, rows.out - 1) * width,
                                                         heatmap + y * width);
    };
    const auto choose = [&](auto from_zero) GCF_LAMBDA {
      nontemporal ? blend(from_zero, std::true_type()) : blend(from_zero, std::false_type());
    };
    finish.from_zero ? choose(std::true_type()) : choose(std::false_type());
  }
  if (nontemporal) fence_nontemporal();
}
