// From a raw map to its heatmap: ReLU, extremes, bilinear upsampling and normalisation in one pass over the output.
//
// The extremes are known before a pixel is written, from the few pixels that can hold one; a source row is stretched
// once, and an output row is a blend of two stretched ones.

// Half-pixel centres: pixel x reads at (2 x + 1) in / (2 out) - 1/2, in integers so that it is exact at every size.
// Inside one run a bilinear surface is extremal at the first and the last pixel, so only these can hold an extreme.
GCF_INLINE void fill_axis(int64_t in, int64_t out, float* memory, Axis& axis) {
  axis = {in, out, 0, reinterpret_cast<Run*>(memory + out + LANES), memory};
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

// The extremes of the upsampled map. `candidates` is room for two floats per source column, and
// one vector, for each source row.
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

// ReLU in place, if `relu`, and the largest magnitude; false if a value is not finite.
GCF_INLINE bool rectify(bool relu, int64_t positions, float* map, float& magnitude) {
  Vector poison{}, most{}, v;
  // The last vector overlaps the one before: none of this minds being done twice.
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

// ReLU, and what the pixels to come will go through. A map that is not finite has NaN extremes.
GCF_INLINE void finish_map(bool relu, Normalize normalize, const Axis& rows, const Axis& columns, float* map,
                           float* candidates, Finish& finish) {
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

// A source row at the width of the heatmap. Writes up to seven floats beyond it.
GCF_INLINE void stretch_row(const Axis& columns, const float* row, float* to) {
  Vector low, step, fraction;
  for (int64_t r = 0; r < columns.runs; ++r) {
    const Run& run = columns.run[r];
    fill(row[run.low], low);
    fill(row[run.high] - row[run.low], step);
    for (int64_t x = run.begin; x < run.end; x += LANES) {
      load(columns.fraction + x, fraction);
      store(low + fraction * step, to + x);
    }
  }
}

// What will be written soon is fetched early: 3 to 6 % of the whole operator on the machine of cpu/planar.inl. Two or
// four rows at a time, sharing what they read, were slower than one: their stores go to as many places at once.
constexpr int64_t ROWS_AHEAD = 4;
constexpr int64_t FLOATS_PER_LINE = 16;
constexpr int64_t FLOATS_PER_TURN = 2 * FLOATS_PER_LINE;

// One row of a heatmap: `low` + `fraction` of the `step` to the next stretched row, normalised. Of a map without
// negative values and zero for its minimum nothing is subtracted, and nothing falls below. With `past_cache` the stores
// pass the caches by: `out` is aligned to a vector then, and `width` a multiple of one. Else `coming` is fetched early,
// in whole turns.
template <bool from_zero, bool past_cache>
GCF_INLINE void blend_row(const float* low, const float* step, float fraction, const Affine& affine, int64_t width,
                          const float* coming, float* out) {
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
    // Ties go to the bound, as in apply: zeros have no sign.
    Vector above = least, pixels = most;
    if constexpr (!from_zero) larger(v, above);
    smaller(from_zero ? v : above, pixels);
    if constexpr (past_cache)
      store_past_cache(pixels, out + x);
    else
      std::memcpy(out + x, &pixels, count * sizeof(float));
  };
  int64_t x = 0;
  for (; x + FLOATS_PER_TURN <= width; x += FLOATS_PER_TURN) {
    if constexpr (!past_cache)
      GCF_UNROLL for (int64_t i = 0; i < FLOATS_PER_TURN; i += FLOATS_PER_LINE)
          __builtin_prefetch(coming + x + i, 1, 3);
    GCF_UNROLL for (int64_t i = 0; i < FLOATS_PER_TURN; i += LANES) blend(x + i, LANES);
  }
  for (; x + LANES <= width; x += LANES) blend(x, LANES);
  if (x < width) blend(x, width - x);
}

// Rows [begin, end) of one heatmap, `past_cache` if that can be; `room` is stretched_room(width).
GCF_INLINE void write_rows(const Axis& rows, const Axis& columns, const float* map, const Finish& finish, int64_t begin,
                           int64_t end, bool past_cache, float* room, float* heatmap) {
  const int64_t width = columns.out;
  if (!(finish.raw_max == finish.raw_max)) {
    std::fill(heatmap + begin * width, heatmap + end * width, 0.0f);
    return;
  }
  // Each a little ahead of the heatmap's rows within a page: a processor takes a read for one of what was just written
  // if the addresses agree in their last twelve bits.
  const uintptr_t ahead = reinterpret_cast<uintptr_t>(heatmap) - reinterpret_cast<uintptr_t>(room);
  float* stretched[2];
  stretched[0] = room + (ahead / sizeof(float)) % FLOATS_PER_PAGE + 2 * LANES;
  stretched[1] = stretched[0] + stretched_row(width);
  float* step = stretched[1] + stretched_row(width);
  past_cache =
      PASSES_CACHE && past_cache && reinterpret_cast<uintptr_t>(heatmap) % sizeof(Vector) == 0 && width % LANES == 0;
  int64_t held[2] = {-1, -1};
  for (int64_t r = 0; r < rows.runs; ++r) {
    const Run& run = rows.run[r];
    const int64_t first = std::max<int64_t>(begin, run.begin);
    const int64_t last = std::min<int64_t>(end, run.end);
    if (first >= last) continue;
    for (const int64_t y : {run.low, run.high}) {
      if (held[y % 2] == y) continue;
      stretch_row(columns, map + y * columns.in, stretched[y % 2]);
      held[y % 2] = y;
    }
    const float* low = stretched[run.low % 2];
    const float* high = stretched[run.high % 2];
    for (int64_t x = 0; x < width; ++x) step[x] = high[x] - low[x];
    const auto blend = [&](auto from_zero, auto past) GCF_LAMBDA {
      for (int64_t y = first; y < last; ++y)
        blend_row<from_zero.value, past.value>(low, step, rows.fraction[y], finish.affine, width,
                                               heatmap + std::min(y + ROWS_AHEAD, rows.out - 1) * width,
                                               heatmap + y * width);
    };
    const auto choose = [&](auto from_zero) GCF_LAMBDA {
      past_cache ? blend(from_zero, std::true_type()) : blend(from_zero, std::false_type());
    };
    finish.from_zero ? choose(std::true_type()) : choose(std::false_type());
  }
  if (past_cache) end_past_cache();
}
