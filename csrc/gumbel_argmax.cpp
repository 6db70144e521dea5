// Gumbel-argmax of stored logits: threads share the chunks of the rows.

#include "gumbel_argmax.h"

#include <vector>

namespace dllm {
namespace {

constexpr int64_t kChunk = 16384;

struct Arguments {
  const void* logits;
  int64_t vocab_size, n_rows, row_stride, n;
  PerRow<int64_t> rows;
  const float* least;  // per chosen row, or null
  Sampling sampling;

  int64_t row(int64_t i) const { return rows ? rows[i] : i; }
  bool has(int64_t row) const { return row >= 0 && row < n_rows; }
  double rate(int64_t i) const { return has(row(i)) ? sampling.rate(row(i)) : 1; }
};

template <typename Dtype>
void run(const Arguments& in, Partial* found) {
  const int64_t chunks = (in.vocab_size + kChunk - 1) / kChunk;
  std::vector<Partial> partials(in.n * chunks);
  const int64_t grain = std::max<int64_t>(1, 2 * kChunk / std::min(in.vocab_size, kChunk));
  torch::stable::parallel_for(0, in.n * chunks, grain, [&](int64_t begin, int64_t end) {
    Reached reached;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t i = task / chunks, row = in.row(i), token = task % chunks * kChunk;
      if (!in.has(row)) continue;
      if (token == 0) reached = {};
      const auto* logits = static_cast<const typename Dtype::type*>(in.logits) + row * in.row_stride + token;
      const int64_t end_token = std::min(token + kChunk, in.vocab_size);
      partials[task] = in.sampling.reduce<Dtype>(logits, row, token, end_token, in.least ? in.least[i] : -kInf, reached);
      reached.take(partials[task]);
    }
  });
  for (int64_t task = 0; task < in.n * chunks; ++task)
    append(found[task / chunks], partials[task], in.rate(task / chunks));
}

void gumbel_argmax(
    Tensor logits, std::optional<Tensor> temperature, std::optional<Tensor> seeds, std::optional<Tensor> positions,
    std::optional<Tensor> step, std::optional<Tensor> suppress, std::optional<Tensor> begin_suppress, bool tempered,
    std::optional<double> softcap, std::optional<Tensor> least, std::optional<Tensor> rows, std::optional<Tensor> count,
    Tensor token, Tensor log_prob, Tensor margin, Tensor neg_entropy, Tensor lse, Tensor argmax) {
  const int64_t wanted = token.size(0);
  const Arguments in = {
      logits.const_data_ptr(), logits.size(1), logits.size(0), logits.stride(0), counted(count, wanted),
      PerRow<int64_t>(rows), least ? static_cast<const float*>(least->const_data_ptr()) : nullptr,
      Sampling(temperature, seeds, positions, step, suppress, begin_suppress, tempered, softcap)};
  std::vector<Partial> found(wanted);
  with_dtype_of(logits, [&](auto dtype) { run<decltype(dtype)>(in, found.data()); });
  const Results out(token, log_prob, margin, neg_entropy, lse, argmax);
  for (int64_t i = 0; i < wanted; ++i) out.write(i, found[i], i < in.n ? in.rate(i) : 1);
}

}  // namespace
}  // namespace dllm

STABLE_TORCH_LIBRARY_IMPL(dllm_kernels, CPU, m) { m.impl("gumbel_argmax", TORCH_BOX(&dllm::gumbel_argmax)); }
