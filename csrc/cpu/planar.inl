// Raw maps of planar feature maps: the positions of one channel are adjacent in memory.
//
// Reading limits the speed, and both inputs are read at the same time: Grad-CAM pools the gradients of eight channels
// while it adds the activations of the eight channels before. Times as multiples of a loop that only reads both inputs:
//
//    Two cores of an EPYC with 32 MiB of L3 cache, float32:
//    (16,2048,7,7), one thread: gradients of 64 channels first, then their activations 1.13 to 1.37; both at once 1.04
//    to 1.14.
//    (64,2048,7,7), beyond the cache, two threads: two streams per input (channels alternately from the first and the
//    second half) took 0.85 to 0.95 of the time of one stream; four streams up to 1.3 times that of two.
//    Two cores of a Zen 4, two threads: (16,2048,7,7) 1.15 to 1.18 for all slabs of an image in one call, 1.31 with a
//    call per slab; (64,2048,7,7) 0.98 to 1.07. The limit there is the L2 cache, at 32 bytes a cycle.
//
// Tried without gain: weighting the next 64 channels before adding these, fused multiply-add, aligned loads across
// planes, all loads unrolled, adding two or three steps behind the pooling. Software prefetches, of every line some
// steps or a slab ahead or of the first lines of each page, cost up to a tenth. Unrolling all pairs of a step was
// slower in the cache, and faster beyond it, by a twentieth.

// One plane of each half.
constexpr int64_t PAIR = 2;

// The planes of one pass. Even turns take channels of the first half, `pair_stride` apart; the odd turn that follows
// takes the plane `odd_offset` from it, of the second half.
template <class Stored>
struct Planes {
  const Stored* data;
  int64_t pair_stride, odd_offset;

  const Stored* operator[](int64_t turn) const { return data + (turn >> 1) * pair_stride + (turn & 1) * odd_offset; }
  // The planes from an even turn on.
  Planes from(int64_t turn) const { return {data + (turn >> 1) * pair_stride, pair_stride, odd_offset}; }
};

// Calls f(turn) for each turn, in pairs, because the compiler then knows which half each plane comes from.
template <class F>
GCF_INLINE void for_each_pair(int64_t turns, const F& f) {
  int64_t turn = 0;
  for (; turn + PAIR <= turns; turn += PAIR) GCF_UNROLL for (int64_t j = 0; j < PAIR; ++j) f(turn + j);
  if (turn < turns) f(turn);
}

// Calls f(at) for each vector of a plane; at(plane, v) loads it. The last vector is filled up with zeros.
template <class F>
GCF_INLINE void for_each_vector(int64_t positions, const F& f) {
  int64_t p = 0;
  for (; p + LANES <= positions; p += LANES) f([=](const auto* plane, Vector& v) GCF_LAMBDA { load(plane + p, v); });
  const int64_t tail = positions - p;
  if (tail != 0 && p != 0)
    f([=](const auto* plane, Vector& v) GCF_LAMBDA { load_last(plane + positions, tail, v); });
  else if (tail != 0)
    f([=](const auto* plane, Vector& v) GCF_LAMBDA { load_few(plane, tail, v); });
}

// The sums for the weight of a channel: of its activations and, for XGrad-CAM, of the products.
template <Method method, class Stored>
GCF_INLINE void sum_plane(const Stored* activation, const Stored* gradient, int64_t positions, double& total,
                          double& product) {
  Vector v;
  Wide a[2], g[2], totals[2] = {}, products[2] = {};
  for_each_vector(positions, [&](const auto& at) GCF_LAMBDA {
    at(activation, v);
    widen(v, a);
    GCF_UNROLL for (int64_t i = 0; i < 2; ++i) totals[i] += a[i];
    if constexpr (method == Method::xgradcam) {
      at(gradient, v);
      widen(v, g);
      GCF_UNROLL for (int64_t i = 0; i < 2; ++i) products[i] += a[i] * g[i];
    }
  });
  total = sum_lanes(totals);
  if constexpr (method == Method::xgradcam) product = sum_lanes(products);
}

// The Grad-CAM++ weight of a channel whose activations sum up to `total`.
template <class Stored>
GCF_INLINE float plus_plus_weight(const Stored* gradient, int64_t positions, double total) {
  Vector g, sums{}, denominator, term;
  const auto add_terms = [&](const auto& denominator_of) GCF_LAMBDA {
    for_each_vector(positions, [&](const auto& at) GCF_LAMBDA {
      at(gradient, g);
      denominator_of(g, denominator);
      plus_plus_term(g, denominator, term);
      sums += term;
    });
  };
  if (total >= 0.0) {
    Vector narrow_total;
    fill(static_cast<float>(total), narrow_total);
    add_terms([&](const Vector& from, Vector& to) GCF_LAMBDA { to = 2.0f + narrow_total * from; });
  } else {
    const Wide half{total, total, total, total};
    const Wide wide_total[2] = {half, half};
    add_terms([&](const Vector& from, Vector& to) GCF_LAMBDA { plus_plus_denominators(from, wide_total, to); });
  }
  return sum_lanes(sums);
}

// The weights of a slab, or of a part of one. All sums are computed before the first weight, so that no weight waits
// for its sums.
template <Method method, class Stored>
GCF_INLINE void weigh(const Planes<Stored>& activation, const Planes<Stored>& gradient, int64_t channels,
                      int64_t positions, float* weights) {
  if constexpr (method == Method::gradcam) {
    for (int64_t c = 0; c < channels; ++c) {
      Vector v, sum{};
      for_each_vector(positions, [&](const auto& at) GCF_LAMBDA {
        at(gradient[c], v);
        sum += v;
      });
      weights[c] = sum_lanes(sum) / static_cast<float>(positions);
    }
  } else {
    double totals[CHANNELS_PER_SLAB], products[CHANNELS_PER_SLAB];
    for (int64_t c = 0; c < channels; ++c)
      sum_plane<method>(activation[c], gradient[c], positions, totals[c], products[c]);
    for (int64_t c = 0; c < channels; ++c)
      weights[c] = method == Method::xgradcam ? xgradcam_weight(products[c], totals[c])
                                              : plus_plus_weight(gradient[c], positions, totals[c]);
  }
}

// Calls f(n), n the number of vectors as a compile-time constant, or 0 if there are more than seven: seven sums, seven
// pooled vectors, a weight and a product are the sixteen registers.
template <class F>
GCF_INLINE void with_vectors(int64_t vectors, const F& f) {
  switch (vectors) {
    case 1: return f(std::integral_constant<int64_t, 1>());
    case 2: return f(std::integral_constant<int64_t, 2>());
    case 3: return f(std::integral_constant<int64_t, 3>());
    case 4: return f(std::integral_constant<int64_t, 4>());
    case 5: return f(std::integral_constant<int64_t, 5>());
    case 6: return f(std::integral_constant<int64_t, 6>());
    case 7: return f(std::integral_constant<int64_t, 7>());
    default: return f(std::integral_constant<int64_t, 0>());
  }
}

// What one plane adds to the map: each activation times the channel's weight, or the term of its position.
template <Method method, class F, class Stored>
GCF_INLINE void add_term(const F& at, const Stored* activation, const Stored* gradient, const Vector& weight,
                         Vector& sum) {
  Vector a, g;
  at(activation, a);
  if constexpr (weights_channels(method)) {
    a *= weight;
  } else {
    at(gradient, g);
    position_term<method>(a, g, a);
  }
  sum += a;
}

// Adds the planes of a slab, of `vectors` vectors each, to a map that is kept in registers. The last vector may overlap
// the one before; both then add the same numbers in the same order.
template <Method method, int64_t vectors, class Stored>
GCF_INLINE void add_in_registers(const Planes<Stored>& activation, const Planes<Stored>& gradient, const float* weights,
                                 int64_t channels, int64_t positions, float* map) {
  const auto from = [=](int64_t i) GCF_LAMBDA { return i + 1 < vectors ? i * LANES : positions - LANES; };
  Vector sums[vectors], weight;
  GCF_UNROLL for (int64_t i = 0; i < vectors; ++i) load(map + from(i), sums[i]);
  for_each_pair(channels, [&](int64_t c) GCF_LAMBDA {
    if constexpr (weights_channels(method)) fill(weights[c], weight);
    GCF_UNROLL for (int64_t i = 0; i < vectors; ++i) {
      const auto at = [=](const Stored* plane, Vector& v) GCF_LAMBDA { load(plane + from(i), v); };
      add_term<method>(at, activation[c], gradient[c], weight, sums[i]);
    }
  });
  GCF_UNROLL for (int64_t i = 0; i < vectors; ++i) store(sums[i], map + from(i));
}

// Adds `many` planes of any size, from channel c on, to a map in memory. At 14x14 and above, keeping up to eight
// vectors of the map in registers over all channels took up to 1.7 times as long as taking whole planes in pairs.
template <Method method, int64_t many, class Stored>
GCF_INLINE void add_in_memory(const Planes<Stored>& activation, const Planes<Stored>& gradient, const float* weights,
                              int64_t c, int64_t positions, float* map) {
  Vector weight[many], sum;
  if constexpr (weights_channels(method)) GCF_UNROLL for (int64_t j = 0; j < many; ++j) fill(weights[c + j], weight[j]);
  int64_t p = 0;
  const auto add = [&](const auto& at, int64_t to) GCF_LAMBDA {
    load(map + to, sum);
    GCF_UNROLL for (int64_t j = 0; j < many; ++j)
        add_term<method>(at, activation[c + j], gradient[c + j], weight[j], sum);
    store(sum, map + to);
  };
  for (; p + LANES <= positions; p += LANES)
    add([=](const Stored* plane, Vector& v) GCF_LAMBDA { load(plane + p, v); }, p);
  if (p < positions)
    add([=](const Stored* plane, Vector& v) GCF_LAMBDA { load_last(plane + positions, positions - p, v); },
        positions - LANES);
}

// Adds the planes of a slab, or of a part of one, to a map, weighted if the method has weights.
template <Method method, class Stored>
GCF_INLINE void add_planes(const Planes<Stored>& activation, const Planes<Stored>& gradient, const float* weights,
                           int64_t channels, int64_t positions, float* map) {
  if (positions < LANES) {
    Vector a, g, term;
    for (int64_t c = 0; c < channels; ++c) {
      load_few(activation[c], positions, a);
      if constexpr (weights_channels(method)) {
        term = weights[c] * a;
      } else {
        load_few(gradient[c], positions, g);
        position_term<method>(a, g, term);
      }
      for (int64_t p = 0; p < positions; ++p) map[p] += term[p];
    }
    return;
  }
  with_vectors((positions + LANES - 1) / LANES, [&](auto vectors) GCF_LAMBDA {
    if constexpr (vectors.value != 0) {
      add_in_registers<method, vectors.value>(activation, gradient, weights, channels, positions, map);
    } else {
      int64_t c = 0;
      for (; c + PAIR <= channels; c += PAIR)
        add_in_memory<method, PAIR>(activation, gradient, weights, c, positions, map);
      if (c < channels) add_in_memory<method, 1>(activation, gradient, weights, c, positions, map);
    }
  });
}

// One step of Grad-CAM on small planes: pools eight planes of gradients, lane by lane, and adds eight planes of
// activations to the map in `sums`. Planes have `vectors` vectors, the last of which may overlap the one before.
template <int64_t vectors, bool pools, bool adds, class Stored>
GCF_INLINE void step_in_registers(Planes<Stored> gradient, Planes<Stored> activation,
                                  const float (&weights)[CHANNELS_PER_STEP], int64_t positions,
                                  Vector (&pooled)[CHANNELS_PER_STEP], Vector (&sums)[vectors]) {
  const int64_t last = positions - LANES;
  const int64_t tail = positions - (vectors - 1) * LANES;
  Vector v, weight, parts[vectors];
  for (int64_t pair = 0; pair < CHANNELS_PER_STEP; pair += PAIR) {
    GCF_UNROLL for (int64_t j = 0; j < PAIR; ++j) {
      if constexpr (pools) {
        const Stored* plane = gradient[j];
        if constexpr (vectors > 1)
          GCF_UNROLL for (int64_t i = 0; i + 1 < vectors; ++i) load(plane + i * LANES, parts[i]);
        load_last(plane + positions, tail, parts[vectors - 1]);
        GCF_UNROLL for (int64_t step = 1; step < vectors; step *= 2)
            GCF_UNROLL for (int64_t i = 0; i + step < vectors; i += 2 * step) parts[i] += parts[i + step];
        pooled[pair + j] = parts[0];
      }
      if constexpr (adds) {
        const Stored* plane = activation[j];
        fill(weights[pair + j], weight);
        GCF_UNROLL for (int64_t i = 0; i < vectors; ++i) {
          load(plane + (i + 1 < vectors ? i * LANES : last), v);
          sums[i] += weight * v;
        }
      }
    }
    gradient.data += gradient.pair_stride;
    activation.data += activation.pair_stride;
  }
}

// The same step on planes of any size, with the map in memory. Planes are taken in pairs: one by one and four at a time
// took up to 1.2 times as long.
template <bool pools, bool adds, class Stored>
GCF_INLINE void step_in_memory(const Planes<Stored>& gradient, const Planes<Stored>& activation,
                               const float (&weights)[CHANNELS_PER_STEP], int64_t positions,
                               Vector (&pooled)[CHANNELS_PER_STEP], float* map) {
  GCF_UNROLL for (int64_t first = 0; first < CHANNELS_PER_STEP; first += PAIR) {
    Vector weight[PAIR], parts[PAIR] = {}, sum, v;
    const Stored *g[PAIR], *a[PAIR];
    GCF_UNROLL for (int64_t j = 0; j < PAIR; ++j) {
      g[j] = gradient[first + j];
      a[j] = activation[first + j];
    }
    if constexpr (adds) GCF_UNROLL for (int64_t j = 0; j < PAIR; ++j) fill(weights[first + j], weight[j]);
    const auto step_vector = [&](const auto& at, int64_t p) GCF_LAMBDA {
      if constexpr (adds) load(map + p, sum);
      GCF_UNROLL for (int64_t j = 0; j < PAIR; ++j) {
        if constexpr (pools) {
          at(g[j], v);
          parts[j] += v;
        }
        if constexpr (adds) {
          at(a[j], v);
          sum += weight[j] * v;
        }
      }
      if constexpr (adds) store(sum, map + p);
    };
    int64_t p = 0;
    for (; p + LANES <= positions; p += LANES)
      step_vector([&](const Stored* plane, Vector& to) GCF_LAMBDA { load(plane + p, to); }, p);
    if (p < positions)
      step_vector([&](const Stored* plane, Vector& to) GCF_LAMBDA { load_last(plane + positions, positions - p, to); },
                  positions - LANES);
    GCF_UNROLL for (int64_t j = 0; j < PAIR; ++j) pooled[first + j] = parts[j];
  }
}

// Grad-CAM of whole steps of channels, added to the maps of their slabs: each step's gradients are pooled while the
// activations of the step before are added. `vectors` is the number of vectors per plane, or 0 for planes that do not
// fit in registers. Gradients are prefetched `ahead` numbers ahead in each half, unless `ahead` is 0.
template <int64_t vectors, class Stored>
GCF_INLINE void pool_and_add(const Planes<Stored>& activation, const Planes<Stored>& gradient, int64_t channels,
                             int64_t positions, int64_t ahead, float* map, int64_t map_stride) {
  Vector pooled[CHANNELS_PER_STEP], mean, sums[std::max<int64_t>(vectors, 1)];
  float weights[CHANNELS_PER_STEP];
  const auto at = [=](int64_t i) GCF_LAMBDA { return i + 1 < vectors ? i * LANES : positions - LANES; };
  const auto keep = [&]() GCF_LAMBDA {
    if constexpr (vectors != 0) GCF_UNROLL for (int64_t i = 0; i < vectors; ++i) store(sums[i], map + at(i));
  };
  // Pools the channels from c on, and adds those of the step before.
  const auto step = [&](auto pools, auto adds, int64_t c) GCF_LAMBDA {
    const Planes<Stored> g = gradient.from(pools.value ? c : 0);
    const Planes<Stored> a = activation.from(adds.value ? c - CHANNELS_PER_STEP : 0);
    if constexpr (adds.value)
      if (c != CHANNELS_PER_STEP && (c - CHANNELS_PER_STEP) % CHANNELS_PER_SLAB == 0) {
        keep();
        map += map_stride;
        if constexpr (vectors != 0) GCF_UNROLL for (int64_t i = 0; i < vectors; ++i) sums[i] = Vector{};
      }
    if constexpr (pools.value)
      if (ahead != 0) GCF_UNROLL for (int64_t j = 0; j < PAIR; ++j) __builtin_prefetch(g[j] + ahead);
    if constexpr (vectors != 0)
      step_in_registers<vectors, pools.value, adds.value>(g, a, weights, positions, pooled, sums);
    else
      step_in_memory<pools.value, adds.value>(g, a, weights, positions, pooled, map);
    if constexpr (pools.value) {
      sum_lanes(pooled, mean);
      store(mean / static_cast<float>(positions), weights);
    }
  };
  if constexpr (vectors != 0) GCF_UNROLL for (int64_t i = 0; i < vectors; ++i) load(map + at(i), sums[i]);
  constexpr std::true_type yes;
  constexpr std::false_type no;
  step(yes, no, 0);
  for (int64_t c = CHANNELS_PER_STEP; c < channels; c += CHANNELS_PER_STEP) step(yes, yes, c);
  step(no, yes, channels);
  keep();
}

// Adds a pass of channels to the maps of one target: one map per slab, `map_stride` floats apart. For Grad-CAM the loop
// is left with the channels behind the last whole step, and with planes smaller than a vector.
template <Method method, class Stored>
GCF_INLINE void add_pass(const Planes<Stored>& activation, const Planes<Stored>& gradient, int64_t channels,
                         int64_t positions, int64_t ahead, float* map, int64_t map_stride) {
  int64_t c = 0;
  if constexpr (method == Method::gradcam) {
    if (positions >= LANES) c = channels / CHANNELS_PER_STEP * CHANNELS_PER_STEP;
    if (c != 0)
      with_vectors((positions + LANES - 1) / LANES, [&](auto vectors) GCF_LAMBDA {
        pool_and_add<vectors.value>(activation, gradient, c, positions, ahead, map, map_stride);
      });
  }
  for (; c < channels; c += CHANNELS_PER_SLAB) {
    const int64_t count = std::min(CHANNELS_PER_SLAB, channels - c);
    const Planes<Stored> a = activation.from(c), g = gradient.from(c);
    float* to = map + c / CHANNELS_PER_SLAB * map_stride;
    if constexpr (weights_channels(method)) {
      float weights[CHANNELS_PER_SLAB];
      weigh<method>(a, g, count, positions, weights);
      add_planes<Method::gradcam>(a, g, weights, count, positions, to);
    } else {
      add_planes<method>(a, g, nullptr, count, positions, to);
    }
  }
}

// The same from gradients that are one number per channel; only this number is read.
template <Method method, class Stored>
GCF_INLINE void add_uniform(const Planes<Stored>& activation, const Planes<Stored>& gradient, int64_t channels,
                            int64_t positions, float* map, int64_t map_stride) {
  if constexpr (factors_uniform(method))
    for (int64_t c = 0; c < channels; c += CHANNELS_PER_SLAB) {
      const int64_t count = std::min(CHANNELS_PER_SLAB, channels - c);
      const Planes<Stored> a = activation.from(c), g = gradient.from(c);
      float factors[CHANNELS_PER_SLAB];
      for_each_pair(count, [&](int64_t i) GCF_LAMBDA { position_term<method>(1.0f, to_float(*g[i]), factors[i]); });
      add_planes<Method::gradcam>(a, g, factors, count, positions, map + c / CHANNELS_PER_SLAB * map_stride);
    }
}
