// Gumbel-argmax of hidden @ weight.T + bias, of whose logits few exist at a time.
//
// Each thread takes stripes of the vocabulary, multiplies a block of rows with one and reduces their logits while they
// are in its cache (linear.h): threads meet at the end of the vocabulary. Or a library multiplies wide slices, where it
// has instructions for that which are not used here, and the threads share what it made. Either way a row's partial
// results are of the same tokens whatever the number of threads, and are appended in their order.

#include "gumbel_argmax.h"
#include "linear.h"

#include <array>
#include <atomic>
#include <map>
#include <mutex>

namespace dllm {
namespace {

// What is known of each row, to which stripes are appended in the order of the vocabulary however they arrive.
class Known {
 public:
  Known(int64_t n, const Sampling& sampling) : rows(n), sampling_(sampling) {}

  void append(int64_t stripe, std::vector<Partial> partials) {
    const std::lock_guard<std::mutex> guard(mutex_);
    waiting_.emplace(stripe, std::move(partials));
    for (auto first = waiting_.begin(); first != waiting_.end() && first->first == next_; ++next_) {
      for (size_t row = 0; row < rows.size(); ++row) dllm::append(rows[row], first->second[row], sampling_.rate(row));
      first = waiting_.erase(first);
    }
  }

  std::vector<Partial> rows;

 private:
  const Sampling& sampling_;
  std::mutex mutex_;
  std::map<int64_t, std::vector<Partial>> waiting_;
  int64_t next_ = 0;
};

// Every thread takes the next stripe until there is none.
template <typename Dtype>
void by_stripes(const Linear<Dtype>& linear, int64_t vocab_size, const Sampling& sampling, Known& known) {
  const int64_t n = known.rows.size(), threads = torch::stable::get_num_threads();
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    std::vector<float> best(n, -kInf);  // in this thread's stripes so far, which are of lower tokens
    typename Linear<Dtype>::Workspace workspace(linear);
    for (int64_t stripe; (stripe = next++) * kStripe < vocab_size;) {
      const int64_t begin = stripe * kStripe, end = std::min(begin + kStripe, vocab_size);
      std::vector<Partial> partials(n);
      for (int64_t block = 0; block < linear.blocks(); ++block) {
        const float* logits = linear(block, begin, end, workspace);
        for (int64_t row = linear.first_row(block); row < linear.first_row(block + 1); ++row, logits += kRow) {
          partials[row] = sampling.reduce<Float32>(logits, row, begin, end, -kInf, best[row]);
          best[row] = std::max(best[row], partials[row].best);
        }
      }
      known.append(stripe, std::move(partials));
    }
  });
}

Tensor product_of_library(const Tensor& hidden, const Tensor& weight, const std::optional<Tensor>& bias) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack = {from(hidden), from(weight), from(bias)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Slices are `width` tokens wide. The threads share the rows of a slice and its stripes of kTile tokens.
template <typename Dtype>
void by_slices_of_library(
    const Tensor& hidden, const Tensor& weight, const std::optional<Tensor>& bias, int64_t width,
    const Sampling& sampling, Known& known) {
  const int64_t n = known.rows.size(), vocab_size = weight.size(0);
  for (int64_t first = 0; first < vocab_size; first += width) {
    const int64_t last = std::min(first + width, vocab_size), stripes = (last - first + kTile - 1) / kTile;
    const auto slice = [&](Tensor t) { return torch::stable::narrow(t, 0, first, last - first); };
    const Tensor logits = product_of_library(hidden, slice(weight), bias ? std::optional(slice(*bias)) : bias);
    const auto* x = static_cast<const typename Dtype::type*>(logits.const_data_ptr());
    std::vector<std::vector<Partial>> partials(stripes, std::vector<Partial>(n));
    torch::stable::parallel_for(0, stripes * n, 16, [&](int64_t task, int64_t last_task) {
      for (; task < last_task; ++task) {
        const int64_t stripe = task / n, row = task % n, begin = first + stripe * kTile;
        partials[stripe][row] = sampling.reduce<Dtype>(
            x + row * logits.stride(0) + stripe * kTile, row, begin, std::min(begin + kTile, last), -kInf,
            known.rows[row].best);
      }
    });
    for (int64_t stripe = 0; stripe < stripes; ++stripe)
      known.append(first / kTile + stripe, std::move(partials[stripe]));
  }
}

// `width`: of the slices that a library multiplies, a multiple of kTile; or 0, not to call one.
void linear_gumbel_argmax(
    Tensor hidden, Tensor weight, std::optional<Tensor> bias, int64_t width, std::optional<Tensor> temperature,
    std::optional<Tensor> seeds, std::optional<Tensor> positions, std::optional<Tensor> step,
    std::optional<Tensor> suppress, std::optional<Tensor> begin_suppress, bool tempered, std::optional<Tensor> count,
    Tensor token, Tensor log_prob, Tensor margin, Tensor neg_entropy, Tensor lse) {
  STD_TORCH_CHECK(width >= 0 && width % kTile == 0, "width must be a multiple of ", kTile, ", got ", width);
  const int64_t wanted = token.size(0), n = counted(count, wanted), vocab_size = weight.size(0);
  const Sampling sampling(temperature, seeds, positions, step, suppress, begin_suppress, tempered);
  Known known(n, sampling);
  if (n > 0)
    with_dtype_of(hidden, [&](auto dtype) {
      using Dtype = decltype(dtype);
      if (width > 0) by_slices_of_library<Dtype>(hidden, weight, bias, width, sampling, known);
      else by_stripes(Linear<Dtype>(hidden, n, weight, bias), vocab_size, sampling, known);
    });
  const Results out(token, log_prob, margin, neg_entropy, lse);
  for (int64_t i = 0; i < wanted; ++i) out.write(i, i < n ? known.rows[i] : Partial(), i < n ? sampling.rate(i) : 1);
}

}  // namespace
}  // namespace dllm

STABLE_TORCH_LIBRARY_IMPL(dllm_kernels, CPU, m) {
  m.impl("linear_gumbel_argmax", TORCH_BOX(&dllm::linear_gumbel_argmax));
}
