// Logits of a few tokens, for the thread that consumes them at once: the product of hidden states with part of a head.
//
// A vector holds one number of each of its rows, 16 where registers are as wide, and each number of the weight, read
// where it lies, meets up to four such vectors. So the weight is not rearranged, which takes a library longer than the
// product where rows are few, and nothing is as large as a row of logits. A logit is a sum of float32 chains along the
// hidden dimension that begin and end at the same places: it has the same bits whatever is computed beside it. Where the
// CPU has matrix tiles, bfloat16 takes them for every number of rows (tiles.h), of the same layout.

#pragma once

#include "common.h"
#include "int8.h"
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

  template <typename Vector>
  static Vector add(Vector a, Vector b) { return a + b; }
};

template <typename Dtype>
struct Factor : Single {};  // other dtypes are converted

template <>
struct Factor<Int8> : Bytes {};

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

  template <typename Vector>
  static Vector add(Vector a, Vector b) { return a + b; }
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
template <typename Factor>              // vectors of rows in a block; of 8 bits, whose products are fast, fewer stay in
constexpr int kVectors = std::is_same_v<typename Factor::type, int8_t> ? 2 : 4;  // the nearest cache
constexpr int64_t kGroup = 48;          // tokens whose products are turned at a time
constexpr int64_t kStripe = 512;        // tokens of which a block of rows has logits at a time: a block of a draw's tiles
constexpr int64_t kRow = kStripe + 16;  // distance of its rows: a power of two would put them into the same cache sets
// Tokens that V vectors meet at a time: more would share cache sets.
template <typename Factor, int V>
constexpr int kTokens = std::min(8, kAccumulators / V);
static_assert(kStripe % kLanes == 0 && kGroup % kLanes == 0);

// The products of V vectors of rows with kTokens<Factor, V> tokens. `ahead`: the weights to be read after these and the next.
template <typename Factor, typename Rows, int V>
void multiply(
    const float* rows, const typename Factor::type* weight, int64_t stride, int64_t steps,
    const typename Factor::type* ahead, typename Rows::type (*out)[V]) {
  constexpr int64_t kLine = 64 / (Factor::kStep * sizeof(typename Factor::type));
  for (int64_t k = 0; k < steps;) {
    typename Rows::type sums[kTokens<Factor, V>][V] = {};
    for (const int64_t end = std::min(k + kChain, steps); k < end; ++k, rows += V * Rows::kStored) {
      if (k % kLine == 0)
        for (int t = 0; t < kTokens<Factor, V>; ++t) __builtin_prefetch(ahead + t * stride + k * Factor::kStep, 0, 2);
      for (int t = 0; t < kTokens<Factor, V>; ++t)
        for (int v = 0; v < V; ++v)
          sums[t][v] = Factor::multiply_add(
              weight + t * stride + k * Factor::kStep, Rows::load(rows + v * Rows::kStored), sums[t][v]);
    }
    for (int t = 0; t < kTokens<Factor, V>; ++t)
      for (int v = 0; v < V; ++v) out[t][v] = k <= kChain ? sums[t][v] : Factor::add(out[t][v], sums[t][v]);
  }
}

// Rows of hidden states [n, H] of the dtype Hidden, and the head: weight [V, H] and bias [V] of the same dtype; or a
// weight of numbers of 8 bits with scale [V] and bias [V] in float32, where rows are quantised and logits not rounded.
template <typename Dtype, typename Hidden = Dtype>
class Linear {
  using Factor = dllm::Factor<Dtype>;
  using Input = typename Dtype::type;
  using Number = typename Factor::type;
  static constexpr bool kQuantised = std::is_same_v<Dtype, Int8>;
  using Bias = std::conditional_t<kQuantised, Float32, Dtype>;
  static constexpr bool kConverted = !std::is_same_v<Input, Number>;
  static constexpr int64_t kLane = sizeof(vfloat) / kLanes;  // bytes
  static_assert(kLane == Factor::kStep * sizeof(Number));

 public:
  // Of the rows from `first` on, `n` are taken.
  Linear(
      const Tensor& hidden, int64_t first, int64_t n, const Tensor& weight, const std::optional<Tensor>& bias,
      const std::optional<Tensor>& scale = std::nullopt)
      : Linear(
            static_cast<const typename Hidden::type*>(hidden.const_data_ptr()) + first * hidden.stride(0),
            hidden.stride(0), n, hidden.size(1), static_cast<const Input*>(weight.const_data_ptr()), weight.stride(0),
            weight.size(0), bias ? static_cast<const typename Bias::type*>(bias->const_data_ptr()) : nullptr,
            scale ? static_cast<const float*>(scale->const_data_ptr()) : nullptr) {}

  // Rows [n, width] and a weight [vocab_size, width], each with its distance from row to row.
  Linear(
      const typename Hidden::type* h, int64_t h_stride, int64_t n, int64_t width, const Input* weight, int64_t stride,
      int64_t vocab_size, const typename Bias::type* bias = nullptr, const float* scale = nullptr)
      : n_(n), width_(width), steps_(steps(width)), stride_(stride), vocab_size_(vocab_size), weight_(weight),
        bias_(bias), scale_(scale), lanes_(lanes(n + exceeds())), vectors_((n + lanes_ - 1) / lanes_),
        ones_(exceeds() && vectors_ <= kVectors<Factor> && n < vectors_ * lanes_),
        rows_((vectors_ * steps_ * lanes_ + kLanes - 1) / kLanes) {
    auto* out = reinterpret_cast<char*>(rows_.data());
    for (int64_t block = 0; block < blocks(); ++block) {  // [steps, rows, kStep]
      const int64_t rows = (vector(block + 1) - vector(block)) * lanes_;
      if constexpr (kQuantised) lay_quantised(h, h_stride, block, rows, out);
      else lay(h, h_stride, block, rows, out);
      out += rows * steps_ * kLane;
    }
  }

  int64_t blocks() const { return (vectors_ + kVectors<Factor> - 1) / kVectors<Factor>; }

  // Blocks are as even as whole vectors make them.
  int64_t first_row(int64_t block) const { return std::min(vector(block) * lanes_, n_); }

  // What a thread writes into.
  struct Workspace {
    std::vector<float> logits;
    std::vector<Number> converted;     // weights
    std::vector<vint> excess;          // of the products of kStripe tokens
    const Input* excess_of = nullptr;  // where the weights of the first of them lie
  };

  // Logits of a block's rows and of tokens `begin` to `end`, which are at most kStripe: [rows, kRow].
  float* operator()(int64_t block, int64_t begin, int64_t end, Workspace& with) const {
    with.logits.resize(std::min<int64_t>(n_, kVectors<Factor> * kLanes) * kRow);
    float* out = with.logits.data();
    each(block, begin, end, with, [&](int64_t row, int64_t token, vfloat logits) {
      store(out + (row - first_row(block)) * kRow + token - begin, logits);
    });
    return out;
  }

  // Calls put(row, token, logits) with the logits of a row and of kLanes tokens from `token` on; those of tokens from
  // `end` on mean nothing.
  template <typename Put>
  void each(int64_t block, int64_t begin, int64_t end, Workspace& with, const Put& put) const {
    if constexpr (exceeds())
      if (!ones_) find_excess(begin, end, with);
    if (lanes_ == 1) return logits<OneRow, 1>(block, begin, end, with, put);
    if constexpr (kFewestLanes < kLanes)
      if (lanes_ < kLanes)
        return lanes_ == 4 ? logits<Lanes<vfloat4>, 1>(block, begin, end, with, put)
                           : logits<Lanes<vfloat8>, 1>(block, begin, end, with, put);
    const int64_t vectors = vector(block + 1) - vector(block);
    if (vectors == 1) return logits<Lanes<vfloat>, 1>(block, begin, end, with, put);
    if (vectors == 2) return logits<Lanes<vfloat>, 2>(block, begin, end, with, put);
    if constexpr (kVectors<Factor> > 2)
      vectors == 3 ? logits<Lanes<vfloat>, 3>(block, begin, end, with, put)
                   : logits<Lanes<vfloat>, 4>(block, begin, end, with, put);
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

  // Whether products must be lessened.
  static constexpr bool exceeds() {
    if constexpr (kQuantised) return Factor::kExcess != 0;
    return false;
  }

  float row_scale(int64_t row) const { return reinterpret_cast<const float*>(row_scales_.data())[row]; }

  int64_t length() const { return steps_ * Factor::kStep; }  // of a row with its zeros

  void lay(const Input* hidden, int64_t stride, int64_t block, int64_t rows, char* out) const {
    std::vector<Number> row(length());
    for (int64_t i = 0; i < std::min(rows, n_ - first_row(block)); ++i) {
      convert(hidden + (first_row(block) + i) * stride, row.data());
      for (int64_t k = 0; k < steps_; ++k) std::memcpy(out + (k * rows + i) * kLane, &row[k * Factor::kStep], kLane);
    }
  }

  // Weights behind a row's end are zeros, whatever the row has there.
  void lay_quantised(const typename Hidden::type* hidden, int64_t stride, int64_t block, int64_t rows, char* out) {
    for (int64_t first = first_row(block); first < first_row(block + 1); first += kLanes, out += lanes_ * kLane)
      row_scales_.push_back(quantise<Hidden>(
          hidden + first * stride, stride, std::min<int64_t>(kLanes, n_ - first), width_,
          [&](int64_t step, vfloat numbers) {
            char* to = out + step * rows * kLane;
            if (lanes_ == kLanes) std::memcpy(to, &numbers, sizeof numbers);
            else std::memcpy(to, &numbers, lanes_ * kLane);
          }));
    if (ones_)
      for (int64_t step = 0; step < steps_; ++step)
        std::memset(reinterpret_cast<char*>(rows_.data()) + (step * rows + n_) * kLane, 1, kLane);
  }

  // Of a stripe's tokens, unless it is there from another block of rows.
  void find_excess(int64_t begin, int64_t end, Workspace& with) const {
    if (with.excess_of == weight_ + begin * stride_) return;
    with.excess_of = weight_ + begin * stride_;
    with.excess.resize(kStripe / kLanes);
    for (int64_t first = begin; first < end; first += kLanes) {
      std::array<vfloat, kLanes> square = {};
      for (int64_t t = 0; t < std::min<int64_t>(kLanes, end - first); ++t)
        square[t] = as_float(partial_sums(weight_ + (first + t) * stride_, width_));
      transpose(square);
      vint sums = {};
      for (const vfloat parts : square) sums += as_int(parts);
      with.excess[(first - begin) / kLanes] = Factor::kExcess * sums;
    }
  }

  // The first vector of a block.
  int64_t vector(int64_t block) const { return vectors_ * block / blocks(); }

  // A row of numbers as they are multiplied, with zeros up to whole steps.
  void convert(const Input* in, Number* out) const {
    if constexpr (kConverted && !kQuantised) {
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

  template <typename Rows, int V, typename Put>
  void logits(int64_t block, int64_t begin, int64_t end, Workspace& with, const Put& put) const {
    const float* rows = reinterpret_cast<const float*>(rows_.data()) + vector(block) * steps_ * lanes_;
    typename Rows::type products[kGroup][V];
    const int64_t together = tiles() ? kTileTokens : kGroup;
    for (int64_t group = begin; group < end; group += together) {
      const int64_t group_end = std::min(group + together, end);
      multiply_group<Rows>(rows, group, group_end, with.converted, products);
      const vint* excess = with.excess.data() + (group - begin) / kLanes;
      turn_group(products, group, group_end, first_row(block), first_row(block + 1), excess, put);
    }
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
    static_assert(kGroup % kTokens<Factor, V> == 0);
    for (int64_t first = begin; first < end; first += kTokens<Factor, V>) {
      const auto [w, stride, ahead] = weights<kTokens<Factor, V>>(first, end, converted);
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

  // Tokens into lanes, with scales and bias.
  template <typename Vector, int V, typename Put>
  void turn_group(
      const Vector (&products)[kGroup][V], int64_t begin, int64_t end, int64_t row, int64_t rows_end, const vint* excess,
      const Put& put) const {
    for (int64_t first = begin; first < end; first += kLanes) {
      const vfloat offsets = of_tokens<Bias>(bias_, first, end);
      [[maybe_unused]] const vfloat scales = kQuantised ? of_tokens<Float32>(scale_, first, end) : splat(1);
      vint beyond = {};
      if constexpr (exceeds())
        beyond = ones_ ? Factor::kExcess * sums_of_weights(&products[first - begin]) : excess[(first - begin) / kLanes];
      for (int64_t v = 0, at = row; v < V && at < rows_end; ++v, at += kLanes) {
        std::array<vfloat, kLanes> square = {};
        for (int i = 0; i < kLanes; ++i) std::memcpy(&square[i], &products[first - begin + i][v], sizeof(Vector));
        transpose(square);
        for (int64_t i = 0; i < std::min<int64_t>(kLanes, rows_end - at); ++i) {
          if constexpr (kQuantised) {  // (s_row dot) s_token + bias
            const vfloat dot = __builtin_convertvector(as_int(square[i]) - beyond, vfloat);
            put(at + i, first, dot * splat(row_scale(at + i)) * scales + offsets);
          } else {  // rounded as a library's product is
            put(at + i, first, rounded<Dtype>(square[i] + offsets));
          }
        }
      }
    }
  }

  // Of kLanes tokens: the products of the row of ones.
  template <typename Vector, int V>
  vint sums_of_weights(const Vector (*products)[V]) const {
    vint sums;
    for (int i = 0; i < kLanes; ++i) sums[i] = reinterpret_cast<const int32_t*>(&products[i][V - 1])[n_ % lanes_];
    return sums;
  }

  // Numbers of tokens `first` to `end`, kLanes at most; zeros where there are none.
  template <typename Numbers>
  vfloat of_tokens(const typename Numbers::type* all, int64_t first, int64_t end) const {
    if (!all) return splat(0);
    typename Numbers::type numbers[kLanes] = {};
    std::copy(all + first, all + std::min<int64_t>(first + kLanes, end), numbers);
    return Numbers::load(numbers);
  }

  int64_t n_, width_, steps_, stride_, vocab_size_;
  const Input* weight_;
  const typename Bias::type* bias_;
  const float* scale_;
  int64_t lanes_, vectors_;  // `lanes_` of rows are stored of a vector
  bool ones_;  // whether a row of ones lies behind the rows, which are one block: its products are sums of weights
  std::vector<vfloat> rows_;
  std::vector<vfloat> row_scales_;
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
