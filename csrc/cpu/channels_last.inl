// Raw maps of channels-last feature maps: the channels of one position are adjacent in memory, as in channels_last
// tensors and in tokens.
//
// Reading limits the speed, and a processor prefetches better from several places at once than far ahead in one. So
// positions are taken four at a time, one from each quarter of a thread's share; four adjacent positions at a time took
// up to 1.5 times as long as one by one. Only the weights of Grad-CAM++ and XGrad-CAM, which are summed in float64, are
// computed position by position.
//
// Each channel's weight and each position's value is summed by one thread in one order, so that the bits of the result
// do not depend on the split of the work.

// Positions pooled into one float per channel before this sum is added to the total, which bounds the rounding error.
constexpr int64_t POSITIONS_PER_SUM = 256;
// Positions taken at a time, as far apart as possible.
constexpr int64_t POSITION_STREAMS = 4;
// Channels multiplied at a time if several targets share the activations: those of eight positions fit in the L1 cache.
constexpr int64_t CHANNELS_PER_TILE = 256;

// One image's activations, or one target's gradients, by position.
template <class Stored>
struct ChannelsLast {
  const Stored* data;
  int64_t stride;

  const Stored* operator[](int64_t position) const { return data + position * stride; }
};

// The sums of the channels [begin, end) over all positions; `part` has room for as many floats.
template <class Stored>
GCF_INLINE void pool_channels_last(const ChannelsLast<Stored>& rows, int64_t positions, int64_t begin, int64_t end,
                                   float* part, float* sums) {
  const int64_t count = end - begin;
  const int64_t quarter = positions / POSITION_STREAMS;
  // Adds the channels of as many positions as there are pointers.
  const auto add = [=](const auto& from, float* to) GCF_LAMBDA {
    for_each_sum(to, 0, count, [&](const auto& at, Vector& sum) GCF_LAMBDA {
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
    const Stored* streams[POSITION_STREAMS];
    GCF_UNROLL for (int64_t i = 0; i < POSITION_STREAMS; ++i) streams[i] = rows[p + i * quarter] + begin;
    add(streams, part);
    if ((p + 1) % (POSITIONS_PER_SUM / POSITION_STREAMS) == 0) add_part();
  }
  for (int64_t p = POSITION_STREAMS * quarter; p < positions; ++p) {
    const Stored* stream[] = {rows[p] + begin};
    add(stream, part);
  }
  add_part();
}

// sums[c] += the terms of the Grad-CAM++ weights at one position.
template <class Stored>
GCF_INLINE void add_plus_plus(const Stored* gradient, int64_t channels, const double* totals, double* sums) {
  int64_t c = 0;
  Vector g, denominator, term;
  Wide total[2], sum[2], wide_term[2];
  for (; c + LANES <= channels; c += LANES) {
    load(gradient + c, g);
    load(totals + c, total);
    plus_plus_denominators(g, total, denominator);
    plus_plus_term(g, denominator, term);
    widen(term, wide_term);
    load(sums + c, sum);
    GCF_UNROLL for (int64_t i = 0; i < 2; ++i) sum[i] += wide_term[i];
    store(sum, sums + c);
  }
  for (; c < channels; ++c) {
    const float one_gradient = to_float(gradient[c]);
    float one_term;
    plus_plus_term(one_gradient, plus_plus_denominator(one_gradient, totals[c]), one_term);
    sums[c] += one_term;
  }
}

// The weights of the channels [begin, end); `doubles` has room for two doubles per channel.
template <Method method, class Stored>
GCF_INLINE void weigh_channels_last(const ChannelsLast<Stored>& activation, const ChannelsLast<Stored>& gradient,
                                    int64_t positions, int64_t begin, int64_t end, double* doubles, float* weights) {
  if constexpr (method == Method::gradcam) {
    pool_channels_last(gradient, positions, begin, end, reinterpret_cast<float*>(doubles + 2 * begin), weights);
    const float count = static_cast<float>(positions);
    for (int64_t c = begin; c < end; ++c) weights[c] /= count;
  } else {
    double* totals = doubles + 2 * begin;
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
GCF_INLINE void add_positions(const Stored* const (&a)[POSITION_STREAMS], const Stored* const (&g)[POSITION_STREAMS],
                              const float* weights, int64_t begin, int64_t end, Vector* sums) {
  Vector partials[POSITION_STREAMS], weight, activation, gradient;
  const auto add = [&](const auto& read) GCF_LAMBDA {
    if constexpr (weights_channels(method)) read(weights, weight);
    GCF_UNROLL for (int64_t i = 0; i < POSITION_STREAMS; ++i) {
      read(a[i], activation);
      if constexpr (weights_channels(method)) {
        partials[i] += weight * activation;
      } else {
        read(g[i], gradient);
        position_term<method>(activation, gradient, activation);
        partials[i] += activation;
      }
    }
  };
  std::copy_n(sums, POSITION_STREAMS, partials);
  int64_t c = begin;
  for (; c + LANES <= end; c += LANES) add([&](const auto* row, Vector& v) GCF_LAMBDA { load(row + c, v); });
  if (c < end) add([&](const auto* row, Vector& v) GCF_LAMBDA { load_few(row + c, end - c, v); });
  std::copy_n(partials, POSITION_STREAMS, sums);
}

// The raw maps of all targets at the positions [begin, end); `sums` has room for eight vectors per target. gradients(k)
// are those of target k; weights are (K, channels), maps (K, positions).
template <Method method, class Stored, class Gradients>
GCF_INLINE void sum_channels_last(const ChannelsLast<Stored>& activation, const Gradients& gradients,
                                  const float* weights, int64_t targets, int64_t channels, int64_t positions,
                                  int64_t begin, int64_t end, Vector* sums, float* maps) {
  const int64_t tile = targets == 1 ? channels : CHANNELS_PER_TILE;
  const int64_t quarter = (end - begin + POSITION_STREAMS - 1) / POSITION_STREAMS;
  // Two positions of each quarter at a time. Indices behind the last position stand for the last position.
  const auto at = [=](int64_t first, int64_t i) GCF_LAMBDA {
    return std::min(begin + std::min(first + i / POSITION_STREAMS, quarter - 1) + i % POSITION_STREAMS * quarter,
                    end - 1);
  };
  for (int64_t first = 0; first < quarter; first += LANES / POSITION_STREAMS) {
    std::fill_n(sums, targets * LANES, Vector{});
    for (int64_t c = 0; c < channels; c += tile)
      for (int64_t k = 0; k < targets; ++k) {
        const ChannelsLast<Stored> gradient = gradients(k);
        for (int64_t i = 0; i < LANES; i += POSITION_STREAMS) {
          const Stored *a[POSITION_STREAMS], *g[POSITION_STREAMS];
          GCF_UNROLL for (int64_t j = 0; j < POSITION_STREAMS; ++j) {
            a[j] = activation[at(first, i + j)];
            g[j] = gradient[at(first, i + j)];
          }
          add_positions<method>(a, g, weights + k * channels, c, std::min(c + tile, channels), sums + k * LANES + i);
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
