// Numbers of 8 bits: how rows of floats become them, and how they are multiplied. Formulae: dllm_kernels/int8.py.
//
// A product of such rows is an exact integer, so its bits are the same on every machine and in every order.

#pragma once

#include "common.h"

#include <algorithm>

namespace dllm {

struct Int8 {
  using type = int8_t;
};

template <typename Vector>
struct IntsOf {
  typedef int32_t type __attribute__((vector_size(sizeof(Vector))));
};

// x * y summed over four neighbouring numbers of 8 bits, x without and y with a sign: [lanes] added to `sum`.
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
#define DLLM_VNNI
inline vfloat multiply_bytes(vfloat sum, vfloat x, vfloat y) {
  return (vfloat)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)y);
}
inline vfloat8 multiply_bytes(vfloat8 sum, vfloat8 x, vfloat8 y) {
  return (vfloat8)_mm256_dpbusd_epi32((__m256i)sum, (__m256i)x, (__m256i)y);
}
inline vfloat4 multiply_bytes(vfloat4 sum, vfloat4 x, vfloat4 y) {
  return (vfloat4)_mm_dpbusd_epi32((__m128i)sum, (__m128i)x, (__m128i)y);
}
#elif defined(__AVXVNNI__)
#define DLLM_VNNI
inline vfloat8 multiply_bytes(vfloat8 sum, vfloat8 x, vfloat8 y) {
  return (vfloat8)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)x, (__m256i)y);
}
inline vfloat4 multiply_bytes(vfloat4 sum, vfloat4 x, vfloat4 y) {
  return (vfloat4)_mm_dpbusd_avx_epi32((__m128i)sum, (__m128i)x, (__m128i)y);
}
#endif

// What is multiplied at a time: kStep numbers of a row with as many of a token. Lanes hold them, and sums of 32 bits, in
// vectors of floats, whose bits they are. A sum exceeds the product by kExcess times the sum of the row's numbers.
#if defined(DLLM_VNNI)
struct Bytes {
  using type = int8_t;
  static constexpr int kStep = 4;
  static constexpr int32_t kExcess = 128;  // one operand of the instruction has no sign: weights are 128 larger

  template <typename Vector>
  static Vector multiply_add(const int8_t* w, Vector h, Vector sum) {
    using Ints = typename IntsOf<Vector>::type;
    int32_t four;
    std::memcpy(&four, w, sizeof four);
    return multiply_bytes(sum, (Vector)((Ints{} + four) ^ int32_t(0x80808080)), h);
  }
#else
struct Bytes {
  using type = int16_t;
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

// A row as it was quantised: h = scale q, and the sum of q.
struct Quantised {
  float scale;
  int32_t sum;
};

// Quantises a row: scale = max |h| / 127, q = h / scale rounded to the nearest integer, halves to even. A row with a
// number that is not finite has q = 0 and the scale NaN.
template <typename Dtype, typename Number>
Quantised quantise(const typename Dtype::type* row, int64_t width, Number* out) {
  typename Dtype::type last[kLanes] = {};
  const int64_t whole = width / kLanes * kLanes;
  std::copy(row + whole, row + width, last);
  const auto at = [&](int64_t k) { return Dtype::load(k < whole ? row + k : last); };
  vint largest = {};  // bits of sizes, which are ordered as they are
  for (int64_t k = 0; k < width; k += kLanes) {
    const vint size = as_int(at(k)) & 0x7fffffff;
    largest = size > largest ? size : largest;
  }
  int32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits = std::max(bits, int32_t(largest[i]));
  if (bits >= 0x7f800000) {
    std::fill(out, out + width, Number{});
    return {std::numeric_limits<float>::quiet_NaN(), 0};
  }
  float size;
  std::memcpy(&size, &bits, sizeof size);
  const float scale = std::max(size, 0x1p-100f) / 127.0f;
  const vfloat shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  vint sums = {};
  for (int64_t k = 0; k < width; k += kLanes) {
    const vint q = as_int(at(k) / splat(scale) + shift) - as_int(shift);
    sums += q;
    typedef Number Numbers __attribute__((vector_size(kLanes * sizeof(Number))));
    const Numbers narrow = __builtin_convertvector(q, Numbers);
    std::memcpy(out + k, &narrow, std::min<int64_t>(kLanes, width - k) * sizeof(Number));
  }
  int32_t sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += sums[i];
  return {scale, sum};
}

}  // namespace dllm
