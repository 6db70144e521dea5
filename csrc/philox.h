// The random stream, bit for bit the one that dllm_kernels/philox.py specifies.
//
// Compiled with -ffp-contract=off: every product and sum is rounded by itself.

#pragma once

#include "common.h"

namespace dllm::philox {

constexpr uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
constexpr int kRounds = 10;
constexpr uint32_t kTokenNoise = 0, kRandomConfidence = 1, kTileNoise = 5;

struct Address {  // everything of a number's address but the token and the stream
  uint64_t seed;
  uint32_t position, step;
};

struct Block {
  uint32_t word[4];
};

inline Block block(const Address& at, uint32_t index, uint32_t stream) {
  uint32_t c0 = index, c1 = at.position, c2 = at.step, c3 = stream;
  uint32_t k0 = static_cast<uint32_t>(at.seed), k1 = static_cast<uint32_t>(at.seed >> 32);
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t product0 = uint64_t{kMultiplier0} * c0, product1 = uint64_t{kMultiplier1} * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(product0);
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

inline float log_float32(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, 4);
  const int32_t exponent = (bits - 0x3F3504F3) >> 23;
  const int32_t mantissa = bits - exponent * (1 << 23);
  float m;
  std::memcpy(&m, &mantissa, 4);
  const float f = m - 1.0f, e = static_cast<float>(exponent), square = f * f;
  float p = 7.0376836292e-2f;
  p = p * f + -1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f + -1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f + -1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f + -2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float tail = (p * f) * square + e * -2.12194440e-4f - 0.5f * square;
  return (f + tail) + e * 0.693359375f;
}

inline float unit(uint32_t high, uint32_t low) {
  return static_cast<float>(high) * 0x1p-32f + (static_cast<float>(low) + 0.5f) * 0x1p-64f;
}

inline float gumbel(uint32_t w, uint32_t partner) {
  if (w >= (1u << 28)) return -log_float32(-log_float32(unit(~w, ~partner)));
  const float u = unit(w, partner);
  float series = u * (1.0f / 6.0f) + 1.0f / 5.0f;
  series = series * u + 1.0f / 4.0f;
  series = series * u + 1.0f / 3.0f;
  series = series * u + 1.0f / 2.0f;
  series = series * u + 1.0f;
  return -log_float32(series * u);
}

// e^x = 2^exponent (1 + rest) for x from -87 to 0.
template <typename Vector>
struct Power {
  Vector value, exponent, rest;
};

template <typename Vector>
Power<Vector> power_of_e(Vector x) {
  using Integers = std::conditional_t<sizeof(Vector) == sizeof(vint4), vint4, vint>;
  const Vector shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vector n = shifted - 12582912.0f;
  const Vector r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Vector p = splat<Vector>(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const Vector rest = p * (r * r) + r;
  const Integers scaled = (Integers)(rest + 1.0f) + ((Integers)shifted << 23);  // the low bits of `shifted` hold n
  return {(Vector)scaled, n, rest};
}

// e^x for x <= 0, exactly 0 for x < -87.
inline vfloat4 exp_float32(vfloat4 x) {
  const vfloat4 lowest = splat<vfloat4>(-87.0f);
  const vfloat4 power = power_of_e(x < lowest ? lowest : x).value;
  return x < lowest ? vfloat4{} : power;
}

// Lanes are 64 bits wide and hold a 32-bit value in their low half; the high half is garbage, which the widening
// multiplication ignores. So a product's low word needs no extraction and its high word one shift.
inline vlong multiply_wide(vlong a, uint32_t m) {
#if defined(__AVX512F__)
  return (vlong)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(m));
#elif defined(__AVX2__)
  return (vlong)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(m));
#else
  return (a & 0xFFFFFFFFull) * m;
#endif
}

// The words of `kBlocks` blocks from `index` on: [word][block].
template <int kBlocks>
void words(const Address& at, uint32_t index, uint32_t stream, uint32_t (&out)[4][kBlocks]) {
  constexpr int kTogether = kLanes / 2, kVectors = kBlocks / kTogether;  // vectors, whose multiplications overlap
  static_assert(kBlocks % kTogether == 0);
  vlong c0[kVectors], c1[kVectors], c2[kVectors], c3[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    for (int i = 0; i < kTogether; ++i) c0[v][i] = index + v * kTogether + i;
    c1[v] = vlong{} + at.position;
    c2[v] = vlong{} + at.step;
    c3[v] = vlong{} + stream;
  }
  uint32_t k0 = static_cast<uint32_t>(at.seed), k1 = static_cast<uint32_t>(at.seed >> 32);
  for (int round = 0; round < kRounds; ++round) {
    for (int v = 0; v < kVectors; ++v) {
      const vlong product0 = multiply_wide(c0[v], kMultiplier0), product1 = multiply_wide(c2[v], kMultiplier1);
      c0[v] = (product1 >> 32) ^ c1[v] ^ uint64_t{k0};
      c1[v] = product1;
      c2[v] = (product0 >> 32) ^ c3[v] ^ uint64_t{k1};
      c3[v] = product0;
    }
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
  for (int v = 0; v < kVectors; ++v)
    for (int i = 0; i < kTogether; ++i) {
      const int block = v * kTogether + i;
      out[0][block] = static_cast<uint32_t>(c0[v][i]);
      out[1][block] = static_cast<uint32_t>(c1[v][i]);
      out[2][block] = static_cast<uint32_t>(c2[v][i]);
      out[3][block] = static_cast<uint32_t>(c3[v][i]);
    }
}

// An upper bound on the Gumbel noise of words w.
// g = -log E and E >= U >= w 2^-32, so g <= 32 ln 2 - ln w. With x = float(w / 2) and i its bits read as an integer,
// i 2^-23 - 127 <= log2 x (the chord lies below the logarithm), hence g <= ln 2 (32 + 127 - 1 - i 2^-23), and the
// constant is raised by 2^-10 for the rounding of x, i and g. w < 2 gives i = 0 and a bound of 109, above every g.
inline vfloat gumbel_bound(vuint w) {
  const vuint half = w >> 1;
  const vfloat x = __builtin_convertvector((vint)half, vfloat);
  const vfloat i = __builtin_convertvector(as_int(x), vfloat);
  return splat(158.0f * 0.69314718f + 0x1p-10f) - i * splat(0.69314718f * 0x1p-23f);
}

}  // namespace dllm::philox
