// Top-k and top-p without a sort. Rule: dllm_kernels/truncation_floor/api.py; method: triton.py beside it.
//
// A row is copied to float32 once; passes over the copy, which stays in cache, close in on the floor.

#include "logits.h"

#include <vector>

namespace dllm {
namespace {

struct Interval {
  float low, high;
};

// The int32 that sorts as the float x does, and back; -0 ties with 0.
int32_t order(float x) {
  x += 0.0f;
  int32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits < 0 ? bits ^ INT32_MAX : bits;
}

float number(int32_t order) {
  const int32_t bits = order < 0 ? order ^ INT32_MAX : order;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

float after(float x, int32_t steps) { return number(order(x) + steps); }

float halfway(float low, float high) {
  const int32_t a = order(low), b = order(high);
  return number((a >> 1) + (b >> 1) + (a & b & 1));
}

// A row as float32 in whole tiles, and what each logit weighs.
struct Row {
  std::vector<float> x, weight;

  // The smallest and the largest logit above -inf; what is not there is +inf and -inf.
  Interval ends() const {
    vfloat low = splat(kInf), high = splat(-kInf);
    for (size_t i = 0; i < x.size(); i += kLanes) {
      const vfloat v = load(&x[i]);
      low = min(v > -kInf ? v : splat(kInf), low);
      high = max(v, high);
    }
    return {-largest(-low), largest(high)};
  }

  double weigh(float max, float rate) {
    double total = 0;
    for (size_t tile = 0; tile < x.size(); tile += kTile) {
      vfloat here = splat(0.0f);
      for (size_t i = tile; i < tile + kTile; i += kLanes) {
        const vfloat w = exponential((load(&x[i]) - max) * rate);
        store(&weight[i], w);
        here += w;
      }
      total += sum(here);
    }
    return total;
  }

  void count() { std::fill(weight.begin(), weight.end(), 1.0f); }

  // The smallest logit of the interval above which the weight is at most `bound`; its upper end is such a logit. Sums
  // are formed in the same order for every candidate, hence monotone: no two candidates contradict each other.
  float search(Interval in, double bound) const {
    while (in.low < in.high) {
      const float candidates[kCandidates] = {
          in.low * (2.0f / 3) + in.high * (1.0f / 3), in.low * (1.0f / 3) + in.high * (2.0f / 3),
          halfway(in.low, in.high)};
      double above[kCandidates] = {};
      const Interval snug = pass(in, candidates, above);
      in = {std::max(in.low, snug.low), std::min(in.high, snug.high)};
      for (int c = 0; c < kCandidates; ++c) {
        if (above[c] <= bound) in.high = std::min(in.high, candidates[c]);
        else in.low = std::max(in.low, after(candidates[c], 1));
      }
    }
    return in.high;
  }

 private:
  static constexpr int kCandidates = 3;

  // The weight above each candidate; returns the smallest and the largest logit of the interval.
  Interval pass(Interval in, const float (&candidates)[kCandidates], double (&above)[kCandidates]) const {
    vfloat low = splat(kInf), high = splat(-kInf);
    for (size_t tile = 0; tile < x.size(); tile += kTile) {
      vfloat here[kCandidates] = {};
      for (size_t i = tile; i < tile + kTile; i += kLanes) {
        const vfloat v = load(&x[i]), w = load(&weight[i]);
        for (int c = 0; c < kCandidates; ++c) here[c] += v > candidates[c] ? w : splat(0.0f);
        low = min(v >= in.low ? v : splat(kInf), low);
        high = max(v <= in.high ? v : splat(-kInf), high);
      }
      for (int c = 0; c < kCandidates; ++c) above[c] += sum(here[c]);
    }
    return {-largest(-low), largest(high)};
  }
};

struct Arguments {
  Tensor logits;
  PerRow<float> temperature;
  std::optional<int64_t> top_k;
  std::optional<double> top_p;
  const bool* suppress;
};

template <typename Dtype>
float floor_of(const Arguments& in, int64_t r, Row& row) {
  const int64_t vocab_size = in.logits.size(1);
  const auto* logits = static_cast<const typename Dtype::type*>(in.logits.const_data_ptr()) + r * in.logits.stride(0);
  for (int64_t tile = 0; tile < vocab_size; tile += kTile)
    load_tile<Dtype>(
        &row.x[tile], logits + tile, in.suppress ? in.suppress + tile : nullptr, std::min(kTile, vocab_size - tile));
  Interval ends = row.ends();
  float floor = ends.high;
  if (floor == -kInf) return floor;
  if (in.top_p) {
    const double rate = rate_of(in.temperature, true, r);
    const double total = row.weigh(ends.high, static_cast<float>(rate));
    // l < max - T ln(V / (1 - p)) weighs less than 1 - p altogether, and 1 - p is at least 2^-24; 1 to spare
    const double lowest = ends.high - (std::log(double(vocab_size)) + 24 * std::log(2.0) + 1) / rate;
    const float low = after(static_cast<float>(std::max<double>(lowest, -FLT_MAX)), -1);
    floor = row.search({std::max(ends.low, low), ends.high}, static_cast<float>(*in.top_p) * total);
    ends.low = floor;
  }
  if (in.top_k) {
    row.count();
    floor = row.search(ends, double(*in.top_k - 1));
  }
  return floor;
}

float floor_of(const Arguments& in, int64_t r, Row& row) {
  using torch::headeronly::ScalarType;
  switch (in.logits.scalar_type()) {
    case ScalarType::Float: return floor_of<Float32>(in, r, row);
    case ScalarType::BFloat16: return floor_of<BFloat16>(in, r, row);
    case ScalarType::Half: return floor_of<Float16>(in, r, row);
    default: STD_TORCH_CHECK(false, "logits must be float32, bfloat16 or float16");
  }
}

void truncation_floor(
    Tensor logits, std::optional<Tensor> temperature, std::optional<int64_t> top_k, std::optional<double> top_p,
    std::optional<Tensor> suppress, std::optional<Tensor> rows, std::optional<Tensor> count, Tensor floor) {
  const Arguments in = {logits, PerRow<float>(temperature), top_k, top_p, flags(suppress)};
  const PerRow<int64_t> chosen(rows);
  const int64_t wanted = floor.size(0), n = counted(count, wanted), tiles = (logits.size(1) + kTile - 1) / kTile;
  auto* out = static_cast<float*>(floor.mutable_data_ptr());
  std::fill(out, out + wanted, -kInf);
  if (!top_k && !top_p) return;
  torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    Row row = {std::vector<float>(tiles * kTile), std::vector<float>(tiles * kTile)};
    for (int64_t i = begin; i < end; ++i) {
      const int64_t r = chosen ? chosen[i] : i;
      if (r >= 0 && r < logits.size(0)) out[i] = floor_of(in, r, row);
    }
  });
}

}  // namespace
}  // namespace dllm

STABLE_TORCH_LIBRARY_IMPL(dllm_kernels, CPU, m) { m.impl("truncation_floor", TORCH_BOX(&dllm::truncation_floor)); }
