// Gumbel-argmax of hidden @ weight.T + bias, of whose logits a slice of the vocabulary exists at a time.
//
// Each thread multiplies slices of its own, by the library's product, which inside a parallel region runs on the thread
// that calls it, and reduces them while they are in its cache: threads meet at the end of the vocabulary, not of every
// slice. Where slices for all of them would be more logits than may exist, they share the product of a wide one.
// Either way a row's partial results are of the same tokens and are appended in the same order, so that their bits
// depend on the number of threads only as far as the product's do.

#include "gumbel_argmax.h"

#include <array>
#include <atomic>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace dllm {
namespace {

constexpr int64_t kSlice = kTile;

struct Head {
  Tensor hidden, weight;
  std::optional<Tensor> bias;
  bool onednn;

  // [N, n], the logits of tokens `first` to `first` + n. Called by worker threads, which do not know the caller's
  // autocast or gradient mode: the tensors must need neither.
  Tensor logits(int64_t first, int64_t n) const {
    using torch::stable::detail::from;
    const auto slice = [&](Tensor t) { return torch::stable::narrow(t, 0, first, n); };
    const auto offsets = bias ? std::optional<Tensor>(slice(*bias)) : std::nullopt;
    std::array<StableIValue, 6> stack = {from(hidden), from(slice(weight)), from(offsets)};
    if (onednn) {  // no activation after it
      stack[3] = from(std::string("none"));
      stack[4] = from(std::vector<int64_t>());
      stack[5] = from(std::nullopt);
    }
    const char* name = onednn ? "mkldnn::_linear_pointwise" : "aten::linear";
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
    return torch::stable::detail::to<Tensor>(stack[0]);
  }
};

template <typename Dtype>
struct Logits {
  Tensor memory;
  int64_t first;

  const typename Dtype::type* at(int64_t row, int64_t token) const {
    return static_cast<const typename Dtype::type*>(memory.const_data_ptr()) + row * memory.stride(0) + token - first;
  }
};

// What is known of each row, to which slices are appended in the order of the vocabulary however they arrive.
class Known {
 public:
  Known(int64_t n, const Sampling& sampling) : rows(n), sampling_(sampling) {}

  void append(int64_t row, const Partial& slice) { dllm::append(rows[row], slice, sampling_.rate(row)); }

  void append_in_order(int64_t slice, std::vector<Partial> partials) {
    const std::lock_guard<std::mutex> guard(mutex_);
    waiting_.emplace(slice, std::move(partials));
    for (auto first = waiting_.begin(); first != waiting_.end() && first->first == next_; ++next_) {
      for (size_t row = 0; row < rows.size(); ++row) append(row, first->second[row]);
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

template <typename Dtype>
void a_slice_each(const Head& head, int64_t vocab_size, const Sampling& sampling, int64_t threads, Known& known) {
  const int64_t n = known.rows.size();
  std::atomic<int64_t> next = 0;
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    std::vector<float> best(n, -kInf);  // of the slices, all of lower tokens, that this thread has had
    for (int64_t begin; (begin = kSlice * next++) < vocab_size;) {
      const int64_t end = std::min(begin + kSlice, vocab_size);
      const Logits<Dtype> logits = {head.logits(begin, end - begin), begin};
      std::vector<Partial> partials(n);
      for (int64_t row = 0; row < n; ++row) {
        partials[row] = sampling.reduce<Dtype>(logits.at(row, begin), row, begin, end, -kInf, best[row]);
        best[row] = std::max(best[row], partials[row].best);
      }
      known.append_in_order(begin / kSlice, std::move(partials));
    }
  });
}

template <typename Dtype>
void a_slice_for_all(const Head& head, int64_t vocab_size, const Sampling& sampling, int64_t width, Known& known) {
  const int64_t n = known.rows.size(), grain = std::max<int64_t>(1, 32 * kTile / width);
  for (int64_t first = 0; first < vocab_size; first += width) {
    const int64_t last = std::min(first + width, vocab_size);
    const Logits<Dtype> logits = {head.logits(first, last - first), first};
    torch::stable::parallel_for(0, n, grain, [&](int64_t row, int64_t end_row) {
      for (; row < end_row; ++row)
        for (int64_t begin = first; begin < last; begin += kSlice) {
          const int64_t end = std::min(begin + kSlice, last);
          const float floor = known.rows[row].best;
          known.append(row, sampling.reduce<Dtype>(logits.at(row, begin), row, begin, end, -kInf, floor));
        }
    });
  }
}

// `width`: how many tokens may have logits at a time, a multiple of kSlice.
void linear_gumbel_argmax(
    Tensor hidden, Tensor weight, std::optional<Tensor> bias, bool onednn, int64_t width,
    std::optional<Tensor> temperature, std::optional<Tensor> seeds, std::optional<Tensor> positions,
    std::optional<Tensor> step, std::optional<Tensor> suppress, std::optional<Tensor> begin_suppress, bool tempered,
    std::optional<Tensor> count, Tensor token, Tensor log_prob, Tensor margin, Tensor neg_entropy, Tensor lse) {
  STD_TORCH_CHECK(width > 0 && width % kSlice == 0, "width must be a multiple of ", kSlice, ", got ", width);
  const int64_t wanted = token.size(0), n = counted(count, wanted), vocab_size = weight.size(0);
  const int64_t threads = torch::stable::get_num_threads();
  const Head head = {hidden, weight, bias, onednn};
  const Sampling sampling(temperature, seeds, positions, step, suppress, begin_suppress, tempered);
  Known known(n, sampling);
  if (n > 0)
    with_dtype_of(hidden, [&](auto dtype) {
      using Dtype = decltype(dtype);
      if (threads * kSlice <= width) a_slice_each<Dtype>(head, vocab_size, sampling, threads, known);
      else a_slice_for_all<Dtype>(head, vocab_size, sampling, width, known);
    });
  const Results out(token, log_prob, margin, neg_entropy, lse);
  for (int64_t i = 0; i < wanted; ++i) out.write(i, i < n ? known.rows[i] : Partial(), i < n ? sampling.rate(i) : 1);
}

}  // namespace
}  // namespace dllm

STABLE_TORCH_LIBRARY_IMPL(dllm_kernels, CPU, m) {
  m.impl("linear_gumbel_argmax", TORCH_BOX(&dllm::linear_gumbel_argmax));
}
