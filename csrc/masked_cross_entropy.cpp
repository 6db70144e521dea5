// Weighted cross-entropy of rows of logits and its gradient. Formulae: dllm_kernels/masked_cross_entropy/api.py.
//
// A row comes from memory once: a first pass finds its largest logit and the sum of exponentials, tile by tile, a second
// one over the row, which is in cache by then, writes the gradient, over the logits themselves where that is asked for.
// Rows with weight 0 are not read. A row belongs to one thread, so its result does not depend on what else is there.
//
// The kernel clamps no NaN away: a NaN or +inf among the logits, no finite logit at all, a label outside the vocabulary
// or a weight that is negative or not finite make the row's loss and gradient NaN.

#include "common.h"

#include <algorithm>

namespace dllm {
namespace {

constexpr int64_t kTile = 1024;

struct Options {
  double label_smoothing, z_loss;
  float softcap;  // 0: none
};

// What one pass over the tokens of a row tells. The target is kept apart: where it is nearly certain, its exponential
// would swallow the others, and they alone decide the loss, log(1 + others), and the slope p - 1.
struct Row {
  float max = -kInf;
  float target = -kInf;
  double others = 0;  // sum e^(l - max), without the target
  double sum = 0;     // sum l, with label smoothing only
  bool is_number = true;
};

inline vfloat capped(vfloat x, float softcap) {
  return softcap > 0 ? softcap * hyperbolic_tangent(x / softcap).value : x;
}

inline vfloat slope_of_cap(vfloat x, float softcap) {
  return softcap > 0 ? hyperbolic_tangent(x / softcap).slope : splat(1);
}

// A tile as float32, after the softcap, and -inf past its end.
template <typename Dtype>
void load_tile(float* l, const typename Dtype::type* logits, int64_t n, float softcap) {
  typename Dtype::type buffer[kTile];
  if (n < kTile) {
    std::memcpy(buffer, logits, n * sizeof buffer[0]);
    std::memset(buffer + n, 0, (kTile - n) * sizeof buffer[0]);
    logits = buffer;
  }
  for (int64_t i = 0; i < kTile; i += kLanes) store(l + i, capped(Dtype::load(logits + i), softcap));
  std::fill(l + n, l + kTile, -kInf);
}

// The largest number of a tile; NaN where there is a NaN.
float maximum(const float* l) {
  vfloat highest = splat(-kInf);
  vint nan = {};
  for (int64_t i = 0; i < kTile; i += kLanes) {
    const vfloat v = load(l + i);
    highest = max(v, highest);
    nan |= v != v;
  }
  return any(nan) ? std::numeric_limits<float>::quiet_NaN() : largest(highest);
}

// e^gap for gap <= 0, and nothing at all where there is no logit.
inline vfloat share(vfloat gap) { return gap > -87.0f ? exponential(gap) : vfloat{}; }

float sum_of_exponentials(const float* l, float max_logit) {
  constexpr int kSums = 64 / kLanes;  // short chains of float32 additions, the same length on every machine
  vfloat total[kSums] = {};
  for (int64_t i = 0; i < kTile; i += kSums * kLanes)
    for (int s = 0; s < kSums; ++s) total[s] += share(load(l + i + s * kLanes) - max_logit);
  float sums = 0;
  for (int s = 0; s < kSums; ++s) sums += sum(total[s]);
  return sums;
}

double sum_of_logits(const float* l, int64_t n) {
  double total[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int s = 0; s < 8; ++s) total[s] += l[i + s];
  for (; i < n; ++i) total[0] += l[i];
  return ((total[0] + total[1]) + (total[2] + total[3])) + ((total[4] + total[5]) + (total[6] + total[7]));
}

template <typename Dtype>
Row measure(const typename Dtype::type* logits, int64_t vocab_size, int64_t target, const Options& options) {
  Row row;
  alignas(64) float l[kTile];
  for (int64_t tile = 0; tile < vocab_size; tile += kTile) {
    const int64_t n = std::min(kTile, vocab_size - tile);
    load_tile<Dtype>(l, logits + tile, n, options.softcap);
    const float highest = maximum(l);
    row.is_number &= highest < kInf;  // neither NaN nor +inf
    if (!row.is_number) return row;
    if (options.label_smoothing > 0) row.sum += sum_of_logits(l, n);
    if (highest > row.max) {
      row.others *= std::exp(double(row.max) - highest);
      row.max = highest;
    }
    if (target >= tile && target < tile + n) {
      row.target = l[target - tile];
      l[target - tile] = -kInf;
    }
    if (row.max > -kInf) row.others += sum_of_exponentials(l, row.max);
  }
  row.is_number = row.max > -kInf;
  return row;
}

// gradient = a e^(l - max) - b, times dl/dx under a softcap
template <typename Dtype>
void write_gradient(
    const typename Dtype::type* logits, typename Dtype::type* gradient, int64_t vocab_size, float max_logit, float a,
    float b, float softcap) {
  alignas(64) float l[kTile];
  typename Dtype::type buffer[kTile];
  for (int64_t tile = 0; tile < vocab_size; tile += kTile) {
    const int64_t n = std::min(kTile, vocab_size - tile);
    load_tile<Dtype>(l, logits + tile, n, 0);
    typename Dtype::type* out = n == kTile ? gradient + tile : buffer;
    for (int64_t i = 0; i < kTile; i += kLanes) {
      const vfloat x = load(l + i), gap = capped(x, softcap) - max_logit;
      Dtype::write(out + i, (a * share(gap) - b) * slope_of_cap(x, softcap));
    }
    if (n < kTile) std::memcpy(gradient + tile, buffer, n * sizeof buffer[0]);
  }
}

// Returns the loss of a row with a weight above 0; writes its gradient times `scale`, unless `gradient` is null.
template <typename Dtype>
float lose(
    const typename Dtype::type* logits, typename Dtype::type* gradient, int64_t vocab_size, int64_t target, float scale,
    const Options& options) {
  const Row row = measure<Dtype>(logits, vocab_size, target, options);
  if (!row.is_number) {
    if (gradient) std::fill(gradient, gradient + vocab_size, Dtype::kNaN);
    return std::numeric_limits<float>::quiet_NaN();
  }
  const double smoothing = options.label_smoothing, uniform = smoothing / vocab_size;
  const double total = row.others + std::exp(double(row.target) - row.max);
  const double log_total = std::log(total), lse = row.max + log_total;
  double loss = (double(row.max) - row.target) + log_total;
  if (smoothing > 0) loss = (1 - smoothing) * loss + smoothing * (lse - row.sum / vocab_size);
  if (options.z_loss > 0) loss += options.z_loss * lse * lse;

  if (gradient) {
    const double push = 1 + 2 * options.z_loss * lse, p_minus_1 = -row.others / total;
    typename Dtype::type buffer[kLanes] = {logits[target]};
    const float slope = slope_of_cap(Dtype::load(buffer), options.softcap)[0];
    Dtype::write(buffer, splat(float(scale * slope * (push * p_minus_1 + (push - 1) + smoothing - uniform))));
    write_gradient<Dtype>(
        logits, gradient, vocab_size, row.max, float(scale * push / total), float(scale * uniform), options.softcap);
    gradient[target] = buffer[0];
  }
  return static_cast<float>(loss);
}

template <typename Dtype>
void run(
    const Tensor& logits, const Tensor& targets, const Tensor& row_weight, const Tensor& row_scale,
    const Options& options, Tensor& nll, std::optional<Tensor>& gradient) {
  using type = typename Dtype::type;
  const int64_t vocab_size = logits.size(1), stride = logits.stride(0);
  const auto* all_logits = static_cast<const type*>(logits.const_data_ptr());
  auto* all_gradients = gradient ? static_cast<type*>(gradient->mutable_data_ptr()) : nullptr;
  const int64_t gradient_stride = gradient ? gradient->stride(0) : 0;
  auto* losses = static_cast<float*>(nll.mutable_data_ptr());
  const PerRow<int64_t> target_of(targets);
  const PerRow<float> weight_of(row_weight), scale_of(row_scale);

  torch::stable::parallel_for(0, logits.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float weight = weight_of[r];
      const int64_t target = target_of[r];
      type* row_gradient = gradient ? all_gradients + r * gradient_stride : nullptr;
      if (weight == 0) {
        losses[r] = 0;
        if (gradient) std::fill(row_gradient, row_gradient + vocab_size, type{});
      } else if (weight > 0 && weight < kInf && target >= 0 && target < vocab_size) {
        losses[r] = lose<Dtype>(all_logits + r * stride, row_gradient, vocab_size, target, scale_of[r], options);
      } else {
        losses[r] = std::numeric_limits<float>::quiet_NaN();
        if (gradient) std::fill(row_gradient, row_gradient + vocab_size, Dtype::kNaN);
      }
    }
  });
}

void masked_cross_entropy(
    Tensor logits, Tensor targets, Tensor row_weight, Tensor row_scale, double label_smoothing, double z_loss,
    std::optional<double> softcap, Tensor nll, std::optional<Tensor> gradient) {
  const Options options = {label_smoothing, z_loss, static_cast<float>(softcap.value_or(0))};
  using torch::headeronly::ScalarType;
  switch (logits.scalar_type()) {
    case ScalarType::Float: run<Float32>(logits, targets, row_weight, row_scale, options, nll, gradient); break;
    case ScalarType::BFloat16: run<BFloat16>(logits, targets, row_weight, row_scale, options, nll, gradient); break;
    case ScalarType::Half: run<Float16>(logits, targets, row_weight, row_scale, options, nll, gradient); break;
    default: STD_TORCH_CHECK(false, "logits must be float32, bfloat16 or float16");
  }
}

template <typename Dtype>
void scale_all(Tensor& x, const PerRow<float>& scale) {
  using type = typename Dtype::type;
  const int64_t columns = x.size(1), stride = x.stride(0), whole = columns / kLanes * kLanes;
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, columns));
  torch::stable::parallel_for(0, x.size(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if (scale[r] == 1) continue;
      type* row = static_cast<type*>(x.mutable_data_ptr()) + r * stride;
      for (int64_t i = 0; i < whole; i += kLanes) Dtype::write(row + i, Dtype::load(row + i) * scale[r]);
      if (whole == columns) continue;
      type rest[kLanes] = {};
      std::memcpy(rest, row + whole, (columns - whole) * sizeof rest[0]);
      Dtype::write(rest, Dtype::load(rest) * scale[r]);
      std::memcpy(row + whole, rest, (columns - whole) * sizeof rest[0]);
    }
  });
}

void scale_rows(Tensor x, Tensor scale) {
  const PerRow<float> scale_of(scale);
  using torch::headeronly::ScalarType;
  switch (x.scalar_type()) {
    case ScalarType::Float: scale_all<Float32>(x, scale_of); break;
    case ScalarType::BFloat16: scale_all<BFloat16>(x, scale_of); break;
    case ScalarType::Half: scale_all<Float16>(x, scale_of); break;
    default: STD_TORCH_CHECK(false, "x must be float32, bfloat16 or float16");
  }
}

}  // namespace
}  // namespace dllm

STABLE_TORCH_LIBRARY_IMPL(dllm_kernels, CPU, m) {
  m.impl("masked_cross_entropy", TORCH_BOX(&dllm::masked_cross_entropy));
  m.impl("scale_rows", TORCH_BOX(&dllm::scale_rows));
}
