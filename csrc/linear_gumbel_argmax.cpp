// Gumbel-argmax of hidden @ weight.T + bias, of whose logits few exist at a time.
//
// Each thread takes stripes of the vocabulary, multiplies a block of rows with one and reduces their logits while they
// are in its cache (linear.h): threads meet at the end of the vocabulary. A row's partial results are of the same tokens
// whatever the number of threads, and are appended in their order.

#include "gumbel_argmax.h"
#include "linear.h"
#include "ordered.h"

namespace dllm {
namespace {

// Of each row what all stripes tell, appended in the order of the vocabulary.
template <typename Linear>
void by_stripes(const Linear& linear, int64_t vocab_size, const Sampling& sampling, std::vector<Partial>& found) {
  const int64_t n = found.size();
  Ordered<std::vector<Partial>> ordered;
  for_each_stripe(vocab_size, [&] {
    // `reached`: in this thread's stripes so far, which are of lower tokens
    return [&, reached = std::vector<Reached>(n), workspace = typename Linear::Workspace()](
               int64_t stripe, int64_t begin, int64_t end) mutable {
      std::vector<Partial> partials(n);
      for (int64_t block = 0; block < linear.blocks(); ++block) {
        const float* logits = linear(block, begin, end, workspace);
        for (int64_t row = linear.first_row(block); row < linear.first_row(block + 1); ++row, logits += kRow) {
          partials[row] = sampling.reduce<Float32>(logits, row, begin, end, -kInf, reached[row]);
          reached[row].take(partials[row]);
        }
      }
      ordered.put(stripe, std::move(partials), [&](const std::vector<Partial>& next) {
        for (int64_t row = 0; row < n; ++row) append(found[row], next[row], sampling.rate(row));
      });
    };
  });
}

void linear_gumbel_argmax(
    Tensor hidden, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> weight_scale,
    std::optional<Tensor> temperature,
    std::optional<Tensor> seeds, std::optional<Tensor> positions, std::optional<Tensor> step,
    std::optional<Tensor> suppress, std::optional<Tensor> begin_suppress, bool tempered,
    std::optional<double> softcap, std::optional<Tensor> count, Tensor token, Tensor log_prob, Tensor margin,
    Tensor neg_entropy, Tensor lse, Tensor argmax) {
  const int64_t wanted = token.size(0), n = counted(count, wanted), vocab_size = weight.size(0);
  const Sampling sampling(temperature, seeds, positions, step, suppress, begin_suppress, tempered, softcap);
  std::vector<Partial> found(n);
  if (n > 0)
    with_dtype_of(hidden, [&](auto dtype) {
      using Dtype = decltype(dtype);
      if (weight_scale)
        by_stripes(Linear<Int8, Dtype>(hidden, 0, n, weight, bias, weight_scale), vocab_size, sampling, found);
      else by_stripes(Linear<Dtype>(hidden, 0, n, weight, bias), vocab_size, sampling, found);
    });
  const Results out(token, log_prob, margin, neg_entropy, lse, argmax);
  for (int64_t i = 0; i < wanted; ++i) out.write(i, i < n ? found[i] : Partial(), i < n ? sampling.rate(i) : 1);
}

}  // namespace
}  // namespace dllm

STABLE_TORCH_LIBRARY_IMPL(dllm_kernels, CPU, m) {
  m.impl("linear_gumbel_argmax", TORCH_BOX(&dllm::linear_gumbel_argmax));
}
