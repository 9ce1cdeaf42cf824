// The product of a few rows and a large matrix with contiguous rows.
//
// Reading the matrix limits the speed. A row of the matrix whose factors are all zero is never read: with the weight of
// a hidden layer these are half of the rows or more, because the ReLU lets no gradient through to them. Eight rows are
// read at a time, as far apart as possible, because a processor prefetches better from several places at once than far
// ahead in one.
//
// 4096 x 25088 on two threads, as a multiple of torch.mm's time: one row 0.76 to 0.81, with half of its numbers zero
// 0.31 to 0.39; ten rows 0.39 to 0.41 and 0.19 to 0.21. For a product of ten rows, four streams took up to 1.2 times as
// long, two 1.3 times.

// Rows of the matrix read at a time.
constexpr int64_t MATRIX_STREAMS = 8;
// Columns read before they are read again for the next row of the product. Half as many, and all of them, took up to
// 1.2 times as long.
constexpr int64_t COLUMNS_PER_TILE = 1024;

// Adds the columns [begin, end) of `many` rows of the matrix, each times its factor, to one row of the product.
template <int64_t many>
GCF_INLINE void add_rows(const float* const (&from)[many], const float (&factors)[many], int64_t begin, int64_t end,
                         float* to) {
  Vector factor[many];
  GCF_UNROLL for (int64_t i = 0; i < many; ++i) fill(factors[i], factor[i]);
  for_each_sum(to, begin, end, [&](const auto& at, Vector& sum) GCF_LAMBDA {
    Vector v[many];
    GCF_UNROLL for (int64_t i = 0; i < many; ++i) {
      at(from[i], v[i]);
      v[i] *= factor[i];
    }
    GCF_UNROLL for (int64_t step = 1; step < many; step *= 2)
        GCF_UNROLL for (int64_t i = 0; i + step < many; i += 2 * step) v[i] += v[i + step];
    sum += v[0];
  });
}

inline void skinny_mm(const SkinnyProduct& product, int64_t begin, int64_t end) {
  const auto add = [&](const auto& used) GCF_LAMBDA {
    constexpr int64_t many = std::extent<std::remove_reference_t<decltype(used)>>::value;
    const float* from[many];
    GCF_UNROLL for (int64_t i = 0; i < many; ++i) from[i] = product.matrix + used[i] * product.matrix_stride;
    for (int64_t tile = begin; tile < end; tile += COLUMNS_PER_TILE)
      for (int64_t r = 0; r < product.rows; ++r) {
        float factors[many];
        GCF_UNROLL for (int64_t i = 0; i < many; ++i) factors[i] = product.at(r, used[i]);
        add_rows(from, factors, tile, std::min(tile + COLUMNS_PER_TILE, end), product.out + r * product.columns);
      }
  };
  for (int64_t r = 0; r < product.rows; ++r)
    std::fill(product.out + r * product.columns + begin, product.out + r * product.columns + end, 0.0f);
  const int64_t distance = product.used_count / MATRIX_STREAMS;
  for (int64_t i = 0; i < distance; ++i) {
    int64_t streams[MATRIX_STREAMS];
    GCF_UNROLL for (int64_t j = 0; j < MATRIX_STREAMS; ++j) streams[j] = product.used[i + j * distance];
    add(streams);
  }
  for (int64_t i = MATRIX_STREAMS * distance; i < product.used_count; ++i) {
    const int64_t stream[] = {product.used[i]};
    add(stream);
  }
}
