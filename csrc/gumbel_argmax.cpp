// Gumbel-argmax with confidence: one pass over each row of logits. Formulae: dllm_kernels/gumbel_argmax/api.py.
//
// A row is cut into chunks of a fixed width, each reduced by itself and then combined in order: threads share the
// chunks of few rows, and a row's result does not depend on how they do or on what else is in the batch. Inside a chunk
// each tile is read once, for the two largest logits and for sums relative to the largest of the tiles before; one that
// exceeds it by more than a little, which would cost the sums their precision, is read again from cache.
//
// Noise is pruned: a token whose logit plus the upper bound of its noise does not exceed the best score so far cannot
// win, so its logarithms are never taken. Rounding is monotone, hence fl(l + fl(T G)) >= fl(l + fl(T g)) for G >= g and
// the pruning is exact. Of a vocabulary of 50,000 some twenty tokens are computed.

#include "common.h"
#include "philox.h"

#include <algorithm>
#include <vector>

namespace dllm {
namespace {

constexpr int64_t kChunk = 16384;
constexpr int64_t kTile = 1024;

struct Partial {  // of one chunk
  float max = -kInf, second = -kInf;  // the two largest logits
  double total = 0;                   // sum e^(l - max)
  double moment = 0;                  // sum e^(l - max) (l - max)
  float best = -kInf;                 // largest l + T g, its token and logit
  int64_t token = -1;
  float logit = -kInf;
};

struct Noise {
  philox::Address address;
  float temperature;
};

// The two largest logits of each lane.
struct Largest {
  vfloat first = splat(-kInf), second = splat(-kInf);

  void take(vfloat v) {
    second = max(second, min(first, v));
    first = max(first, v);
  }
};

struct Sums {
  float total = 0, moment = 0;
};

// Fills a tile with -inf where there is no logit or it is suppressed; NaN becomes -inf, +inf the largest finite number.
template <typename Dtype>
void load_tile(float* x, const typename Dtype::type* logits, const bool* suppress, int64_t n) {
  typename Dtype::type buffer[kTile] = {};
  std::memcpy(buffer, logits, n * sizeof buffer[0]);
  for (int64_t i = 0; i < kTile; i += kLanes)
    store(x + i, min(max(Dtype::load(buffer + i), splat(-kInf)), splat(FLT_MAX)));
  std::fill(x + n, x + kTile, -kInf);
  if (suppress)
    for (int64_t i = 0; i < n; ++i) x[i] = suppress[i] ? -kInf : x[i];
}

template <typename Dtype>
float maximum(const typename Dtype::type* logits) {
  vfloat found = splat(-kInf);
  for (int64_t i = 0; i < kTile; i += kLanes) found = max(max(Dtype::load(logits + i), splat(-kInf)), found);
  return largest(found);
}

// One pass over a whole tile: sum e^(l - max) and sum e^(l - max) (l - max), and the largest logits so far. `x` gets
// the logits as float32. Moving the second sum to a maximum that lies s higher loses s ulp to cancellation, so kNear.
constexpr float kNear = 1;

template <typename Dtype>
Sums pass(const typename Dtype::type* logits, float max_so_far, float* x, Largest& largest) {
  constexpr int kSums = 64 / kLanes;  // short chains of float32 additions, the same length on every machine
  vfloat total[kSums] = {}, moment[kSums] = {};
  for (int64_t i = 0; i < kTile; i += kSums * kLanes)
    for (int s = 0; s < kSums; ++s) {
      const vfloat v = max(Dtype::load(logits + i + s * kLanes), splat(-kInf));
      store(x + i + s * kLanes, v);
      largest.take(v);
      const vfloat gap = max(v - max_so_far, splat(-87.0f));
      const vfloat weight = exponential(gap);
      total[s] += weight;
      moment[s] = multiply_add(weight, gap, moment[s]);
    }
  Sums sums;
  for (int s = 0; s < kSums; ++s) {
    sums.total += sum(total[s]);
    sums.moment += sum(moment[s]);
  }
  return sums;
}

float second_largest(const Largest& seen) {
  float first = -kInf, second = -kInf;
  for (int i = 0; i < kLanes; ++i)
    for (const float v : {seen.first[i], seen.second[i]}) {
      second = std::max(second, std::min(first, v));
      first = std::max(first, v);
    }
  return second;
}

void move_maximum(Partial& p, float max) {
  if (p.total > 0 && p.max < max) {
    const double shift = double(p.max) - max, scale = std::exp(shift);
    p.moment = scale * (p.moment + shift * p.total);
    p.total *= scale;
  }
  p.max = max;
}

void draw(const float* x, int64_t first_token, const Noise& noise, float floor, Partial& out) {
  const float T = noise.temperature;
  for (int64_t i = 0; i < kTile; i += philox::kVectors * kLanes) {
    vuint words[philox::kVectors];
    philox::words(noise.address, static_cast<uint32_t>((first_token + i) / 4), words);
    for (int v = 0; v < philox::kVectors; ++v) {
      const int64_t begin = i + v * kLanes;
      const vfloat bound = load(x + begin) + splat(T) * philox::gumbel_bound(words[v]);
      if (!any_above(bound, std::max(out.best, floor))) continue;
      for (int lane = 0; lane < kLanes; ++lane) {
        if (!(bound[lane] > std::max(out.best, floor))) continue;
        const int64_t token = first_token + begin + lane;
        const float drawn = x[begin + lane] + T * philox::gumbel(noise.address, static_cast<uint32_t>(token));
        const float noisy = std::max(drawn, -FLT_MAX);  // a logit above -inf stays so whatever T is
        if (noisy > out.best) out.best = noisy, out.token = token, out.logit = x[begin + lane];
      }
    }
  }
}

// `floor` is a score that a lower token of this row has reached: no token below or at it can win.
template <typename Dtype>
Partial reduce_chunk(
    const typename Dtype::type* logits, const bool* suppress, int64_t begin, int64_t end, const Noise& noise,
    float floor) {
  Partial out;
  Largest seen;
  alignas(64) float x[kTile];
  for (int64_t tile = begin; tile < end; tile += kTile) {
    const float max_before = out.max;
    const Largest seen_before = seen;
    const bool whole = tile + kTile <= end && !suppress;
    if (!whole) load_tile<Dtype>(x, logits + tile, suppress ? suppress + tile : nullptr, std::min(kTile, end - tile));
    if (out.max == -kInf) out.max = std::min(whole ? maximum<Dtype>(logits + tile) : maximum<Float32>(x), FLT_MAX);
    Sums sums = whole ? pass<Dtype>(logits + tile, out.max, x, seen) : pass<Float32>(x, out.max, x, seen);
    float highest = any_above(seen.first, out.max) ? largest(seen.first) : out.max;
    if (highest == -kInf) continue;
    if (highest > out.max + kNear) {
      if (highest == kInf) load_tile<Dtype>(x, logits + tile, nullptr, kTile);
      highest = std::min(highest, FLT_MAX);
      move_maximum(out, highest);
      seen = seen_before;
      sums = pass<Float32>(x, highest, x, seen);
    }
    out.total += sums.total;
    out.moment += sums.moment;
    move_maximum(out, highest);
    if (noise.temperature > 0) {
      draw(x, tile, noise, floor, out);
    } else if (highest > max_before) {
      out.best = out.logit = highest;
      out.token = tile + (std::find(x, x + kTile, highest) - x);
    }
  }
  out.second = second_largest(seen);
  return out;
}

Partial combine(const Partial* chunks, int64_t n) {
  Partial row;
  for (int64_t c = 0; c < n; ++c) {
    Partial chunk = chunks[c];
    if (chunk.max == -kInf) continue;
    const float max = std::max(row.max, chunk.max);
    row.second = std::max({std::min(row.max, chunk.max), row.second, chunk.second});
    move_maximum(row, max);
    move_maximum(chunk, max);
    row.total += chunk.total;
    row.moment += chunk.moment;
    if (chunk.best > row.best) row.best = chunk.best, row.token = chunk.token, row.logit = chunk.logit;
  }
  return row;
}

struct Arguments {
  const void* logits;
  int64_t n_rows, vocab_size, row_stride, n;
  PerRow<float> temperature;
  PerRow<int64_t> seeds, positions, step, rows;
  const bool* suppress;
};

struct Results {
  int64_t* token;
  float *log_prob, *margin, *neg_entropy, *lse;
};

void write(const Results& out, int64_t i, const Partial& row) {
  if (row.token < 0) {
    out.token[i] = -1;
    out.margin[i] = 0;
    out.log_prob[i] = out.neg_entropy[i] = out.lse[i] = -kInf;
    return;
  }
  const double log_total = std::log(row.total);
  out.token[i] = row.token;
  out.log_prob[i] = static_cast<float>((double(row.logit) - row.max) - log_total);
  out.margin[i] = static_cast<float>(-std::expm1(double(row.second) - row.max) / row.total);
  out.neg_entropy[i] = static_cast<float>(row.moment / row.total - log_total);
  out.lse[i] = static_cast<float>(row.max + log_total);
}

template <typename Dtype>
void run(const Arguments& in, const Results& out) {
  const int64_t chunks = (in.vocab_size + kChunk - 1) / kChunk;
  std::vector<Partial> partials(in.n * chunks);
  const auto* logits = static_cast<const typename Dtype::type*>(in.logits);

  const int64_t grain = std::max<int64_t>(1, 2 * kChunk / std::min(in.vocab_size, kChunk));
  torch::stable::parallel_for(0, in.n * chunks, grain, [&](int64_t begin, int64_t end) {
    float floor = -kInf;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t chunk = task % chunks, row = in.rows ? in.rows[task / chunks] : task / chunks;
      if (row < 0 || row >= in.n_rows) continue;
      if (chunk == 0) floor = -kInf;
      Noise noise = {{0, 0, 0}, 0};
      if (in.temperature)
        noise = {
            {static_cast<uint64_t>(in.seeds[row]), static_cast<uint32_t>(in.positions[row]),
             static_cast<uint32_t>(in.step[row])},
            in.temperature[row]};
      partials[task] = reduce_chunk<Dtype>(
          logits + row * in.row_stride, in.suppress, chunk * kChunk, std::min((chunk + 1) * kChunk, in.vocab_size),
          noise, floor);
      floor = std::max(floor, partials[task].best);
    }
  });
  for (int64_t i = 0; i < in.n; ++i) write(out, i, combine(&partials[i * chunks], chunks));
}

void gumbel_argmax(
    Tensor logits, std::optional<Tensor> temperature, std::optional<Tensor> seeds, std::optional<Tensor> positions,
    std::optional<Tensor> step, std::optional<Tensor> suppress, std::optional<Tensor> rows,
    std::optional<Tensor> count, Tensor token, Tensor log_prob, Tensor margin, Tensor neg_entropy, Tensor lse) {
  const int64_t wanted = token.size(0);
  const int64_t n = count ? std::clamp<int64_t>(PerRow<int64_t>(*count)[0], 0, wanted) : wanted;
  const Arguments in = {
      logits.const_data_ptr(), logits.size(0), logits.size(1), logits.stride(0), n, PerRow<float>(temperature),
      PerRow<int64_t>(seeds), PerRow<int64_t>(positions), PerRow<int64_t>(step), PerRow<int64_t>(rows),
      suppress ? static_cast<const bool*>(suppress->const_data_ptr()) : nullptr};
  const Results out = {
      static_cast<int64_t*>(token.mutable_data_ptr()), static_cast<float*>(log_prob.mutable_data_ptr()),
      static_cast<float*>(margin.mutable_data_ptr()), static_cast<float*>(neg_entropy.mutable_data_ptr()),
      static_cast<float*>(lse.mutable_data_ptr())};
  using torch::headeronly::ScalarType;
  switch (logits.scalar_type()) {
    case ScalarType::Float: run<Float32>(in, out); break;
    case ScalarType::BFloat16: run<BFloat16>(in, out); break;
    case ScalarType::Half: run<Float16>(in, out); break;
    default: STD_TORCH_CHECK(false, "logits must be float32, bfloat16 or float16");
  }
  for (int64_t i = n; i < wanted; ++i) write(out, i, Partial());
}

}  // namespace
}  // namespace dllm

STABLE_TORCH_LIBRARY_IMPL(dllm_kernels, CPU, m) { m.impl("gumbel_argmax", TORCH_BOX(&dllm::gumbel_argmax)); }
