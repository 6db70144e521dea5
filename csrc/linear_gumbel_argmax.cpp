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
constexpr int64_t kRows = 8;  // that are reduced at a time: as float32 they stay in L1

template <typename... Arguments>
Tensor call(const char* name, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(arguments)> stack = {torch::stable::detail::from(arguments)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Logits of tokens from `first` on: [rows, tokens], or of oneDNN [tokens, rows] and without the bias.
struct Logits {
  Tensor memory;
  int64_t first;
};

struct Head {
  Tensor hidden, weight;
  std::optional<Tensor> bias;
  bool onednn;  // then float32

  // oneDNN rearranges its second operand before it multiplies: let that be the hidden states, which are fewer. Called
  // by worker threads, which do not know the caller's autocast or gradient mode: no tensor may need either.
  Logits logits(int64_t first, int64_t end) const {
    const auto slice = [&](Tensor t) { return torch::stable::narrow(t, 0, first, end - first); };
    const std::optional<Tensor> none, offsets = bias ? std::optional<Tensor>(slice(*bias)) : none;
    if (!onednn) return {call("aten::linear", hidden, slice(weight), offsets), first};
    const std::string activation = "none";
    const std::vector<int64_t> scalars;
    const std::optional<std::string> algorithm;
    return {call("mkldnn::_linear_pointwise", slice(weight), hidden, none, activation, scalars, algorithm), first};
  }
};

// The kRows rows that begin at `logits` [n, rows], plus the bias; by blocks, so that all of a line read is used.
void turn(
    const float* logits, int64_t stride, int64_t rows, int64_t n, const float* bias, float (&out)[kRows][kSlice]) {
  constexpr int64_t kTokens = 16;
  for (int64_t first = 0; first < n; first += kTokens) {
    float block[kTokens][kRows + 1];  // an odd length: columns then lie in different banks
    const int64_t tokens = std::min(kTokens, n - first);
    for (int64_t t = 0; t < tokens; ++t, logits += stride)
      for (int64_t i = 0; i < rows; ++i) block[t][i] = logits[i] + (bias ? bias[first + t] : 0);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t t = 0; t < tokens; ++t) out[i][first + t] = block[t][i];
  }
}

struct Reduction {
  const Head& head;
  const Sampling& sampling;
  int64_t n, vocab_size;

  // Partial results of kRows rows from `row` on, in the slice at `begin`. `best`: scores that lower tokens have reached.
  template <typename Dtype>
  void reduce(const Logits& logits, int64_t row, int64_t begin, const float* best, Partial* out) const {
    const int64_t end = std::min(begin + kSlice, vocab_size), rows = std::min(kRows, n - row);
    const int64_t stride = logits.memory.stride(0), skipped = begin - logits.first;
    if (head.onednn) {
      const auto* x = static_cast<const float*>(logits.memory.const_data_ptr()) + skipped * stride + row;
      const float* bias = head.bias ? static_cast<const float*>(head.bias->const_data_ptr()) + begin : nullptr;
      alignas(64) float turned[kRows][kSlice];
      turn(x, stride, rows, end - begin, bias, turned);
      for (int64_t i = 0; i < rows; ++i)
        out[row + i] = sampling.reduce<Float32>(turned[i], row + i, begin, end, -kInf, best[row + i]);
    } else {
      const auto* x = static_cast<const typename Dtype::type*>(logits.memory.const_data_ptr()) + skipped;
      for (int64_t i = row; i < row + rows; ++i)
        out[i] = sampling.reduce<Dtype>(x + i * stride, i, begin, end, -kInf, best[i]);
    }
  }
};

// What is known of each row, to which slices are appended in the order of the vocabulary however they arrive.
class Known {
 public:
  Known(int64_t n, const Sampling& sampling) : rows(n), sampling_(sampling) {}

  void append(int64_t slice, std::vector<Partial> partials) {
    const std::lock_guard<std::mutex> guard(mutex_);
    waiting_.emplace(slice, std::move(partials));
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

// Every thread takes the next slice until there is none.
template <typename Dtype>
void a_slice_each(const Reduction& in, int64_t threads, Known& known) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    std::vector<float> best(in.n, -kInf);  // in this thread's slices so far, which are of lower tokens
    for (int64_t slice; (slice = next++) * kSlice < in.vocab_size;) {
      const int64_t begin = slice * kSlice;
      const Logits logits = in.head.logits(begin, std::min(begin + kSlice, in.vocab_size));
      std::vector<Partial> partials(in.n);
      for (int64_t row = 0; row < in.n; row += kRows)
        in.reduce<Dtype>(logits, row, begin, best.data(), partials.data());
      for (int64_t row = 0; row < in.n; ++row) best[row] = std::max(best[row], partials[row].best);
      known.append(slice, std::move(partials));
    }
  });
}

// All multiply slices that are `width` wide, and share the rows and slices of kSlice tokens that are in one.
template <typename Dtype>
void a_slice_for_all(const Reduction& in, int64_t width, Known& known) {
  const int64_t blocks = (in.n + kRows - 1) / kRows;
  for (int64_t first = 0; first < in.vocab_size; first += width) {
    const int64_t last = std::min(first + width, in.vocab_size), slices = (last - first + kSlice - 1) / kSlice;
    const Logits logits = in.head.logits(first, last);
    std::vector<float> best(in.n);
    for (int64_t row = 0; row < in.n; ++row) best[row] = known.rows[row].best;
    std::vector<std::vector<Partial>> partials(slices, std::vector<Partial>(in.n));
    torch::stable::parallel_for(0, slices * blocks, 4, [&](int64_t task, int64_t end) {
      for (; task < end; ++task) {
        const int64_t slice = task / blocks, row = task % blocks * kRows;
        in.reduce<Dtype>(logits, row, first + slice * kSlice, best.data(), partials[slice].data());
      }
    });
    for (int64_t slice = 0; slice < slices; ++slice) known.append(first / kSlice + slice, std::move(partials[slice]));
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
  const Reduction in = {head, sampling, n, vocab_size};
  Known known(n, sampling);
  if (n > 0)
    with_dtype_of(hidden, [&](auto dtype) {
      using Dtype = decltype(dtype);
      if (threads * kSlice <= width) a_slice_each<Dtype>(in, threads, known);
      else a_slice_for_all<Dtype>(in, width, known);
    });
  const Results out(token, log_prob, margin, neg_entropy, lse);
  for (int64_t i = 0; i < wanted; ++i) out.write(i, i < n ? known.rows[i] : Partial(), i < n ? sampling.rate(i) : 1);
}

}  // namespace
}  // namespace dllm

STABLE_TORCH_LIBRARY_IMPL(dllm_kernels, CPU, m) {
  m.impl("linear_gumbel_argmax", TORCH_BOX(&dllm::linear_gumbel_argmax));
}
