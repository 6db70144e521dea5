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

// How many of the candidates are committed; on return those are the first ones.
int64_t select(std::vector<Candidate>& all, std::optional<int64_t> k, std::optional<float> threshold, float factor) {
  const int64_t n = all.size();
  if (n == 0) return 0;
  if (k) {
    const int64_t take = std::clamp<int64_t>(*k, 0, n);
    if (take > 0 && take < n) std::nth_element(all.begin(), all.begin() + (take - 1), all.end());
    return take;
  }
  std::sort(all.begin(), all.end());
  int64_t take = 1;
  while (take < n && all[take].confidence >= (threshold ? *threshold : 1.0f - factor / float(take + 2))) ++take;
  return take;
}

void transfer_tokens(
    Tensor canvas, Tensor proposals, Tensor confidence, int64_t mask_id, std::optional<Tensor> k,
    std::optional<double> threshold, std::optional<double> factor, Tensor start, Tensor length, Tensor committed) {
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
      const std::optional<int64_t> at_most = k ? std::optional<int64_t>(k_of[b]) : std::nullopt;
      const std::optional<float> at_least = threshold ? std::optional<float>(float(*threshold)) : std::nullopt;
      const int64_t take = select(candidates, at_most, at_least, float(factor.value_or(1.0)));
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
