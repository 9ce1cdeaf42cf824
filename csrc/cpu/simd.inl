// Vectors of eight floats, and how each stored type is loaded into them.
//
// Vectors are passed by reference: for 32 bytes there is no calling convention common to all instruction sets.

typedef float Vector __attribute__((vector_size(32)));
typedef float HalfVector __attribute__((vector_size(16)));
typedef double Wide __attribute__((vector_size(32)));
typedef int32_t Mask __attribute__((vector_size(32)));
typedef uint32_t Words __attribute__((vector_size(32)));
typedef uint16_t HalfWords __attribute__((vector_size(16)));

GCF_INLINE void load(const float* from, Vector& to) { std::memcpy(&to, from, sizeof(Vector)); }

// Without the builtin GCC 12 widens the numbers one by one.
GCF_INLINE void widen(const HalfWords& from, Words& to) {
#if defined(GCF_X86_64_V3)
  typedef short Signed __attribute__((vector_size(16)));
  to = reinterpret_cast<Words>(__builtin_ia32_pmovzxwd256(reinterpret_cast<Signed>(from)));
#else
  to = __builtin_convertvector(from, Words);
#endif
}

GCF_INLINE void load(const BFloat16* from, Vector& to) {
  HalfWords bits;
  Words words;
  std::memcpy(&bits, from, sizeof(bits));
  widen(bits, words);
  words <<= 16;
  std::memcpy(&to, &words, sizeof(Vector));
}

// half_to_float of eight numbers.
GCF_INLINE void load(const Half* from, Vector& to) {
  HalfWords bits;
  std::memcpy(&bits, from, sizeof(bits));
#if defined(GCF_X86_64_V3)
  typedef short Signed __attribute__((vector_size(16)));
  to = __builtin_ia32_vcvtph2ps256(reinterpret_cast<Signed>(bits));
#else
  Words words;
  widen(bits, words);
  const Words magnitude = (words & 0x7fffu) << 13;
  Vector value;
  std::memcpy(&value, &magnitude, sizeof(Vector));
  value *= 0x1p112f;
  Words result;
  std::memcpy(&result, &value, sizeof(Vector));
  result |= reinterpret_cast<Words>(magnitude >= 0x0f800000u) & 0x7f800000u;
  result |= (words & 0x8000u) << 16;
  std::memcpy(&to, &result, sizeof(Vector));
#endif
}

GCF_INLINE void store(const Vector& from, float* to) { std::memcpy(to, &from, sizeof(Vector)); }

// Calls f(a, to) for the largest parts of two vectors that the instruction set can compare at once; GCC 12 compares
// longer ones number by number.
template <class F>
GCF_INLINE void for_each_comparable(const Vector& a, Vector& to, const F& f) {
#if defined(GCF_X86_64_V3)
  f(a, to);
#else
  HalfVector part[2], half[2];
  std::memcpy(part, &a, sizeof(part));
  std::memcpy(half, &to, sizeof(half));
  GCF_UNROLL for (int64_t i = 0; i < 2; ++i) f(part[i], half[i]);
  std::memcpy(&to, half, sizeof(half));
#endif
}
// to = the smaller of a and to, lane by lane; `to` itself where a is NaN.
GCF_INLINE void smaller(const Vector& a, Vector& to) {
  for_each_comparable(a, to, [](const auto& x, auto& y) GCF_LAMBDA { y = x < y ? x : y; });
}
// to = the larger of a and to, likewise.
GCF_INLINE void larger(const Vector& a, Vector& to) {
  for_each_comparable(a, to, [](const auto& x, auto& y) GCF_LAMBDA { y = x > y ? x : y; });
}

// Non-temporal stores, to an address aligned to a vector, and the fence that must follow them. Ordinary stores where
// there are none.
#if defined(GCF_X86_64_V3)
constexpr bool HAS_NONTEMPORAL_STORES = true;
#else
constexpr bool HAS_NONTEMPORAL_STORES = false;
#endif
GCF_INLINE void store_nontemporal(const Vector& from, float* to) {
#if defined(GCF_X86_64_V3)
  __builtin_ia32_movntps256(to, from);
#else
  store(from, to);
#endif
}
GCF_INLINE void fence_nontemporal() {
#if defined(GCF_X86_64_V3)
  __builtin_ia32_sfence();
#endif
}

// Not Vector{} + x, which turns -0 into 0.
GCF_INLINE void fill(float x, Vector& to) { to = Vector{x, x, x, x, x, x, x, x}; }

// One copy per vector: GCC copies an array of two in four pieces, and the loads then wait for the stores.
GCF_INLINE void load(const double* from, Wide (&to)[2]) {
  GCF_UNROLL for (int64_t i = 0; i < 2; ++i) std::memcpy(&to[i], from + i * LANES / 2, sizeof(Wide));
}
GCF_INLINE void store(const Wide (&from)[2], double* to) {
  GCF_UNROLL for (int64_t i = 0; i < 2; ++i) std::memcpy(to + i * LANES / 2, &from[i], sizeof(Wide));
}

// The lower and the upper half in float64, and back. Without the builtins GCC 12 goes through memory.
GCF_INLINE void widen(const Vector& from, Wide (&to)[2]) {
#if defined(GCF_X86_64_V3)
  to[0] = __builtin_ia32_cvtps2pd256(__builtin_ia32_vextractf128_ps256(from, 0));
  to[1] = __builtin_ia32_cvtps2pd256(__builtin_ia32_vextractf128_ps256(from, 1));
#else
  HalfVector half[2];
  std::memcpy(half, &from, sizeof(half));
  to[0] = __builtin_convertvector(half[0], Wide);
  to[1] = __builtin_convertvector(half[1], Wide);
#endif
}
GCF_INLINE void narrow(const Wide (&from)[2], Vector& to) {
#if defined(GCF_X86_64_V3)
  to = __builtin_ia32_vinsertf128_ps256(__builtin_ia32_ps256_ps(__builtin_ia32_cvtpd2ps256(from[0])),
                                        __builtin_ia32_cvtpd2ps256(from[1]), 1);
#else
  const HalfVector half[2] = {__builtin_convertvector(from[0], HalfVector),
                              __builtin_convertvector(from[1], HalfVector)};
  std::memcpy(&to, half, sizeof(Vector));
#endif
}
GCF_INLINE double sum_lanes(const Wide (&from)[2]) {
  const Wide sum = from[0] + from[1];
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

// last_lanes + count is a mask of the last `count` lanes.
constexpr int32_t last_lanes[2 * LANES] = {0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1};

// Loads the last `count` (1 to 8) of at least eight elements that end at `end` into the last lanes; the others are
// zero.
template <class Stored>
GCF_INLINE void load_last(const Stored* end, int64_t count, Vector& to) {
  load(end - LANES, to);
  Words mask, bits;
  std::memcpy(&mask, last_lanes + count, sizeof(mask));
  std::memcpy(&bits, &to, sizeof(bits));
  bits &= mask;
  std::memcpy(&to, &bits, sizeof(bits));
}

// Loads up to seven elements into the first lanes; the others are zero.
template <class Stored>
GCF_INLINE void load_few(const Stored* from, int64_t count, Vector& to) {
  to = Vector{};
  for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[i]);
}

// Calls f(at, sum) for each vector of sums[begin, end); at(other, v) loads the same elements of another array.
template <class F>
GCF_INLINE void for_each_sum(float* sums, int64_t begin, int64_t end, const F& f) {
  Vector sum;
  int64_t i = begin;
  for (; i + LANES <= end; i += LANES) {
    load(sums + i, sum);
    f([=](const auto* other, Vector& v) GCF_LAMBDA { load(other + i, v); }, sum);
    store(sum, sums + i);
  }
  if (i == end) return;
  load_few(sums + i, end - i, sum);
  f([=](const auto* other, Vector& v) GCF_LAMBDA { load_few(other + i, end - i, v); }, sum);
  for (int64_t j = 0; i + j < end; ++j) sums[i + j] = sum[j];
}

GCF_INLINE float sum_lanes(const Vector& v) {
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

// to[j] = the sum of the lanes of from[j], each summed as ((0+4)+(2+6))+((1+5)+(3+7)).
GCF_INLINE void sum_lanes(const Vector (&from)[LANES], Vector& to) {
#if defined(__clang__)
#define GCF_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define GCF_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Mask{__VA_ARGS__})
#endif
  Vector half[4];
  GCF_UNROLL for (int64_t j = 0; j < 4; ++j) half[j] = GCF_SHUFFLE(from[j], from[j + 4], 0, 1, 2, 3, 8, 9, 10, 11) +
                                                       GCF_SHUFFLE(from[j], from[j + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  Vector quarter[2];
  GCF_UNROLL for (int64_t j = 0; j < 2; ++j) quarter[j] = GCF_SHUFFLE(half[j], half[j + 2], 0, 1, 8, 9, 4, 5, 12, 13) +
                                                          GCF_SHUFFLE(half[j], half[j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
  to = GCF_SHUFFLE(quarter[0], quarter[1], 0, 8, 2, 10, 4, 12, 6, 14) +
       GCF_SHUFFLE(quarter[0], quarter[1], 1, 9, 3, 11, 5, 13, 7, 15);
#undef GCF_SHUFFLE
}

// plus_plus_denominator of eight gradients.
GCF_INLINE void plus_plus_denominators(const Vector& gradient, const Wide (&total)[2], Vector& to) {
  Wide wide[2];
  widen(gradient, wide);
  GCF_UNROLL for (int64_t i = 0; i < 2; ++i) wide[i] = 2.0 + total[i] * wide[i];
  narrow(wide, to);
}
