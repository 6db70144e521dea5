// Numbers of 8 bits: how rows of floats become them, and how they are multiplied. Formulae: dllm_kernels/int8.py.
//
// A product of such rows is an exact integer, so its bits are the same on every machine and in every order.

#pragma once

#include "common.h"

#include <algorithm>
#include <array>

namespace dllm {

struct Int8 {
  using type = int8_t;
};

template <typename Vector>
struct IntsOf {
  typedef int32_t type __attribute__((vector_size(sizeof(Vector))));
};

// x * y summed over four neighbouring numbers of 8 bits, x without and y with a sign: [lanes] added to `sum`. In assembly,
// for GCC copies the sums that the intrinsic adds to, at up to half of the speed.
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
#define DLLM_VNNI "vpdpbusd %2, %1, %0"
#elif defined(__AVXVNNI__)
#define DLLM_VNNI "{vex} vpdpbusd %2, %1, %0"
#endif
#if defined(DLLM_VNNI)
template <typename Vector>
Vector multiply_bytes(Vector sum, Vector x, Vector y) {
#if defined(__AVX512VNNI__)
  asm(DLLM_VNNI : "+v"(sum) : "v"(x), "v"(y));
#else
  asm(DLLM_VNNI : "+x"(sum) : "x"(x), "x"(y));
#endif
  return sum;
}
#endif

// What is multiplied at a time: kStep numbers of a row, of the type Row, with as many of a token. Lanes hold them, and
// sums of 32 bits, in vectors of floats, whose bits they are. Rows are stored kExcess too large, so that a sum exceeds the
// product by kExcess times the sum of the token's weights.
#if defined(DLLM_VNNI)
struct Bytes {
  using type = int8_t;
  using Row = uint8_t;  // one operand of the instruction has no sign
  static constexpr int kStep = 4;
  static constexpr int32_t kExcess = 128;

  template <typename Vector>
  static Vector multiply_add(const int8_t* w, Vector h, Vector sum) {
    using Ints = typename IntsOf<Vector>::type;
    int32_t four;
    std::memcpy(&four, w, sizeof four);
    return multiply_bytes(sum, h, (Vector)(Ints{} + four));
  }
#else
struct Bytes {
  using type = int16_t;
  using Row = int16_t;
  static constexpr int kStep = 2;
  static constexpr int32_t kExcess = 0;

  template <typename Vector>
  static Vector multiply_add(const int16_t* w, Vector h, Vector sum) {
    using Ints = typename IntsOf<Vector>::type;
#if defined(__AVX2__)
    int32_t pair;
    std::memcpy(&pair, w, sizeof pair);
    if constexpr (sizeof(Vector) == 32)
      return (Vector)((Ints)sum + (Ints)_mm256_madd_epi16((__m256i)(Ints{} + pair), (__m256i)h));
    else if constexpr (sizeof(Vector) == 16)
      return (Vector)((Ints)sum + (Ints)_mm_madd_epi16((__m128i)(Ints{} + pair), (__m128i)h));
#if defined(__AVX512BW__)
    else if constexpr (sizeof(Vector) == 64)
      return (Vector)((Ints)sum + (Ints)_mm512_madd_epi16((__m512i)(Ints{} + pair), (__m512i)h));
#endif
    else
#endif
      return (Vector)((Ints)sum + ((Ints)h << 16 >> 16) * int32_t(w[0]) + ((Ints)h >> 16) * int32_t(w[1]));
  }
#endif

  template <typename Vector>
  static Vector add(Vector a, Vector b) {
    using Ints = typename IntsOf<Vector>::type;
    return (Vector)((Ints)a + (Ints)b);
  }
};

#if defined(DLLM_VNNI)
// Integers whose total is the sum of `n` numbers.
inline vint partial_sums(const int8_t* numbers, int64_t n) {
  const vfloat ones = as_float(vint{} + 0x01010101);
  vfloat sums = {}, last = {};
  const int64_t whole = n / sizeof last * sizeof last;
  for (int64_t k = 0; k < whole; k += sizeof last)
    sums = multiply_bytes(sums, ones, load(reinterpret_cast<const float*>(numbers + k)));
  std::memcpy(&last, numbers + whole, n - whole);
  return as_int(multiply_bytes(sums, ones, last));
}
#endif

// Rows become columns: each of log2(kLanes) rounds zips the upper half of the vectors with the lower.
inline void transpose(std::array<vfloat, kLanes>& m) {
  for (int round = 1; round < kLanes; round *= 2) {
    std::array<vfloat, kLanes> zipped;
    for (int i = 0; i < kLanes / 2; ++i) {
      zipped[2 * i] = zip<false>(m[i], m[i + kLanes / 2]);
      zipped[2 * i + 1] = zip<true>(m[i], m[i + kLanes / 2]);
    }
    m = zipped;
  }
}

// The bits of the largest size |h| of each of `n` rows, kLanes at most. Sizes are ordered as their bits are.
template <typename Dtype>
vint largest_sizes(const typename Dtype::type* rows, int64_t stride, int64_t n, int64_t width) {
  const int64_t whole = width / kLanes * kLanes;
  const auto larger = [](vint a, vint b) { return a > b ? a : b; };
  std::array<vfloat, kLanes> square = {};
  for (int64_t i = 0; i < n; ++i) {
    const auto* row = rows + i * stride;
    typename Dtype::type last[kLanes] = {};
    std::copy(row + whole, row + width, last);
    vint largest = as_int(Dtype::load(last)) & 0x7fffffff;
    for (int64_t k = 0; k < whole; k += kLanes) largest = larger(as_int(Dtype::load(row + k)) & 0x7fffffff, largest);
    square[i] = as_float(largest);
  }
  transpose(square);
  vint largest = {};
  for (const vfloat sizes : square) largest = larger(as_int(sizes), largest);
  return largest;
}

// Quantises `n` rows, kLanes at most: h = scale q, scale = max |h| / 127, and q = h (1 / scale) rounded to the nearest
// integer, halves to even. A row with a number that is not finite has q = 0 and the scale NaN. Calls put(step, numbers)
// with kStep numbers of each row, stored kExcess too large; behind a row's end they mean nothing. Returns the scales.
template <typename Dtype, typename Put>
vfloat quantise(const typename Dtype::type* rows, int64_t stride, int64_t n, int64_t width, const Put& put) {
  using Number = typename Bytes::Row;
  constexpr int64_t kTogether = Bytes::kStep * kLanes;  // numbers of a row: a step in each lane
  const vint sizes = largest_sizes<Dtype>(rows, stride, n, width), finite = sizes < 0x7f800000;
  const vfloat scales = max(as_float(sizes & finite), splat(0x1p-100f)) / 127.0f, inverses = 1.0f / scales;
  const vfloat shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const vint zero = as_int(shift) - Bytes::kExcess;
  typedef Number Numbers __attribute__((vector_size(kLanes * sizeof(Number))));
  for (int64_t k = 0; k < width; k += kTogether) {
    std::array<vfloat, kLanes> square = {};
    for (int64_t i = 0; i < n; ++i) {
      typename Dtype::type part[kTogether] = {};
      const auto* from = rows + i * stride + k;
      if (k + kTogether > width) from = std::copy(from, from + (width - k), part) - (width - k);
      Number* to = reinterpret_cast<Number*>(&square[i]);
      for (int64_t j = 0; j < kTogether; j += kLanes) {
        const vfloat h = as_float(as_int(Dtype::load(from + j)) & (vint{} + finite[i]));
        const Numbers narrow = __builtin_convertvector(as_int(h * splat(inverses[i]) + shift) - zero, Numbers);
        std::memcpy(to + j, &narrow, sizeof narrow);
      }
    }
    transpose(square);
    const int64_t steps = std::min<int64_t>(kLanes, (width - k + Bytes::kStep - 1) / Bytes::kStep);
    for (int64_t step = 0; step < steps; ++step) put(k / Bytes::kStep + step, square[step]);
  }
  return as_float((as_int(scales) & finite) | (as_int(splat(std::numeric_limits<float>::quiet_NaN())) & ~finite));
}

}  // namespace dllm
