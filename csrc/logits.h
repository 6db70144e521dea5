// How operators on a whole vocabulary read logits, and the arguments that they share.

#pragma once

#include "common.h"
#include "philox.h"

#include <algorithm>

namespace dllm {

constexpr int64_t kTile = 1024;

// The hyperbolic tangent, bit for bit the one that dllm_kernels/logits.py specifies: every product and sum is rounded.
inline vfloat tanh_float32(vfloat x) {
  const vfloat size = as_float(as_int(x) & INT32_MAX);
  const auto e = philox::power_of_e(max(size * -2.0f, splat(-87.0f)));
  const vfloat one_less_power = e.exponent == 0.0f ? -e.rest : 1.0f - e.value;
  return as_float(as_int(one_less_power / (1.0f + e.value)) | (as_int(x) & INT32_MIN));
}

// c tanh(l / c) of logits that are numbers or -inf, which stays.
inline vfloat softcapped(vfloat l, float softcap) {
  return l > -kInf ? tanh_float32(l / softcap) * softcap : l;
}

// Fills the first `padded` places of a tile, with -inf where there is no logit or it is suppressed; NaN becomes -inf,
// +inf the largest finite number. A softcap of 0 is none.
template <typename Dtype>
void load_tile(
    float* x, const typename Dtype::type* logits, const bool* suppress, int64_t n, int64_t padded = kTile,
    float softcap = 0) {
  typename Dtype::type buffer[kTile];
  std::memcpy(buffer, logits, n * sizeof buffer[0]);
  std::fill(buffer + n, buffer + padded, 0);
  for (int64_t i = 0; i < padded; i += kLanes)
    store(x + i, min(max(Dtype::load(buffer + i), splat(-kInf)), splat(FLT_MAX)));
  if (softcap > 0)
    for (int64_t i = 0; i < padded; i += kLanes) store(x + i, softcapped(load(x + i), softcap));
  std::fill(x + n, x + padded, -kInf);
  if (suppress)
    for (int64_t i = 0; i < n; ++i) x[i] = suppress[i] ? -kInf : x[i];
}

// Temperatures end at 1e-30 and 1e30, far beyond any sense, so that no gap times their inverse is NaN.
inline float clamped(float temperature) { return std::clamp(temperature, 1e-30f, 1e30f); }

// What a row's temperature is to its statistics.
inline double rate_of(const PerRow<float>& temperature, bool tempered, int64_t row) {
  if (!tempered || !temperature || !(temperature[row] > 0)) return 1;
  return 1 / double(clamped(temperature[row]));
}

inline const bool* flags(const std::optional<Tensor>& t) {
  return t ? static_cast<const bool*>(t->const_data_ptr()) : nullptr;
}

inline int64_t counted(const std::optional<Tensor>& count, int64_t n) {
  return count ? std::clamp<int64_t>(PerRow<int64_t>(*count)[0], 0, n) : n;
}

}  // namespace dllm
