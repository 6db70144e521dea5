// Noise of positions, from the stream of random confidences. Formulae: dllm_kernels/position_noise/api.py.

#include "common.h"
#include "philox.h"

namespace dllm {
namespace {

void position_noise(Tensor seeds, Tensor positions, Tensor step, bool gumbel, Tensor noise) {
  const PerRow<int64_t> seed_of(seeds), position_of(positions), step_of(step);
  float* out = static_cast<float*>(noise.mutable_data_ptr());
  for (int64_t n = 0; n < noise.size(0); ++n) {
    const philox::Address at = {
        static_cast<uint64_t>(seed_of[n]), static_cast<uint32_t>(position_of[n]), static_cast<uint32_t>(step_of[n])};
    const philox::Block four = philox::block(at, 0, philox::kRandomConfidence);
    const uint32_t first = four.word[0], second = four.word[1];
    out[n] = gumbel ? philox::gumbel(first, second) : (static_cast<float>(first >> 9) + 0.5f) * 0x1p-23f;
  }
}

}  // namespace
}  // namespace dllm

STABLE_TORCH_LIBRARY_IMPL(dllm_kernels, CPU, m) { m.impl("position_noise", TORCH_BOX(&dllm::position_noise)); }
