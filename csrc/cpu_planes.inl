// Raw maps from planes: one channel's positions side by side in memory, a block of channels at a time.
//
// Reading is what bounds it. Per block the gradients are read once to be pooled, and the activations once to be
// added to the map, which stays in the cache.

// A block of channels. Where the slab ends within it, its last channel is repeated, and given no weight.
template <class Stored>
using Planes = const Stored* const (&)[BLOCK];

// Calls f(at, first, count) for each group of `count` positions from `first` on; at(plane, v) reads them from a plane
// into v. The last group of a plane overlaps the one before and reads zeros there.
template <class F>
GCF_INLINE void walk(int64_t positions, const F& f) {
  int64_t p = 0;
  for (; p + LANES <= positions; p += LANES)
    f([&](const auto* plane, Vector& v) GCF_LAMBDA { load(plane + p, v); }, p, LANES);
  const int64_t tail = positions - p;
  if (tail == 0) return;
  if (p == 0) return f([&](const auto* plane, Vector& v) GCF_LAMBDA { load_few(plane, tail, v); }, p, tail);
  f([&](const auto* plane, Vector& v) GCF_LAMBDA { load_last(plane + positions, tail, v); }, positions - LANES, LANES);
}

// Grad-CAM's weights: the mean of each plane.
template <class Stored>
GCF_INLINE void pool(Planes<Stored> gradient, int64_t positions, Vector& weight) {
  Vector sums[BLOCK] = {};
  walk(positions, [&](const auto& at, int64_t, int64_t) GCF_LAMBDA {
    Vector v;
    GCF_UNROLL for (int64_t j = 0; j < BLOCK; ++j) {
      at(gradient[j], v);
      sums[j] += v;
    }
  });
  sum_lanes(sums, weight);
  weight /= static_cast<float>(positions);
}

// The sum of term(p) over the positions p of one channel, in a fixed number of interleaved double sums.
template <class Term>
GCF_INLINE double sum_wide(int64_t positions, const Term& term) {
  double sums[LANES] = {};
  int64_t p = 0;
  for (; p + LANES <= positions; p += LANES)
    for (int64_t i = 0; i < LANES; ++i) sums[i] += term(p + i);
  for (int64_t i = 0; p + i < positions; ++i) sums[i] += term(p + i);
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

// The weight of one channel under the methods that divide by a sum.
template <Method method, class Stored>
GCF_INLINE float weigh_plane(const Stored* a, const Stored* g, int64_t positions) {
  const double total = sum_wide(positions, [=](int64_t p) GCF_LAMBDA { return to_float(a[p]); });
  if constexpr (method == Method::gradcam_plus_plus)
    return static_cast<float>(
        sum_wide(positions, [=](int64_t p) GCF_LAMBDA { return plus_plus_term(to_float(g[p]), total); }));
  const double products =
      sum_wide(positions, [=](int64_t p) GCF_LAMBDA { return static_cast<double>(to_float(g[p])) * to_float(a[p]); });
  return xgradcam_weight(products, total);
}

// Adds the first `channels` planes of a block to a map.
template <Method method, class Stored>
GCF_INLINE void add_planes(Planes<Stored> activation, Planes<Stored> gradient, int64_t channels, int64_t positions,
                           float* map) {
  Vector weight[BLOCK];
  if constexpr (weighs_channels(method)) {
    Vector weights = {};
    if constexpr (method == Method::gradcam)
      pool<Stored>(gradient, positions, weights);
    else
      for (int64_t j = 0; j < channels; ++j) weights[j] = weigh_plane<method>(activation[j], gradient[j], positions);
    for (int64_t j = channels; j < BLOCK; ++j) weights[j] = 0.0f;
    GCF_UNROLL for (int64_t j = 0; j < BLOCK; ++j) weight[j] = Vector{} + weights[j];
  }
  walk(positions, [&](const auto& at, int64_t first, int64_t count) GCF_LAMBDA {
    Vector t[BLOCK], a, g;
    GCF_UNROLL for (int64_t j = 0; j < BLOCK; ++j) {
      at(activation[j], a);
      if constexpr (weighs_channels(method)) {
        t[j] = weight[j] * a;
      } else {
        at(gradient[j], g);
        position_term<method>(a, g, t[j]);
        if (j >= channels) t[j] = Vector{};
      }
    }
    const Vector sum = ((t[0] + t[1]) + (t[2] + t[3])) + ((t[4] + t[5]) + (t[6] + t[7]));
    if (count == LANES) {
      Vector old;
      load(map + first, old);
      store(old + sum, map + first);
    } else {
      for (int64_t i = 0; i < count; ++i) map[i] += sum[i];
    }
  });
}
