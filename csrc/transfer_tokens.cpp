// Transfer: each row commits its surest proposals. Rules: dllm_kernels/transfer_tokens/api.py.

#include "common.h"

#include <algorithm>
#include <vector>

namespace dllm {
namespace {

struct Candidate {
  float confidence;
  int64_t offset;
  // the surer first; of equal ones the leftmost
  bool operator<(const Candidate& other) const {
    return confidence != other.confidence ? confidence > other.confidence : offset < other.offset;
  }
};

// What a column takes from the budget, in units of 2^-32 nat; at most 2^16 nats.
int64_t cost(float confidence) { return int64_t(std::clamp(-confidence, 0.0f, 0x1p16f) * 0x1p32f); }

// How many of the candidates are committed; on return those are the first ones.
int64_t select(
    std::vector<Candidate>& all, int64_t least, std::optional<float> threshold, std::optional<float> factor,
    std::optional<int64_t> budget) {
  const int64_t n = all.size();
  least = std::clamp<int64_t>(least, 0, n);
  if (!threshold && !factor && !budget) {
    if (least > 0 && least < n) std::nth_element(all.begin(), all.begin() + (least - 1), all.end());
    return least;
  }
  std::sort(all.begin(), all.end());
  int64_t take = 0, spent = 0;
  const auto allowed = [&] {
    if (budget) return spent <= *budget;
    return all[take].confidence >= (threshold ? *threshold : 1.0f - *factor / float(take + 2));
  };
  for (; take < n && allowed(); ++take) spent += cost(all[take].confidence);
  return std::max(take, least);
}

void transfer_tokens(
    Tensor canvas, Tensor proposals, Tensor confidence, int64_t mask_id, Tensor k, std::optional<double> threshold,
    std::optional<double> factor, std::optional<int64_t> budget, Tensor start, Tensor length, Tensor committed) {
  const std::optional<float> bar(threshold), steepness(factor);
  const int64_t batch = canvas.size(0), columns = canvas.size(1), window = proposals.size(1);
  const PerRow<int64_t> k_of(k), start_of(start), length_of(length);
  const int64_t proposal_row = proposals.stride(0), proposal_column = proposals.stride(1);
  const int64_t confidence_row = confidence.stride(0), confidence_column = confidence.stride(1);

  torch::stable::parallel_for(0, batch, 16, [&](int64_t begin, int64_t end) {
    std::vector<Candidate> candidates;
    for (int64_t b = begin; b < end; ++b) {
      int64_t* row = static_cast<int64_t*>(canvas.mutable_data_ptr()) + b * canvas.stride(0);
      const int64_t* proposed = static_cast<const int64_t*>(proposals.const_data_ptr()) + b * proposal_row;
      const float* sure = static_cast<const float*>(confidence.const_data_ptr()) + b * confidence_row;

      const int64_t first = start_of[b], stop = std::min(length_of[b], window);
      candidates.clear();
      for (int64_t j = 0; j < stop; ++j) {
        const int64_t column = first + j;
        if (column < 0 || column >= columns || row[column] != mask_id || proposed[j * proposal_column] < 0) continue;
        const float c = sure[j * confidence_column];
        candidates.push_back({std::isnan(c) ? -kInf : c, j});
      }
      const int64_t take = select(candidates, k_of[b], bar, steepness, budget);
      for (int64_t i = 0; i < take; ++i) {
        const int64_t j = candidates[i].offset;
        row[first + j] = proposed[j * proposal_column];
      }
      static_cast<int64_t*>(committed.mutable_data_ptr())[b] = take;
    }
  });
}

}  // namespace
}  // namespace dllm

STABLE_TORCH_LIBRARY_IMPL(dllm_kernels, CPU, m) { m.impl("transfer_tokens", TORCH_BOX(&dllm::transfer_tokens)); }
