// Raw maps from rows: one position's channels side by side in memory, as in channels_last maps and in tokens.
//
// Rows are read one after another: several at a time, which saves reading sums again, took 1.1 times as long for
// (4,256,128,128). Each channel's weight and each position's value are summed by one thread from the first to the last,
// so that the bits do not depend on who works on which.

// Rows pooled into one float per channel before that is added to the rest, so that rounding grows with neither.
constexpr int64_t ROWS_PER_SUM = 256;
// Channels multiplied at a time when several targets share the activations: those of eight positions fit the L1 cache.
constexpr int64_t CHANNELS_PER_TILE = 256;

// One image's activations, or one target's gradients, in rows.
template <class Stored>
struct Rows {
  const Stored* data;
  int64_t stride;

  const Stored* operator[](int64_t position) const { return data + position * stride; }
};

// The channels [begin, end) of all rows added up; `part` is room for as many floats.
template <class Stored>
GCF_INLINE void pool_rows(const Rows<Stored>& rows, int64_t positions, int64_t begin, int64_t end, float* part,
                          float* sums) {
  const int64_t count = end - begin;
  const auto add = [=](const auto* from, float* to) GCF_LAMBDA {
    Vector v, sum;
    int64_t c = 0;
    for (; c + LANES <= count; c += LANES) {
      load(from + c, v);
      load(to + c, sum);
      store(sum + v, to + c);
    }
    for (; c < count; ++c) to[c] += to_float(from[c]);
  };
  std::fill_n(sums + begin, count, 0.0f);
  for (int64_t p = 0; p < positions;) {
    std::fill_n(part, count, 0.0f);
    for (const int64_t stop = std::min(p + ROWS_PER_SUM, positions); p < stop; ++p) add(rows[p] + begin, part);
    add(static_cast<const float*>(part), sums + begin);
  }
}

// weights[c] of the channels [begin, end); `wide` is room for two doubles per channel.
template <Method method, class Stored>
GCF_INLINE void weigh_rows(const Rows<Stored>& activation, const Rows<Stored>& gradient, int64_t positions,
                           int64_t begin, int64_t end, double* wide, float* weights) {
  if constexpr (method == Method::gradcam) {
    pool_rows(gradient, positions, begin, end, reinterpret_cast<float*>(wide + 2 * begin), weights);
    const float count = static_cast<float>(positions);
    for (int64_t c = begin; c < end; ++c) weights[c] /= count;
  } else {
    double* totals = wide + 2 * begin;
    double* products = totals + (end - begin);
    std::fill_n(totals, 2 * (end - begin), 0.0);
    for (int64_t p = 0; p < positions; ++p) {
      const Stored* a = activation[p] + begin;
      const Stored* g = gradient[p] + begin;
      for (int64_t c = 0; c < end - begin; ++c) {
        totals[c] += to_float(a[c]);
        if constexpr (method == Method::xgradcam) products[c] += static_cast<double>(to_float(g[c])) * to_float(a[c]);
      }
    }
    if constexpr (method == Method::gradcam_plus_plus)
      for (int64_t p = 0; p < positions; ++p) {
        const Stored* g = gradient[p] + begin;
        for (int64_t c = 0; c < end - begin; ++c) {
          const float gradient = to_float(g[c]);
          float term;
          plus_plus_term(gradient, plus_plus_denominator(gradient, totals[c]), term);
          products[c] += term;
        }
      }
    for (int64_t c = 0; c < end - begin; ++c)
      weights[begin + c] =
          method == Method::xgradcam ? xgradcam_weight(products[c], totals[c]) : static_cast<float>(products[c]);
  }
}

// sum += the terms of the channels [begin, end) at one position, lane by lane.
template <Method method, class Stored>
GCF_INLINE void multiply_row(const Stored* a, const Stored* g, const float* weights, int64_t begin, int64_t end,
                             Vector& sum) {
  constexpr int64_t SUMS = 4;
  Vector sums[SUMS] = {}, weight, activation, gradient;
  const auto add = [&](const auto& read, Vector& to) GCF_LAMBDA {
    read(a, activation);
    if constexpr (weighs_channels(method)) {
      read(weights, weight);
      to += weight * activation;
    } else {
      read(g, gradient);
      position_term<method>(activation, gradient, activation);
      to += activation;
    }
  };
  int64_t c = begin;
  for (; c + SUMS * LANES <= end; c += SUMS * LANES)
    GCF_UNROLL for (int64_t i = 0; i < SUMS; ++i)
        add([&](const auto* row, Vector& v) GCF_LAMBDA { load(row + c + i * LANES, v); }, sums[i]);
  for (; c + LANES <= end; c += LANES) add([&](const auto* row, Vector& v) GCF_LAMBDA { load(row + c, v); }, sums[0]);
  if (c < end) add([&](const auto* row, Vector& v) GCF_LAMBDA { load_few(row + c, end - c, v); }, sums[0]);
  sum += (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// The raw maps of all targets at the positions [begin, end); `sums` is room for eight vectors per target.
// gradients(k) are the rows of target k; weights are (K, channels), maps (K, positions).
template <Method method, class Stored, class Gradients>
GCF_INLINE void sum_rows(const Rows<Stored>& activation, const Gradients& gradients, const float* weights,
                         int64_t targets, int64_t channels, int64_t positions, int64_t begin, int64_t end, Vector* sums,
                         float* maps) {
  const int64_t tile = targets == 1 ? channels : CHANNELS_PER_TILE;
  for (int64_t first = begin; first < end; first += LANES) {
    const int64_t count = std::min(LANES, end - first);
    std::fill_n(sums, targets * LANES, Vector{});
    for (int64_t c = 0; c < channels; c += tile)
      for (int64_t k = 0; k < targets; ++k) {
        const Rows<Stored> gradient = gradients(k);
        for (int64_t i = 0; i < count; ++i)
          multiply_row<method>(activation[first + i], gradient[first + i], weights + k * channels, c,
                               std::min(c + tile, channels), sums[k * LANES + i]);
      }
    for (int64_t k = 0; k < targets; ++k) {
      Vector lanes[LANES], sum;
      std::copy_n(sums + k * LANES, LANES, lanes);
      sum_lanes(lanes, sum);
      for (int64_t i = 0; i < count; ++i) maps[k * positions + first + i] = sum[i];
    }
  }
}
