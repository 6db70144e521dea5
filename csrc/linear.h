// Logits of a few tokens, for the thread that consumes them at once: the product of hidden states with part of a head.
//
// A vector holds one number of each of its rows, 16 where registers are as wide, and each number of the weight, read
// where it lies, meets up to four such vectors. So the weight is not rearranged, which takes a library longer than the
// product where rows are few, and nothing is as large as a row of logits. A logit is a sum of float32 chains along the
// hidden dimension that begin and end at the same places: it has the same bits whatever is computed beside it. Where the
// CPU has matrix tiles, bfloat16 takes them for every number of rows (tiles.h), of the same layout.

#pragma once

#include "common.h"
#include "tiles.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <vector>

namespace dllm {

// What is multiplied at a time: kStep numbers of a row with as many of a token, in each lane.
struct Single {
  using type = float;
  static constexpr int kStep = 1;

  template <typename Vector>
  static Vector multiply_add(const float* w, Vector h, Vector sum) {
    return dllm::multiply_add(splat<Vector>(*w), h, sum);
  }
};

template <typename Dtype>
struct Factor : Single {};  // other dtypes are converted

#if defined(__AVX512BF16__)
template <>
struct Factor<BFloat16> {
  using type = uint16_t;
  static constexpr int kStep = 2;

  template <typename Vector>
  static Vector multiply_add(const uint16_t* w, Vector h, Vector sum) {
    int32_t pair;
    std::memcpy(&pair, w, sizeof pair);
    if constexpr (sizeof(Vector) == 64) return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)h);
    else if constexpr (sizeof(Vector) == 32)
      return _mm256_dpbf16_ps(sum, (__m256bh)_mm256_set1_epi32(pair), (__m256bh)h);
    else return _mm_dpbf16_ps(sum, (__m128bh)_mm_set1_epi32(pair), (__m128bh)h);
  }
};
#endif

// Fewer rows than lanes take narrower vectors, whose additions cost less and are the same.
#if defined(__AVX2__) && defined(__FMA__)
constexpr int kFewestLanes = 4;
using Narrowest = vfloat4;
#else
constexpr int kFewestLanes = kLanes;
using Narrowest = vfloat;
#endif

// How rows lie in memory: a number of each lane, or of a single row, which every lane gets.
template <typename Vector>
struct Lanes {
  static constexpr int kStored = sizeof(Vector) / sizeof(float);
  using type = Vector;
  static Vector load(const float* rows) { return dllm::load<Vector>(rows); }
};

struct OneRow {
  static constexpr int kStored = 1;
  using type = Narrowest;
  static Narrowest load(const float* row) {
    Narrowest copies;  // of bits, which need not be those of a float
    for (size_t i = 0; i < sizeof copies / sizeof *row; ++i) std::memcpy(reinterpret_cast<float*>(&copies) + i, row, 4);
    return copies;
  }
};

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kAccumulators = 24;  // of 32 registers
#else
constexpr int kAccumulators = 12;  // of 16
#endif
constexpr int64_t kChain = 128;         // steps of a sum; such sums are added up, or errors would grow with the width
constexpr int kVectors = 4;             // of rows in a block
constexpr int64_t kGroup = 48;          // tokens whose products are turned at a time
constexpr int64_t kStripe = 512;        // tokens of which a block of rows has logits at a time: a block of a draw's tiles
constexpr int64_t kRow = kStripe + 16;  // distance of its rows: a power of two would put them into the same cache sets
template <int V>
constexpr int kTokens = std::min(8, kAccumulators / V);  // that V vectors meet at a time: more would share cache sets
static_assert(kStripe % kLanes == 0 && kGroup % kLanes == 0);

// The products of V vectors of rows with kTokens<V> tokens. `ahead`: the weights to be read after these and the next.
template <typename Factor, typename Rows, int V>
void multiply(
    const float* rows, const typename Factor::type* weight, int64_t stride, int64_t steps,
    const typename Factor::type* ahead, typename Rows::type (*out)[V]) {
  constexpr int64_t kLine = 64 / (Factor::kStep * sizeof(typename Factor::type));
  for (int64_t k = 0; k < steps;) {
    typename Rows::type sums[kTokens<V>][V] = {};
    for (const int64_t end = std::min(k + kChain, steps); k < end; ++k, rows += V * Rows::kStored) {
      if (k % kLine == 0)
        for (int t = 0; t < kTokens<V>; ++t) __builtin_prefetch(ahead + t * stride + k * Factor::kStep, 0, 2);
      for (int t = 0; t < kTokens<V>; ++t)
        for (int v = 0; v < V; ++v)
          sums[t][v] = Factor::multiply_add(
              weight + t * stride + k * Factor::kStep, Rows::load(rows + v * Rows::kStored), sums[t][v]);
    }
    for (int t = 0; t < kTokens<V>; ++t)
      for (int v = 0; v < V; ++v) out[t][v] = k <= kChain ? sums[t][v] : out[t][v] + sums[t][v];
  }
}

// Rows become columns: each of log2(kLanes) rounds zips the upper half of the vectors with the lower.
inline void transpose(std::array<vfloat, kLanes>& m) {
  for (int round = 1; round < kLanes; round *= 2) {
    std::array<vfloat, kLanes> zipped;
    for (int i = 0; i < kLanes / 2; ++i) {
      zipped[2 * i] = zip<false>(m[i], m[i + kLanes / 2]);
      zipped[2 * i + 1] = zip<true>(m[i], m[i + kLanes / 2]);
    }
    m = zipped;
  }
}

// hidden [n, H] and the head, weight [V, H] and bias [V], of the same dtype.
template <typename Dtype>
class Linear {
  using Factor = dllm::Factor<Dtype>;
  using Input = typename Dtype::type;
  using Number = typename Factor::type;
  static constexpr bool kConverted = !std::is_same_v<Input, Number>;
  static constexpr int64_t kLane = sizeof(vfloat) / kLanes;  // bytes
  static_assert(kLane == Factor::kStep * sizeof(Number));

 public:
  Linear(const Tensor& hidden, int64_t n, const Tensor& weight, const std::optional<Tensor>& bias)
      : n_(n), width_(hidden.size(1)), steps_(steps(width_)),
        stride_(weight.stride(0)), vocab_size_(weight.size(0)),
        weight_(static_cast<const Input*>(weight.const_data_ptr())),
        bias_(bias ? static_cast<const Input*>(bias->const_data_ptr()) : nullptr),
        lanes_(lanes(n)), vectors_((n + lanes_ - 1) / lanes_),
        rows_((vectors_ * steps_ * lanes_ + kLanes - 1) / kLanes) {
    const auto* h = static_cast<const Input*>(hidden.const_data_ptr());
    std::vector<Number> row(length());
    auto* out = reinterpret_cast<char*>(rows_.data());
    for (int64_t block = 0; block < blocks(); ++block) {  // [steps, rows, kStep]
      const int64_t rows = (vector(block + 1) - vector(block)) * lanes_;
      for (int64_t i = 0; i < std::min(rows, n - first_row(block)); ++i) {
        convert(h + (first_row(block) + i) * hidden.stride(0), row.data());
        for (int64_t k = 0; k < steps_; ++k)
          std::memcpy(out + (k * rows + i) * kLane, &row[k * Factor::kStep], kLane);
      }
      out += rows * steps_ * kLane;
    }
  }

  int64_t blocks() const { return (vectors_ + kVectors - 1) / kVectors; }

  // Blocks are as even as whole vectors make them.
  int64_t first_row(int64_t block) const { return std::min(vector(block) * lanes_, n_); }

  // What a thread writes into.
  struct Workspace {
    std::vector<float> logits;
    std::vector<Number> converted;  // weights

    explicit Workspace(const Linear& linear) : logits(std::min<int64_t>(linear.n_, kVectors * kLanes) * kRow) {}
  };

  // Logits of a block's rows and of tokens `begin` to `end`, which are at most kStripe: [rows, kRow].
  float* operator()(int64_t block, int64_t begin, int64_t end, Workspace& to) const {
    if (lanes_ == 1) return logits<OneRow, 1>(block, begin, end, to);
    if constexpr (kFewestLanes < kLanes)
      if (lanes_ < kLanes)
        return lanes_ == 4 ? logits<Lanes<vfloat4>, 1>(block, begin, end, to)
                           : logits<Lanes<vfloat8>, 1>(block, begin, end, to);
    switch (vector(block + 1) - vector(block)) {
      case 1: return logits<Lanes<vfloat>, 1>(block, begin, end, to);
      case 2: return logits<Lanes<vfloat>, 2>(block, begin, end, to);
      case 3: return logits<Lanes<vfloat>, 3>(block, begin, end, to);
      default: return logits<Lanes<vfloat>, 4>(block, begin, end, to);
    }
  }

 private:
#if defined(DLLM_TILES)
  static bool tiles() { return std::is_same_v<Dtype, BFloat16> && tiles_allowed(); }
#else
  static constexpr bool tiles() { return false; }
#endif

  static int64_t steps(int64_t width) {
    const int64_t together = Factor::kStep * (tiles() ? kTileSteps : 1);
    return (width + together - 1) / together * (together / Factor::kStep);
  }

  static int64_t lanes(int64_t n) {
    if (tiles()) return kLanes;
    if (n == 1) return 1;
    int64_t lanes = kFewestLanes;
    while (lanes < n && lanes < kLanes) lanes *= 2;
    return lanes;
  }

  int64_t length() const { return steps_ * Factor::kStep; }  // of a row with its zeros

  // The first vector of a block.
  int64_t vector(int64_t block) const { return vectors_ * block / blocks(); }

  // A row of numbers as they are multiplied, with zeros up to whole steps.
  void convert(const Input* in, Number* out) const {
    if constexpr (kConverted) {
      Input last[kLanes] = {};
      const int64_t whole = width_ / kLanes * kLanes;
      for (int64_t k = 0; k < whole; k += kLanes) store(out + k, Dtype::load(in + k));
      std::copy(in + whole, in + width_, last);
      const vfloat rest = Dtype::load(last);
      for (int64_t k = whole; k < width_; ++k) out[k] = rest[k - whole];
    } else {
      std::copy(in, in + width_, out);
      std::fill(out + width_, out + length(), Number{});
    }
  }

  template <typename Rows, int V>
  float* logits(int64_t block, int64_t begin, int64_t end, Workspace& to) const {
    const float* rows = reinterpret_cast<const float*>(rows_.data()) + vector(block) * steps_ * lanes_;
    typename Rows::type products[kGroup][V];
    const int64_t together = tiles() ? kTileTokens : kGroup;
    for (int64_t group = begin; group < end; group += together) {
      const int64_t group_end = std::min(group + together, end);
      multiply_group<Rows>(rows, group, group_end, to.converted, products);
      turn_group(products, group, group_end, first_row(block + 1) - first_row(block), &to.logits[group - begin]);
    }
    return to.logits.data();
  }

  template <typename Rows, int V>
  void multiply_group(
      const float* rows, int64_t begin, int64_t end, std::vector<Number>& converted,
      typename Rows::type (&out)[kGroup][V]) const {
#if defined(DLLM_TILES)
    if constexpr (std::is_same_v<Dtype, BFloat16> && std::is_same_v<Rows, Lanes<vfloat>>)
      if (tiles()) {
        const auto [w, stride, ahead] = weights<kTileTokens>(begin, end, converted);
        return multiply_tiles<V>(rows, w, stride, steps_, ahead, out);
      }
#endif
    static_assert(kGroup % kTokens<V> == 0);
    for (int64_t first = begin; first < end; first += kTokens<V>) {
      const auto [w, stride, ahead] = weights<kTokens<V>>(first, end, converted);
      multiply<Factor, Rows>(rows, w, stride, steps_, ahead, out + (first - begin));
    }
  }

  struct Weights {
    const Number* first;
    int64_t stride;
    const Number* ahead;  // what will be read after these and the next
  };

  // Those of kTogether tokens, where they lie (also beyond `end`, whose products nobody reads) or, if they must be
  // converted or the vocabulary ends, in `converted`.
  template <int64_t kTogether>
  Weights weights(int64_t first, int64_t end, std::vector<Number>& converted) const {
    const int64_t tokens = std::min(kTogether, end - first);
    if (!kConverted && length() == width_ && first + kTogether <= vocab_size_) {
      const Number* w = reinterpret_cast<const Number*>(weight_) + first * stride_;
      return {w, stride_, w + std::min(2 * kTogether, vocab_size_ - kTogether - first) * stride_};
    }
    converted.resize(kTogether * length());
    for (int64_t t = 0; t < tokens; ++t) convert(weight_ + (first + t) * stride_, &converted[t * length()]);
    return {converted.data(), length(), converted.data()};
  }

  // Tokens into lanes, with the bias, rounded as a library's product is.
  template <typename Vector, int V>
  void turn_group(const Vector (&products)[kGroup][V], int64_t begin, int64_t end, int64_t rows, float* out) const {
    for (int64_t first = 0; first < end - begin; first += kLanes) {
      const vfloat offsets = bias(begin + first, end);
      for (int v = 0; v < V; ++v) {
        std::array<vfloat, kLanes> square = {};
        for (int i = 0; i < kLanes; ++i) std::memcpy(&square[i], &products[first + i][v], sizeof(Vector));
        transpose(square);
        for (int64_t i = 0; i < std::min<int64_t>(kLanes, rows - v * kLanes); ++i)
          store(out + (v * kLanes + i) * kRow + first, rounded<Dtype>(square[i] + offsets));
      }
    }
  }

  vfloat bias(int64_t first, int64_t end) const {
    if (!bias_) return splat(0);
    Input numbers[kLanes] = {};
    std::copy(bias_ + first, bias_ + std::min<int64_t>(first + kLanes, end), numbers);
    return Dtype::load(numbers);
  }

  int64_t n_, width_, steps_, stride_, vocab_size_;
  const Input *weight_, *bias_;
  int64_t lanes_, vectors_;  // `lanes_` of rows are stored of a vector
  std::vector<vfloat> rows_;
};

// Every thread takes the next stripe of tokens until there is none, and calls with (stripe, begin, end) what `start`
// returned to it.
template <typename Start>
void for_each_stripe(int64_t vocab_size, const Start& start, int64_t width = kStripe) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, torch::stable::get_num_threads(), 1, [&](int64_t, int64_t) {
    [[maybe_unused]] const TileScope scope;
    auto take = start();
    for (int64_t stripe; (stripe = next++) * width < vocab_size;)
      take(stripe, stripe * width, std::min((stripe + 1) * width, vocab_size));
  });
}

}  // namespace dllm
