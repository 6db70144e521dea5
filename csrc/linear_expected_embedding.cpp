// Gumbel-argmax of hidden @ weight.T + bias, and the mean of the weight's rows under the softmax of the logits.
//
// A stripe of the weight serves both products while it is in a thread's cache: its logits are reduced as in
// linear_gumbel_argmax.cpp, then become weights e^((l - m) rate) in place, and weight the same rows into a sum. m is the
// largest logit so far; a sum is scaled where it grows. A thread takes parts of four stripes, each with a sum of its own.
// Parts are the same whatever the number of threads, and are combined in the order of the vocabulary.

#include "gumbel_argmax.h"
#include "linear.h"
#include "ordered.h"

namespace dllm {
namespace {

constexpr int64_t kPart = 4 * kStripe;
constexpr int64_t kTogether = kAccumulators / 4;  // rows whose sums are in registers
constexpr int64_t kPanel = 4 * kLanes;            // with so many columns
constexpr int64_t kChunk = 64;                    // tokens of which a panel lies in the nearest cache
// A token this far below the largest so far counts as 0, and no subnormal number arises: 2^18 of them weigh a thousandth
// of an ulp. Most weights of a sure row are 0 so, but not all of a chunk's: a part does not know what others hold.
constexpr float kNothing = -36;

// sum e^((l - max) rate) E_v of each row, in whole panels of columns.
struct WeightedSums {
  int64_t width;
  std::vector<float> max, sums;

  WeightedSums(int64_t n, int64_t width)
      : width((width + kPanel - 1) / kPanel * kPanel), max(n, -kInf), sums(n * this->width) {}

  float* row(int64_t i) { return &sums[i * width]; }

  // Scales a row's sum for a larger maximum.
  void raise(int64_t i, float to, double rate) {
    if (!(to > max[i])) return;
    if (max[i] > -kInf) {
      const float scale = static_cast<float>(std::exp((double(max[i]) - to) * rate));
      for (int64_t k = 0; k < width; k += kLanes) store(row(i) + k, load(row(i) + k) * scale);
    }
    max[i] = to;
  }

  void add(int64_t i, WeightedSums& other, double rate) {
    raise(i, other.max[i], rate);
    if (other.max[i] == -kInf) return;
    other.raise(i, max[i], rate);
    for (int64_t k = 0; k < width; k += kLanes) store(row(i) + k, load(row(i) + k) + load(other.row(i) + k));
  }
};

// sums[i] += sum_v weights[i][v] panel[v] of kRows rows.
template <int kRows>
void multiply_panel(const float* weights, const float* panel, int64_t tokens, float* sums, int64_t stride) {
  vfloat total[kRows][4] = {};
  for (int64_t v = 0; v < tokens; ++v, panel += kPanel) {
    const vfloat e[4] = {load(panel), load(panel + kLanes), load(panel + 2 * kLanes), load(panel + 3 * kLanes)};
    for (int i = 0; i < kRows; ++i) {
      const vfloat w = splat(weights[i * kRow + v]);
      for (int k = 0; k < 4; ++k) total[i][k] = multiply_add(w, e[k], total[i][k]);
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int k = 0; k < 4; ++k) {
      float* to = sums + i * stride + k * kLanes;
      store(to, load(to) + total[i][k]);
    }
}

// The head as the matrix that is averaged.
template <typename Dtype>
class Embedding {
  using Input = typename Dtype::type;

 public:
  explicit Embedding(const Tensor& weight)
      : weight_(static_cast<const Input*>(weight.const_data_ptr())), stride_(weight.stride(0)), width_(weight.size(1)) {}

  // Adds rows `begin` to `end` of the weight to the sums of `n` rows, `weights` [n, kRow], from row `first` on.
  void add(const float* weights, int64_t begin, int64_t end, WeightedSums& to, int64_t first, int64_t n) const {
    alignas(64) float panel[kChunk * kPanel];
    for (int64_t token = begin; token < end; token += kChunk) {
      const float* w = weights + (token - begin);
      const int64_t tokens = std::min(kChunk, end - token);
      for (int64_t column = 0; column < width_; column += kPanel) {
        copy(token, tokens, column, panel);
        int64_t i = 0;
        for (; i + kTogether <= n; i += kTogether)
          multiply_panel<kTogether>(w + i * kRow, panel, tokens, to.row(first + i) + column, to.width);
        for (; i < n; ++i)
          multiply_panel<1>(w + i * kRow, panel, tokens, to.row(first + i) + column, to.width);
      }
    }
  }

 private:
  // The panel from `column` on of so many rows, as float32, with zeros beyond the last column.
  void copy(int64_t token, int64_t tokens, int64_t column, float* panel) const {
    for (int64_t v = 0; v < tokens; ++v, panel += kPanel) {
      const Input* from = weight_ + (token + v) * stride_ + column;
      Input last[kPanel] = {};
      if (column + kPanel > width_) {
        std::copy(from, from + (width_ - column), last);
        from = last;
      }
      for (int64_t k = 0; k < kPanel; k += kLanes) store(panel + k, Dtype::load(from + k));
    }
  }

  const Input* weight_;
  int64_t stride_, width_;
};

// What a part of the vocabulary tells: of each stripe and row, and of each row.
struct Part {
  std::vector<Partial> found;
  WeightedSums sums;
};

template <typename Dtype>
class Pass {
 public:
  Pass(const Tensor& hidden, int64_t n, const Tensor& weight, const std::optional<Tensor>& bias,
       const bool* suppress, float softcap, const Sampling& sampling)
      : found(n), sums(n, weight.size(1)), n_(n), vocab_size_(weight.size(0)), width_(weight.size(1)),
        linear_(hidden, 0, n, weight, bias), embedding_(weight), suppress_(suppress), softcap_(softcap),
        sampling_(sampling) {}

  void run() {
    Ordered<Part> ordered;
    for_each_stripe(vocab_size_, [&] {
      return [&, reached = std::vector<Reached>(n_), workspace = typename Linear<Dtype>::Workspace()](
                 int64_t part, int64_t begin, int64_t end) mutable {
        ordered.put(part, reduce(begin, end, reached, workspace), [&](Part& next) { append(next); });
      };
    }, kPart);
  }

  std::vector<Partial> found;
  WeightedSums sums;

 private:
  Part reduce(
      int64_t begin, int64_t end, std::vector<Reached>& reached, typename Linear<Dtype>::Workspace& workspace) const {
    Part part = {{}, WeightedSums(n_, width_)};
    for (int64_t stripe = begin; stripe < end; stripe += kStripe) {
      const int64_t stripe_end = std::min(stripe + kStripe, end);
      for (int64_t block = 0; block < linear_.blocks(); ++block) {
        const int64_t first = linear_.first_row(block), n = linear_.first_row(block + 1) - first;
        float* logits = linear_(block, stripe, stripe_end, workspace);
        for (int64_t i = 0; i < n; ++i) {
          float* l = logits + i * kRow;
          clean(l, stripe, stripe_end);
          part.found.push_back(
              sampling_.reduce<Float32>(l, first + i, stripe, stripe_end, -kInf, reached[first + i]));
          const Partial& here = part.found.back();
          reached[first + i].take(here);
          const double rate = sampling_.rate(first + i);
          part.sums.raise(first + i, here.max, rate);
          weigh(l, stripe_end - stripe, part.sums.max[first + i], static_cast<float>(rate));
        }
        embedding_.add(logits, stripe, stripe_end, part.sums, first, n);
      }
    }
    return part;
  }

  // Logits that are numbers, capped, and -inf where suppressed or beyond the last.
  void clean(float* l, int64_t begin, int64_t end) const {
    const int64_t n = end - begin;
    for (int64_t i = 0; i < n; i += kLanes) {
      const vfloat v = min(max(load(l + i), splat(-kInf)), splat(FLT_MAX));
      store(l + i, softcap_ > 0 ? softcapped(v, softcap_) : v);
    }
    if (suppress_)
      for (int64_t i = 0; i < n; ++i) l[i] = suppress_[begin + i] ? -kInf : l[i];
  }

  // Logits become weights.
  static void weigh(float* l, int64_t n, float max, float rate) {
    if (max == -kInf) return std::fill(l, l + n, 0.0f);
    for (int64_t i = 0; i < n; i += kLanes) {
      const vfloat gap = (load(l + i) - max) * rate;
      store(l + i, gap > kNothing ? exponential(gap) : splat(0));
    }
  }

  void append(Part& part) {
    for (size_t i = 0; i < part.found.size(); ++i)
      dllm::append(found[i % n_], part.found[i], sampling_.rate(i % n_));
    for (int64_t i = 0; i < n_; ++i) sums.add(i, part.sums, sampling_.rate(i));
  }

  int64_t n_, vocab_size_, width_;
  Linear<Dtype> linear_;
  Embedding<Dtype> embedding_;
  const bool* suppress_;
  float softcap_;
  const Sampling& sampling_;
};

// Rows of `embedding` [R, H]: sum e^((l - max) rate) E_v over sum e^((l - max) rate), 0 where there is none.
template <typename Dtype>
void write(Tensor& embedding, const std::vector<Partial>& found, WeightedSums& sums) {
  auto* out = static_cast<typename Dtype::type*>(embedding.mutable_data_ptr());
  const int64_t width = embedding.size(1);
  for (int64_t i = 0; i < embedding.size(0); ++i, out += embedding.stride(0)) {
    std::fill(out, out + width, typename Dtype::type{});
    if (i >= int64_t(found.size()) || found[i].total == 0) continue;
    const float share = static_cast<float>(1 / found[i].total);
    for (int64_t k = 0; k < sums.width; k += kLanes) store(sums.row(i) + k, load(sums.row(i) + k) * share);
    write_all<Dtype>(out, sums.row(i), width);
  }
}

void linear_expected_embedding(
    Tensor hidden, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> temperature,
    std::optional<Tensor> seeds, std::optional<Tensor> positions, std::optional<Tensor> step,
    std::optional<Tensor> suppress, bool tempered, std::optional<double> softcap, std::optional<Tensor> count,
    Tensor token, Tensor log_prob, Tensor margin, Tensor neg_entropy, Tensor lse, Tensor argmax, Tensor embedding) {
  const int64_t wanted = token.size(0), n = counted(count, wanted);
  const Sampling sampling(temperature, seeds, positions, step, {}, {}, tempered, {});
  const Results out(token, log_prob, margin, neg_entropy, lse, argmax);
  with_dtype_of(hidden, [&](auto dtype) {
    using Dtype = decltype(dtype);
    Pass<Dtype> pass(hidden, n, weight, bias, flags(suppress), static_cast<float>(softcap.value_or(0)), sampling);
    if (n > 0) pass.run();
    for (int64_t i = 0; i < n; ++i) out.write(i, pass.found[i], sampling.rate(i));
    write<Dtype>(embedding, pass.found, pass.sums);
  });
  for (int64_t i = n; i < wanted; ++i) out.write(i, Partial(), 1);
}

}  // namespace
}  // namespace dllm

STABLE_TORCH_LIBRARY_IMPL(dllm_kernels, CPU, m) {
  m.impl("linear_expected_embedding", TORCH_BOX(&dllm::linear_expected_embedding));
}
