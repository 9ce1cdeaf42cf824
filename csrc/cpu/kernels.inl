// The entries of the Kernels table for one instruction set: they turn the dtype and the method into types, and call the
// kernels of the other .inl files.

// Calls f(method, null pointer to the stored type), for the cases that Problem::reads_in_place() allows.
template <class F>
GCF_INLINE void with_types(Method method, ScalarType dtype, const F& f) {
  constexpr std::integral_constant<Method, Method::gradcam> gradcam;
  if (dtype == ScalarType::Half) return f(gradcam, static_cast<const Half*>(nullptr));
  if (dtype == ScalarType::BFloat16) return f(gradcam, static_cast<const BFloat16*>(nullptr));
  with_method(method, [&](auto m) { f(m, static_cast<const float*>(nullptr)); });
}

// Copies one channel into a plane of floats.
__attribute__((noinline)) inline void gather_plane(const StridedMaps& maps, const void* from, int64_t rows,
                                                   int64_t columns, float* to) {
  const auto gather = [&](auto* data) {
    if (maps.row == 0 && maps.column == 0) {
      std::fill_n(to, rows * columns, to_float(*data));
      return;
    }
    for (int64_t y = 0; y < rows; ++y) {
      const auto* row = data + y * maps.row;
      float* out = to + y * columns;
      if (maps.column == 1)
        for (int64_t x = 0; x < columns; ++x) out[x] = to_float(row[x]);
      else
        for (int64_t x = 0; x < columns; ++x) out[x] = to_float(row[x * maps.column]);
    }
  };
  if (maps.dtype == ScalarType::Float) return gather(static_cast<const float*>(from));
  if (maps.dtype == ScalarType::Half) return gather(static_cast<const Half*>(from));
  gather(static_cast<const BFloat16*>(from));
}

inline void sum_slabs(const Problem& problem, int64_t image, int64_t begin, int64_t end, float* tiles, float* maps) {
  const bool in_place = problem.is_planar();
  const bool has_channel_factors = problem.has_channel_factors();
  const ScalarType dtype = in_place ? problem.activations.dtype : ScalarType::Float;
  with_types(problem.method, dtype, [&](auto method, auto* stored) {
    using Stored = std::remove_const_t<std::remove_pointer_t<decltype(stored)>>;
    const int64_t positions = problem.positions();
    const int64_t floats = problem.floats();
    const int64_t pass = problem.channels_per_pass();
    const int64_t slabs = problem.slabs_per_pass();
    const int64_t ahead = problem.targets == 1 || problem.needs_tiles() ? 0 : PREFETCH_DISTANCE;
    float* gathered = tiles == nullptr ? nullptr : tiles + pass * positions;
    const auto planes_in_place = [&](const StridedMaps& from, int64_t target, int64_t first) -> Planes<Stored> {
      return {static_cast<const Stored*>(from.at(image, target, problem.channel_at(first))), from.channel,
              problem.half() * from.channel};
    };
    const auto planes = [&](const StridedMaps& from, int64_t target, int64_t first, int64_t channels,
                            float* tile) -> Planes<Stored> {
      if (in_place && problem.is_planar(from)) return planes_in_place(from, target, first);
      for (int64_t c = 0; c < channels; ++c)
        gather_plane(from, from.at(image, target, problem.channel_at(first + c)), problem.rows, problem.columns,
                     tile + c * positions);
      return {reinterpret_cast<const Stored*>(tile), 2 * positions, positions};
    };
    std::fill_n(maps, (end - begin) * floats, 0.0f);
    for (int64_t slab = begin; slab < end; slab += slabs) {
      const int64_t last = std::min(std::min(slab + slabs, end) * CHANNELS_PER_SLAB, problem.channels);
      for (int64_t first = slab * CHANNELS_PER_SLAB; first < last; first += pass) {
        const int64_t channels = std::min(pass, last - first);
        const Planes<Stored> activation = planes(problem.activations, 0, first, channels, tiles);
        for (int64_t k = 0; k < problem.targets; ++k) {
          float* map = maps + (slab - begin) * floats + k * positions;
          if (has_channel_factors)
            add_uniform<method.value>(activation, planes_in_place(problem.gradients, k, first), channels, positions,
                                      map, floats);
          else
            add_pass<method.value>(activation, planes(problem.gradients, k, first, channels, gathered), channels,
                                   positions, ahead, map, floats);
        }
      }
    }
  });
}

inline void add_partial(const float* partial, int64_t floats, float* maps) {
  for (int64_t p = 0; p < floats; ++p) maps[p] += partial[p];
}

template <class Stored>
GCF_INLINE ChannelsLast<Stored> channels_last_of(const Problem& problem, const StridedMaps& maps, int64_t image,
                                                 int64_t target) {
  return {static_cast<const Stored*>(maps.at(image, target, 0)), problem.position_stride(maps)};
}

inline void weigh_channels_last(const Problem& problem, int64_t image, int64_t target, int64_t begin, int64_t end,
                                double* doubles, float* weights) {
  with_types(problem.method, problem.activations.dtype, [&](auto method, auto* stored) {
    using Stored = std::remove_const_t<std::remove_pointer_t<decltype(stored)>>;
    // The mean of equal numbers is any one of them, so one position is enough.
    const bool one_position = method.value == Method::gradcam && problem.uniform();
    if constexpr (weights_channels(method.value))
      weigh_channels_last<method.value>(channels_last_of<Stored>(problem, problem.activations, image, 0),
                                        channels_last_of<Stored>(problem, problem.gradients, image, target),
                                        one_position ? 1 : problem.positions(), begin, end, doubles, weights);
  });
}

inline void sum_channels_last(const Problem& problem, int64_t image, const float* weights, int64_t begin, int64_t end,
                              float* sums, float* maps) {
  with_types(problem.method, problem.activations.dtype, [&](auto method, auto* stored) {
    using Stored = std::remove_const_t<std::remove_pointer_t<decltype(stored)>>;
    sum_channels_last<method.value>(
        channels_last_of<Stored>(problem, problem.activations, image, 0),
        [&](int64_t k) { return channels_last_of<Stored>(problem, problem.gradients, image, k); }, weights,
        problem.targets, problem.channels, problem.positions(), begin, end, reinterpret_cast<Vector*>(sums), maps);
  });
}

inline void fill_resize_tables(const Problem& problem, float* memory, ResizeTables& tables) {
  fill_resize_table(problem.rows, problem.height, memory, tables.rows);
  fill_resize_table(problem.columns, problem.width, memory + ResizeTable::floats(problem.rows, problem.height),
                    tables.columns);
}

inline void finish(const Problem& problem, const ResizeTables& tables, float* map, float* candidates,
                   FinishedMap& finished) {
  finish_map(problem.relu, problem.normalize, tables.rows, tables.columns, map, candidates, finished);
}

inline void write(const ResizeTables& tables, const float* map, const FinishedMap& finished, int64_t begin, int64_t end,
                  bool nontemporal, float* buffer, float* heatmap) {
  write_rows(tables.rows, tables.columns, map, finished, begin, end, nontemporal, buffer, heatmap);
}

constexpr Kernels table(const char* instruction_set) {
  return {instruction_set, fill_resize_tables, sum_slabs, add_partial, weigh_channels_last, sum_channels_last, finish,
          write,           skinny_mm};
}
