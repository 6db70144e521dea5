// Dropout whose mask is a function of a seed, so that none is stored. Formulae: dllm_kernels/dropout/api.py.

#include "common.h"
#include "philox.h"

#include <algorithm>

namespace dllm {
namespace {

constexpr int64_t kTile = 256;  // elements that the halves of the words of 32 Philox blocks decide on
constexpr int kBlocks = 32;

template <typename Dtype>
void drop_tile(const typename Dtype::type* x, typename Dtype::type* out, uint64_t seed, int64_t tile, vuint threshold,
               float scale) {
  uint32_t words[4][kBlocks];
  const uint64_t block = static_cast<uint64_t>(tile) * kBlocks;
  const philox::Address at = {seed, static_cast<uint32_t>(block >> 32), 0};
  philox::words(at, static_cast<uint32_t>(block), philox::kDropout, words);
  for (int word = 0; word < 4; ++word)
    for (int r = 0; r < kBlocks; r += kLanes) {
      vuint w;
      std::memcpy(&w, words[word] + r, sizeof w);
      const vuint halves[2] = {w & 0xFFFF, w >> 16};
      for (int half = 0; half < 2; ++half) {
        const int64_t i = 2 * kBlocks * word + kBlocks * half + r;
        const vint kept = (vint)(halves[half] >= threshold);
        Dtype::write(out + i, as_float(as_int(Dtype::load(x + i) * scale) & kept));
      }
    }
}

template <typename Dtype>
void drop(const Tensor& x, uint64_t seed, uint32_t threshold, Tensor& out) {
  using type = typename Dtype::type;
  const int64_t n = x.numel();
  const auto* from = static_cast<const type*>(x.const_data_ptr());
  auto* to = static_cast<type*>(out.mutable_data_ptr());
  const vuint bound = vuint{} + threshold;
  const float scale = 65536.0f / static_cast<float>(65536 - threshold);
  torch::stable::parallel_for(0, (n + kTile - 1) / kTile, 64, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * kTile, count = std::min(kTile, n - first);
      if (count == kTile) {
        drop_tile<Dtype>(from + first, to + first, seed, tile, bound, scale);
        continue;
      }
      type last[kTile] = {};
      std::memcpy(last, from + first, count * sizeof *last);
      drop_tile<Dtype>(last, last, seed, tile, bound, scale);
      std::memcpy(to + first, last, count * sizeof *last);
    }
  });
}

void dropout(Tensor x, Tensor seed, int64_t threshold, Tensor out) {
  const auto key = static_cast<uint64_t>(*static_cast<const int64_t*>(seed.const_data_ptr()));
  with_dtype_of(x, [&](auto dtype) { drop<decltype(dtype)>(x, key, static_cast<uint32_t>(threshold), out); });
}

}  // namespace
}  // namespace dllm

STABLE_TORCH_LIBRARY_IMPL(dllm_kernels, CPU, m) { m.impl("dropout", TORCH_BOX(&dllm::dropout)); }
