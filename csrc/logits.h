// How operators on a whole vocabulary read logits, and the arguments that they share.

#pragma once

#include "common.h"

#include <algorithm>

namespace dllm {

constexpr int64_t kTile = 1024;

// Fills the first `padded` places of a tile, with -inf where there is no logit or it is suppressed; NaN becomes -inf,
// +inf the largest finite number.
template <typename Dtype>
void load_tile(float* x, const typename Dtype::type* logits, const bool* suppress, int64_t n, int64_t padded = kTile) {
  typename Dtype::type buffer[kTile];
  std::memcpy(buffer, logits, n * sizeof buffer[0]);
  std::fill(buffer + n, buffer + padded, 0);
  for (int64_t i = 0; i < padded; i += kLanes)
    store(x + i, min(max(Dtype::load(buffer + i), splat(-kInf)), splat(FLT_MAX)));
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
