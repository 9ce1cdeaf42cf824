// Raw maps from planes: one channel's positions side by side in memory.
//
// Reading is what bounds it, and how close it comes to that is decided by reading both inputs at the same time:
// Grad-CAM pools the gradients of one block of channels while it adds the activations of the block before. Seen on two
// cores of an EPYC with 32 MiB of L3 cache, (16,2048,7,7) in float32, one thread, as a multiple of a loop that merely
// reads both inputs: first the gradients of 64 channels, then their activations 1.13 to 1.37; both at once 1.04
// to 1.14. For (64,2048,7,7), which exceeds the cache, on two threads: taking each input as two streams, channels by
// turns from the first half and from the second, took 0.85 to 0.95 of the time of one stream each; four each took up
// to 1.3 times that of two. Tried on the former without gain: weighing the next 64 channels before adding these, fused
// multiplication and addition, aligned loads across planes, all loads unrolled. Software prefetches, of every line some
// blocks or a whole slab ahead or of the first lines of each page, cost up to a tenth.
//
// On two cores of another (Zen 4), two threads, beside the same loop: walking all slabs of an image without a break,
// 1.15 to 1.18 for (16,2048,7,7), where a call for each slab took 1.31, and 0.98 to 1.07 for (64,2048,7,7). What comes
// out of the L2 cache bounds it there, at 32 bytes a cycle: adding a block two or three blocks behind its pooling
// changed nothing, all pairs of a block written out were slower in the cache and quicker beyond it, by a twentieth.

// One plane of each half.
constexpr int64_t PAIR = 2;

// The planes of one pass, in turns: those of an even turn lie `step` apart, and each has its odd one `apart` from it.
template <class Stored>
struct Planes {
  const Stored* data;
  int64_t step, apart;

  const Stored* operator[](int64_t turn) const { return data + (turn >> 1) * step + (turn & 1) * apart; }
  // The turns from an even one on.
  Planes from(int64_t turn) const { return {data + (turn >> 1) * step, step, apart}; }
};

// Calls f(turn) for each turn; by pairs, because of these the compiler knows the halves.
template <class F>
GCF_INLINE void each_pair(int64_t turns, const F& f) {
  int64_t turn = 0;
  for (; turn + PAIR <= turns; turn += PAIR) GCF_UNROLL for (int64_t j = 0; j < PAIR; ++j) f(turn + j);
  if (turn < turns) f(turn);
}

// Calls f(at) for each vector of a plane; at(plane, v) reads it. The last reads zeros where there is nothing left.
template <class F>
GCF_INLINE void each_vector(int64_t positions, const F& f) {
  int64_t p = 0;
  for (; p + LANES <= positions; p += LANES) f([=](const auto* plane, Vector& v) GCF_LAMBDA { load(plane + p, v); });
  const int64_t tail = positions - p;
  if (tail != 0 && p != 0)
    f([=](const auto* plane, Vector& v) GCF_LAMBDA { load_last(plane + positions, tail, v); });
  else if (tail != 0)
    f([=](const auto* plane, Vector& v) GCF_LAMBDA { load_few(plane, tail, v); });
}

// The sums that the weights of a channel are made of: of its activations, and under XGrad-CAM of the products, too.
template <Method method, class Stored>
GCF_INLINE void sum_plane(const Stored* activation, const Stored* gradient, int64_t positions, double& total,
                          double& product) {
  Vector v;
  Wide a[2], g[2], totals[2] = {}, products[2] = {};
  each_vector(positions, [&](const auto& at) GCF_LAMBDA {
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

// Grad-CAM++'s weight of a channel whose activations sum up to `total`.
template <class Stored>
GCF_INLINE float plus_plus_weight(const Stored* gradient, int64_t positions, double total) {
  Vector g, sums{}, denominator, term;
  const auto add_terms = [&](const auto& denominator_of) GCF_LAMBDA {
    each_vector(positions, [&](const auto& at) GCF_LAMBDA {
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

// The weights of a slab, or of a part of one. Sums first, for all, so that the weight of one channel does not wait for
// its own.
template <Method method, class Stored>
GCF_INLINE void weigh(const Planes<Stored>& activation, const Planes<Stored>& gradient, int64_t channels,
                      int64_t positions, float* weights) {
  if constexpr (method == Method::gradcam) {
    for (int64_t c = 0; c < channels; ++c) {
      Vector v, sum{};
      each_vector(positions, [&](const auto& at) GCF_LAMBDA {
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

// Calls f(n), n a type that holds the number of vectors, or zero for more than seven: as many sums, as many numbers
// being pooled, a weight and a product are all of sixteen registers.
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

// What one plane adds to the map there: each activation times the weight of the channel, or the term of its position.
template <Method method, class F, class Stored>
GCF_INLINE void add_term(const F& at, const Stored* activation, const Stored* gradient, const Vector& weight,
                         Vector& sum) {
  Vector a, g;
  at(activation, a);
  if constexpr (weighs_channels(method)) {
    a *= weight;
  } else {
    at(gradient, g);
    position_term<method>(a, g, a);
  }
  sum += a;
}

// Adds the planes of a slab, of `vectors` vectors, to a map; the last vector may overlap the one before: both then sum
// the same numbers in the same order.
template <Method method, int64_t vectors, class Stored>
GCF_INLINE void add_small(const Planes<Stored>& activation, const Planes<Stored>& gradient, const float* weights,
                          int64_t channels, int64_t positions, float* map) {
  const auto from = [=](int64_t i) GCF_LAMBDA { return i + 1 < vectors ? i * LANES : positions - LANES; };
  Vector sums[vectors], weight;
  GCF_UNROLL for (int64_t i = 0; i < vectors; ++i) load(map + from(i), sums[i]);
  each_pair(channels, [&](int64_t c) GCF_LAMBDA {
    if constexpr (weighs_channels(method)) fill(weights[c], weight);
    GCF_UNROLL for (int64_t i = 0; i < vectors; ++i) {
      const auto at = [=](const Stored* plane, Vector& v) GCF_LAMBDA { load(plane + from(i), v); };
      add_term<method>(at, activation[c], gradient[c], weight, sums[i]);
    }
  });
  GCF_UNROLL for (int64_t i = 0; i < vectors; ++i) store(sums[i], map + from(i));
}

// Adds planes of any size, the map in memory: `many` from channel c on. At 14x14 and above, taking up to eight vectors
// of all channels before the next eight, in registers, took up to 1.7 times as long as taking the planes whole, in
// pairs.
template <Method method, int64_t many, class Stored>
GCF_INLINE void add_large(const Planes<Stored>& activation, const Planes<Stored>& gradient, const float* weights,
                          int64_t c, int64_t positions, float* map) {
  Vector weight[many], sum;
  if constexpr (weighs_channels(method)) GCF_UNROLL for (int64_t j = 0; j < many; ++j) fill(weights[c + j], weight[j]);
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

// Adds the planes of a slab, or of a part of one, to a map, each times its weight where the method is Grad-CAM.
template <Method method, class Stored>
GCF_INLINE void add_planes(const Planes<Stored>& activation, const Planes<Stored>& gradient, const float* weights,
                           int64_t channels, int64_t positions, float* map) {
  if (positions < LANES) {
    Vector a, g, term;
    for (int64_t c = 0; c < channels; ++c) {
      load_few(activation[c], positions, a);
      if constexpr (weighs_channels(method)) {
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
      add_small<method, vectors.value>(activation, gradient, weights, channels, positions, map);
    } else {
      int64_t c = 0;
      for (; c + PAIR <= channels; c += PAIR) add_large<method, PAIR>(activation, gradient, weights, c, positions, map);
      if (c < channels) add_large<method, 1>(activation, gradient, weights, c, positions, map);
    }
  });
}

// One step of Grad-CAM: sums up each plane of a block of gradients, lane by lane, and adds a block of activations.
// The planes have `vectors` vectors, the last of which may overlap the one before; the map is in `sums`.
template <int64_t vectors, bool pools, bool adds, class Stored>
GCF_INLINE void walk(Planes<Stored> gradient, Planes<Stored> activation, const float (&weights)[BLOCK],
                     int64_t positions, Vector (&pooled)[BLOCK], Vector (&sums)[vectors]) {
  const int64_t last = positions - LANES;
  const int64_t tail = positions - (vectors - 1) * LANES;
  Vector v, weight, parts[vectors];
  for (int64_t pair = 0; pair < BLOCK; pair += PAIR) {
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
    gradient.data += gradient.step;
    activation.data += activation.step;
  }
}

// The same for planes of any size, and the map in memory. A pair at a time: one by one took up to 1.2 times as long,
// and so did four.
template <bool pools, bool adds, class Stored>
GCF_INLINE void walk_large(const Planes<Stored>& gradient, const Planes<Stored>& activation,
                           const float (&weights)[BLOCK], int64_t positions, Vector (&pooled)[BLOCK], float* map) {
  GCF_UNROLL for (int64_t first = 0; first < BLOCK; first += PAIR) {
    Vector weight[PAIR], parts[PAIR] = {}, sum, v;
    const Stored *g[PAIR], *a[PAIR];
    GCF_UNROLL for (int64_t j = 0; j < PAIR; ++j) {
      g[j] = gradient[first + j];
      a[j] = activation[first + j];
    }
    if constexpr (adds) GCF_UNROLL for (int64_t j = 0; j < PAIR; ++j) fill(weights[first + j], weight[j]);
    const auto some = [&](const auto& at, int64_t p) GCF_LAMBDA {
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
      some([&](const Stored* plane, Vector& to) GCF_LAMBDA { load(plane + p, to); }, p);
    if (p < positions)
      some([&](const Stored* plane, Vector& to) GCF_LAMBDA { load_last(plane + positions, positions - p, to); },
           positions - LANES);
    GCF_UNROLL for (int64_t j = 0; j < PAIR; ++j) pooled[first + j] = parts[j];
  }
}

// Adds whole blocks of channels to the maps of their slabs by Grad-CAM: each is pooled while the one before it is
// added. `vectors` is how many a plane has, or zero for planes that do not fit the registers. The first line of what
// lies `ahead` in each half of the gradients is fetched early, unless that is zero.
template <int64_t vectors, class Stored>
GCF_INLINE void pool_and_add(const Planes<Stored>& activation, const Planes<Stored>& gradient, int64_t channels,
                             int64_t positions, int64_t ahead, float* map, int64_t apart) {
  Vector pooled[BLOCK], mean, sums[std::max<int64_t>(vectors, 1)];
  float weights[BLOCK];
  const auto at = [=](int64_t i) GCF_LAMBDA { return i + 1 < vectors ? i * LANES : positions - LANES; };
  const auto keep = [&]() GCF_LAMBDA {
    if constexpr (vectors != 0) GCF_UNROLL for (int64_t i = 0; i < vectors; ++i) store(sums[i], map + at(i));
  };
  // Pools the channels from `c` on, and adds the block before `c`.
  const auto step = [&](auto pools, auto adds, int64_t c) GCF_LAMBDA {
    const Planes<Stored> g = gradient.from(pools.value ? c : 0);
    const Planes<Stored> a = activation.from(adds.value ? c - BLOCK : 0);
    if constexpr (adds.value)
      if (c != BLOCK && (c - BLOCK) % CHANNELS_PER_SLAB == 0) {
        keep();
        map += apart;
        if constexpr (vectors != 0) GCF_UNROLL for (int64_t i = 0; i < vectors; ++i) sums[i] = Vector{};
      }
    if constexpr (pools.value)
      if (ahead != 0) GCF_UNROLL for (int64_t j = 0; j < PAIR; ++j) __builtin_prefetch(g[j] + ahead);
    if constexpr (vectors != 0)
      walk<vectors, pools.value, adds.value>(g, a, weights, positions, pooled, sums);
    else
      walk_large<pools.value, adds.value>(g, a, weights, positions, pooled, map);
    if constexpr (pools.value) {
      sum_lanes(pooled, mean);
      store(mean / static_cast<float>(positions), weights);
    }
  };
  if constexpr (vectors != 0) GCF_UNROLL for (int64_t i = 0; i < vectors; ++i) load(map + at(i), sums[i]);
  constexpr std::true_type yes;
  constexpr std::false_type no;
  step(yes, no, 0);
  for (int64_t c = BLOCK; c < channels; c += BLOCK) step(yes, yes, c);
  step(no, yes, channels);
  keep();
}

// Adds a pass of channels to the maps of one target: one map for each slab, `apart` floats apart. Of Grad-CAM only the
// channels behind the last whole block, and tiny planes, are left for the loop.
template <Method method, class Stored>
GCF_INLINE void add_pass(const Planes<Stored>& activation, const Planes<Stored>& gradient, int64_t channels,
                         int64_t positions, int64_t ahead, float* map, int64_t apart) {
  int64_t c = 0;
  if constexpr (method == Method::gradcam) {
    if (positions >= LANES) c = channels / BLOCK * BLOCK;
    if (c != 0)
      with_vectors((positions + LANES - 1) / LANES, [&](auto vectors) GCF_LAMBDA {
        pool_and_add<vectors.value>(activation, gradient, c, positions, ahead, map, apart);
      });
  }
  for (; c < channels; c += CHANNELS_PER_SLAB) {
    const int64_t count = std::min(CHANNELS_PER_SLAB, channels - c);
    const Planes<Stored> a = activation.from(c), g = gradient.from(c);
    float* to = map + c / CHANNELS_PER_SLAB * apart;
    if constexpr (weighs_channels(method)) {
      float weights[CHANNELS_PER_SLAB];
      weigh<method>(a, g, count, positions, weights);
      add_planes<Method::gradcam>(a, g, weights, count, positions, to);
    } else {
      add_planes<method>(a, g, nullptr, count, positions, to);
    }
  }
}

// The same from gradients that are one number per channel, of which nothing else is read.
template <Method method, class Stored>
GCF_INLINE void add_uniform(const Planes<Stored>& activation, const Planes<Stored>& gradient, int64_t channels,
                            int64_t positions, float* map, int64_t apart) {
  if constexpr (factors_uniform(method))
    for (int64_t c = 0; c < channels; c += CHANNELS_PER_SLAB) {
      const int64_t count = std::min(CHANNELS_PER_SLAB, channels - c);
      const Planes<Stored> a = activation.from(c), g = gradient.from(c);
      float factors[CHANNELS_PER_SLAB];
      each_pair(count, [&](int64_t i) GCF_LAMBDA { position_term<method>(1.0f, to_float(*g[i]), factors[i]); });
      add_planes<Method::gradcam>(a, g, factors, count, positions, map + c / CHANNELS_PER_SLAB * apart);
    }
}
