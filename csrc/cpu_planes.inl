// Raw maps from planes: one channel's positions side by side in memory, a block of channels at a time.
//
// Reading is what bounds it. Per block the gradients are read once to be pooled, and the activations once to be
// added to the map, which stays in the cache.

// The sum of term(p) over the positions p of one channel, in a fixed number of interleaved double sums.
template <class Term>
GCF_INLINE double sum_wide(int64_t positions, const Term& term) {
  double sums[LANES] = {};
  int64_t p = 0;
  for (; p + LANES <= positions; p += LANES) GCF_UNROLL for (int64_t i = 0; i < LANES; ++i) sums[i] += term(p + i);
  for (int64_t i = 0; p + i < positions; ++i) sums[i] += term(p + i);
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

// The sum of a plane, still in eight lanes.
template <class Stored>
GCF_INLINE void sum_plane(const Stored* plane, int64_t positions, Vector& sum) {
  const int64_t tail = positions % LANES;
  if (positions < LANES) return load_few(plane, tail, sum);
  Vector v;
  int64_t p = 0;
  if (positions >= 8 * LANES) {
    Vector sums[4] = {};
    for (; p + 4 * LANES <= positions; p += 4 * LANES) GCF_UNROLL for (int64_t i = 0; i < 4; ++i) {
        load(plane + p + i * LANES, v);
        sums[i] += v;
      }
    sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  } else {
    load(plane, sum);
    p = LANES;
  }
  for (; p + LANES <= positions; p += LANES) {
    load(plane + p, v);
    sum += v;
  }
  if (tail != 0) {
    load_last(plane + positions, tail, v);
    sum += v;
  }
}

// The weights of a block of channels; missing channels repeat the last one and are left without weight.
template <Method method, class Stored>
GCF_INLINE void weigh(const Stored* const (&activation)[BLOCK], const Stored* const (&gradient)[BLOCK],
                      int64_t channels, int64_t positions, Vector& weight) {
  if constexpr (method == Method::gradcam) {
    Vector sums[BLOCK];
    GCF_UNROLL for (int64_t j = 0; j < BLOCK; ++j) sum_plane(gradient[j], positions, sums[j]);
    sum_lanes(sums, weight);
    weight /= static_cast<float>(positions);
  } else {
    for (int64_t j = 0; j < channels; ++j) {
      const Stored* a = activation[j];
      const Stored* g = gradient[j];
      const double total = sum_wide(positions, [=](int64_t p) { return to_float(a[p]); });
      if constexpr (method == Method::gradcam_plus_plus)
        weight[j] =
            static_cast<float>(sum_wide(positions, [=](int64_t p) { return plus_plus_term(to_float(g[p]), total); }));
      else
        weight[j] = xgradcam_weight(
            sum_wide(positions, [=](int64_t p) { return static_cast<double>(to_float(g[p])) * to_float(a[p]); }),
            total);
    }
  }
  for (int64_t j = channels; j < BLOCK; ++j) weight[j] = 0.0f;
}

GCF_INLINE void sum_terms(const Vector (&t)[BLOCK], Vector& sum) {
  sum = ((t[0] + t[1]) + (t[2] + t[3])) + ((t[4] + t[5]) + (t[6] + t[7]));
}

// map[p] += the sum over a block of term(j, where): `read` fills the terms of eight positions.
template <class Read, class ReadLast, class ReadFew>
GCF_INLINE void add_terms(int64_t positions, float* map, const Read& read, const ReadLast& read_last,
                          const ReadFew& read_few) {
  Vector terms[BLOCK];
  Vector sum, old;
  int64_t p = 0;
  for (; p + LANES <= positions; p += LANES) {
    GCF_UNROLL for (int64_t j = 0; j < BLOCK; ++j) read(j, p, terms[j]);
    sum_terms(terms, sum);
    load(map + p, old);
    store(old + sum, map + p);
  }
  const int64_t tail = positions - p;
  if (tail == 0) return;
  if (positions >= LANES) {
    GCF_UNROLL for (int64_t j = 0; j < BLOCK; ++j) read_last(j, tail, terms[j]);
    sum_terms(terms, sum);
    load(map + positions - LANES, old);
    store(old + sum, map + positions - LANES);
  } else {
    GCF_UNROLL for (int64_t j = 0; j < BLOCK; ++j) read_few(j, tail, terms[j]);
    sum_terms(terms, sum);
    for (int64_t i = 0; i < tail; ++i) map[i] += sum[i];
  }
}

template <Method method>
GCF_INLINE void position_terms(const Vector& activation, const Vector& gradient, Vector& term) {
  if constexpr (method == Method::layercam) {
    term = (gradient > 0.0f ? gradient : 0.0f * gradient) * activation;
  } else {
    term = gradient * activation;
    if constexpr (method == Method::elementwise) term = term > 0.0f ? term : 0.0f * term;
  }
}

// Adds a block of up to eight channels, given as planes, to a map.
template <Method method, class Stored>
GCF_INLINE void add_planes(const Stored* const (&activation)[BLOCK], const Stored* const (&gradient)[BLOCK],
                           int64_t channels, int64_t positions, float* map) {
  if constexpr (weighs_channels(method)) {
    Vector weight = {};
    weigh<method>(activation, gradient, channels, positions, weight);
    const auto weighted = [&](int64_t j, const auto& loaded, Vector& term) { term = weight[j] * loaded; };
    Vector a;
    add_terms(
        positions, map,
        [&](int64_t j, int64_t p, Vector& term) {
          load(activation[j] + p, a);
          weighted(j, a, term);
        },
        [&](int64_t j, int64_t tail, Vector& term) {
          load_last(activation[j] + positions, tail, a);
          weighted(j, a, term);
        },
        [&](int64_t j, int64_t tail, Vector& term) {
          load_few(activation[j], tail, a);
          weighted(j, a, term);
        });
  } else {
    Vector a, g;
    const auto multiplied = [&](int64_t j, Vector& term) {
      if (j < channels)
        position_terms<method>(a, g, term);
      else
        term = Vector{};
    };
    add_terms(
        positions, map,
        [&](int64_t j, int64_t p, Vector& term) {
          load(activation[j] + p, a);
          load(gradient[j] + p, g);
          multiplied(j, term);
        },
        [&](int64_t j, int64_t tail, Vector& term) {
          load_last(activation[j] + positions, tail, a);
          load_last(gradient[j] + positions, tail, g);
          multiplied(j, term);
        },
        [&](int64_t j, int64_t tail, Vector& term) {
          load_few(activation[j], tail, a);
          load_few(gradient[j], tail, g);
          multiplied(j, term);
        });
  }
}
