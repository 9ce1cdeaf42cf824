// Raw maps from rows: one position's channels side by side in memory, as in channels_last maps and in tokens.
//
// Rows are read in memory order, a few at a time. Each channel's weight and each position's value are summed by
// one thread from the first to the last, so that the bits do not depend on who works on which.

// Rows pooled at a time, so that the sums in the cache are read and written once for all of them.
constexpr int64_t ROWS = 4;
// Channels multiplied at a time when several targets share the activations: those of eight positions fit the L1 cache.
constexpr int64_t CHANNELS_PER_TILE = 256;

// One image's activations, or one target's gradients, in rows.
template <class Stored>
struct Rows {
  const Stored* data;
  int64_t stride;

  const Stored* operator[](int64_t position) const { return data + position * stride; }
};

// Adds up the channels [begin, end) of all rows.
template <class Stored>
GCF_INLINE void pool_rows(const Rows<Stored>& rows, int64_t positions, int64_t begin, int64_t end, float* sums) {
  std::fill(sums + begin, sums + end, 0.0f);
  int64_t p = 0;
  for (; p + ROWS <= positions; p += ROWS) {
    const Stored *r0 = rows[p], *r1 = rows[p + 1], *r2 = rows[p + 2], *r3 = rows[p + 3];
    int64_t c = begin;
    Vector v0, v1, v2, v3, sum;
    for (; c + LANES <= end; c += LANES) {
      load(r0 + c, v0);
      load(r1 + c, v1);
      load(r2 + c, v2);
      load(r3 + c, v3);
      load(sums + c, sum);
      store(sum + ((v0 + v1) + (v2 + v3)), sums + c);
    }
    for (; c < end; ++c) sums[c] += (to_float(r0[c]) + to_float(r1[c])) + (to_float(r2[c]) + to_float(r3[c]));
  }
  for (; p < positions; ++p)
    for (int64_t c = begin; c < end; ++c) sums[c] += to_float(rows[p][c]);
}

// weights[c] of the channels [begin, end); `wide` is room for two doubles per channel.
template <Method method, class Stored>
GCF_INLINE void weigh_rows(const Rows<Stored>& activation, const Rows<Stored>& gradient, int64_t positions,
                           int64_t begin, int64_t end, double* wide, float* weights) {
  if constexpr (method == Method::gradcam) {
    pool_rows(gradient, positions, begin, end, weights);
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

// sums[i] += the terms of the channels [begin, end) at eight positions, lane by lane.
template <Method method, class Stored>
GCF_INLINE void multiply_rows(const Stored* const (&a)[LANES], const Stored* const (&g)[LANES], const float* weights,
                              int64_t begin, int64_t end, Vector* sums) {
  Vector sum[LANES];
  GCF_UNROLL for (int64_t i = 0; i < LANES; ++i) sum[i] = sums[i];
  const auto add = [&](const auto& read) {
    Vector weight, activation, gradient, term;
    if constexpr (weighs_channels(method)) read(weights, weight);
    GCF_UNROLL for (int64_t i = 0; i < LANES; ++i) {
      read(a[i], activation);
      if constexpr (weighs_channels(method)) {
        term = weight * activation;
      } else {
        read(g[i], gradient);
        position_term<method>(activation, gradient, term);
      }
      sum[i] += term;
    }
  };
  int64_t c = begin;
  for (; c + LANES <= end; c += LANES) add([&](const auto* row, Vector& v) { load(row + c, v); });
  if (c < end) add([&](const auto* row, Vector& v) { load_few(row + c, end - c, v); });
  GCF_UNROLL for (int64_t i = 0; i < LANES; ++i) sums[i] = sum[i];
}

// The raw maps of all targets at the positions [begin, end); `sums` is room for eight vectors per target.
// gradients(k) are the rows of target k; weights are (K, channels), maps (K, positions).
template <Method method, class Stored, class Gradients>
GCF_INLINE void sum_rows(const Rows<Stored>& activation, const Gradients& gradients, const float* weights,
                         int64_t targets, int64_t channels, int64_t positions, int64_t begin, int64_t end, Vector* sums,
                         float* maps) {
  const int64_t tile = targets == 1 ? channels : CHANNELS_PER_TILE;
  for (int64_t first = begin; first < end; first += LANES) {
    const Stored* a[LANES];
    const Stored* g[LANES];
    std::fill_n(sums, targets * LANES, Vector{});
    for (int64_t c = 0; c < channels; c += tile)
      for (int64_t k = 0; k < targets; ++k) {
        const Rows<Stored> gradient = gradients(k);
        GCF_UNROLL for (int64_t i = 0; i < LANES; ++i) {
          const int64_t position = std::min(first + i, end - 1);
          a[i] = activation[position];
          g[i] = gradient[position];
        }
        multiply_rows<method>(a, g, weights + k * channels, c, std::min(c + tile, channels), sums + k * LANES);
      }
    for (int64_t k = 0; k < targets; ++k) {
      Vector lanes[LANES], sum;
      std::copy_n(sums + k * LANES, LANES, lanes);
      sum_lanes(lanes, sum);
      for (int64_t i = 0; i < std::min(LANES, end - first); ++i) maps[k * positions + first + i] = sum[i];
    }
  }
}
