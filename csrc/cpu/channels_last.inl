// Raw maps from rows: one position's channels side by side in memory, as in channels_last maps and in tokens.
//
// Reading is what bounds it, and a processor reads ahead in several places at once sooner than far ahead in one: rows
// are taken four at a time, one from each quarter of those a thread has, but for the weights of Grad-CAM++ and
// XGrad-CAM, which are summed in double precision. Four neighbouring rows at a time took up to 1.5 times as long as one
// by one. Each channel's weight and each position's value are summed by one thread in one order, so that the bits do
// not depend on who works on which.

// Rows pooled into one float per channel before that is added to the rest, so that rounding grows with neither.
constexpr int64_t ROWS_PER_SUM = 256;
// Rows taken at a time, as far apart as they can be.
constexpr int64_t STREAMS = 4;
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
  const int64_t quarter = positions / STREAMS;
  // Adds as many rows as there are pointers.
  const auto add = [=](const auto& from, float* to) GCF_LAMBDA {
    each_sum(to, 0, count, [&](const auto& at, Vector& sum) GCF_LAMBDA {
      constexpr int64_t many = std::extent<std::remove_reference_t<decltype(from)>>::value;
      Vector v[many];
      GCF_UNROLL for (int64_t i = 0; i < many; ++i) at(from[i], v[i]);
      GCF_UNROLL for (int64_t i = 1; i < many; ++i) v[0] += v[i];
      sum += v[0];
    });
  };
  const auto add_part = [&] {
    const float* parts[] = {part};
    add(parts, sums + begin);
    std::fill_n(part, count, 0.0f);
  };
  std::fill_n(sums + begin, count, 0.0f);
  std::fill_n(part, count, 0.0f);
  for (int64_t p = 0; p < quarter; ++p) {
    const Stored* four[STREAMS];
    GCF_UNROLL for (int64_t i = 0; i < STREAMS; ++i) four[i] = rows[p + i * quarter] + begin;
    add(four, part);
    if ((p + 1) % (ROWS_PER_SUM / STREAMS) == 0) add_part();
  }
  for (int64_t p = STREAMS * quarter; p < positions; ++p) {
    const Stored* one[] = {rows[p] + begin};
    add(one, part);
  }
  add_part();
}

// sums[c] += the terms that Grad-CAM++'s weights are made of, at one position.
template <class Stored>
GCF_INLINE void add_plus_plus(const Stored* gradient, int64_t channels, const double* totals, double* sums) {
  int64_t c = 0;
  Vector g, denominator, term;
  Wide total[2], sum[2], wide[2];
  for (; c + LANES <= channels; c += LANES) {
    load(gradient + c, g);
    load(totals + c, total);
    plus_plus_denominators(g, total, denominator);
    plus_plus_term(g, denominator, term);
    widen(term, wide);
    load(sums + c, sum);
    GCF_UNROLL for (int64_t i = 0; i < 2; ++i) sum[i] += wide[i];
    store(sum, sums + c);
  }
  for (; c < channels; ++c) {
    const float one = to_float(gradient[c]);
    float last;
    plus_plus_term(one, plus_plus_denominator(one, totals[c]), last);
    sums[c] += last;
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
      for (int64_t p = 0; p < positions; ++p) add_plus_plus(gradient[p] + begin, end - begin, totals, products);
    for (int64_t c = 0; c < end - begin; ++c)
      weights[begin + c] =
          method == Method::xgradcam ? xgradcam_weight(products[c], totals[c]) : static_cast<float>(products[c]);
  }
}

// sums[i] += the terms of the channels [begin, end) at four positions, lane by lane.
template <Method method, class Stored>
GCF_INLINE void multiply_rows(const Stored* const (&a)[STREAMS], const Stored* const (&g)[STREAMS],
                              const float* weights, int64_t begin, int64_t end, Vector* sums) {
  Vector four[STREAMS], weight, activation, gradient;
  const auto add = [&](const auto& read) GCF_LAMBDA {
    if constexpr (weighs_channels(method)) read(weights, weight);
    GCF_UNROLL for (int64_t i = 0; i < STREAMS; ++i) {
      read(a[i], activation);
      if constexpr (weighs_channels(method)) {
        four[i] += weight * activation;
      } else {
        read(g[i], gradient);
        position_term<method>(activation, gradient, activation);
        four[i] += activation;
      }
    }
  };
  std::copy_n(sums, STREAMS, four);
  int64_t c = begin;
  for (; c + LANES <= end; c += LANES) add([&](const auto* row, Vector& v) GCF_LAMBDA { load(row + c, v); });
  if (c < end) add([&](const auto* row, Vector& v) GCF_LAMBDA { load_few(row + c, end - c, v); });
  std::copy_n(four, STREAMS, sums);
}

// The raw maps of all targets at the positions [begin, end); `sums` is room for eight vectors per target.
// gradients(k) are the rows of target k; weights are (K, channels), maps (K, positions).
template <Method method, class Stored, class Gradients>
GCF_INLINE void sum_rows(const Rows<Stored>& activation, const Gradients& gradients, const float* weights,
                         int64_t targets, int64_t channels, int64_t positions, int64_t begin, int64_t end, Vector* sums,
                         float* maps) {
  const int64_t tile = targets == 1 ? channels : CHANNELS_PER_TILE;
  const int64_t quarter = (end - begin + STREAMS - 1) / STREAMS;
  // Two positions of each quarter at a time. Behind the last there is only the last again.
  const auto at = [=](int64_t first, int64_t i) GCF_LAMBDA {
    return std::min(begin + std::min(first + i / STREAMS, quarter - 1) + i % STREAMS * quarter, end - 1);
  };
  for (int64_t first = 0; first < quarter; first += LANES / STREAMS) {
    std::fill_n(sums, targets * LANES, Vector{});
    for (int64_t c = 0; c < channels; c += tile)
      for (int64_t k = 0; k < targets; ++k) {
        const Rows<Stored> gradient = gradients(k);
        for (int64_t i = 0; i < LANES; i += STREAMS) {
          const Stored *a[STREAMS], *g[STREAMS];
          GCF_UNROLL for (int64_t j = 0; j < STREAMS; ++j) {
            a[j] = activation[at(first, i + j)];
            g[j] = gradient[at(first, i + j)];
          }
          multiply_rows<method>(a, g, weights + k * channels, c, std::min(c + tile, channels), sums + k * LANES + i);
        }
      }
    for (int64_t k = 0; k < targets; ++k) {
      Vector lanes[LANES], sum;
      std::copy_n(sums + k * LANES, LANES, lanes);
      sum_lanes(lanes, sum);
      for (int64_t i = 0; i < LANES; ++i) maps[k * positions + at(first, i)] = sum[i];
    }
  }
}
