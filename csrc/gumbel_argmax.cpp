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

#include "logits.h"
#include "philox.h"

#include <algorithm>
#include <vector>

namespace dllm {
namespace {

constexpr int64_t kChunk = 16384;

// Of one chunk, or of all tokens of a row so far. Statistics are those of softmax(l rate); begin-suppressed tokens, whose
// logit counts as -inf in them, may still be the best.
struct Partial {
  float max = -kInf, second = -kInf;  // the two largest logits
  double total = 0;                   // sum e^gap, gap = (l - max) rate
  double moment = 0;                  // sum e^gap gap
  float best = -kInf;                 // largest l + T g, its token and logit
  float logit = -kInf;
  int64_t token = -1;
};

struct Noise {
  philox::Address address;
  float temperature;
};

// Which logits count as -inf: everywhere, in the statistics only (either may be null; both are of the whole row), and
// what is below a logit.
struct Hidden {
  const bool *suppress, *begin_suppress;
  float below;

  bool nothing() const { return !suppress && !begin_suppress && below == -kInf; }
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

template <typename Dtype>
float maximum(const typename Dtype::type* logits) {
  vfloat found = splat(-kInf);
  for (int64_t i = 0; i < kTile; i += kLanes) found = max(max(Dtype::load(logits + i), splat(-kInf)), found);
  return largest(found);
}

// The same logits with those at which `hidden` is true as -inf.
void hide(const float* x, const bool* hidden, int64_t n, float* out) {
  std::copy(x, x + kTile, out);
  for (int64_t i = 0; i < n; ++i) out[i] = hidden[i] ? -kInf : x[i];
}

void hide_below(float* x, float least) {
  for (int64_t i = 0; i < kTile; i += kLanes) store(x + i, load(x + i) < least ? splat(-kInf) : load(x + i));
}

// One pass over a whole tile: sum e^gap and sum e^gap gap, and the largest logits so far. `x` gets the logits as
// float32. Moving the second sum to a maximum that lies s higher loses s ulp to cancellation, so kNear.
constexpr float kNear = 1;

template <typename Dtype, bool kTempered>
Sums pass(const typename Dtype::type* logits, float max_so_far, float rate, float* x, Largest& largest) {
  constexpr int kSums = 64 / kLanes;  // short chains of float32 additions, the same length on every machine
  vfloat total[kSums] = {}, moment[kSums] = {};
  for (int64_t i = 0; i < kTile; i += kSums * kLanes)
    for (int s = 0; s < kSums; ++s) {
      const vfloat v = max(Dtype::load(logits + i + s * kLanes), splat(-kInf));
      store(x + i + s * kLanes, v);
      largest.take(v);
      const vfloat gap = max(kTempered ? (v - max_so_far) * rate : v - max_so_far, splat(-87.0f));
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

void move_maximum(Partial& p, float max, double rate) {
  if (p.total > 0 && p.max < max) {
    const double shift = (double(p.max) - max) * rate, scale = std::exp(shift);
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

// `floor` is a score that a lower token of this row has reached: no token below or at it can win. `logits` begin at
// token `first`.
template <typename Dtype, bool kTempered>
Partial reduce_chunk(
    const typename Dtype::type* logits, int64_t first, int64_t begin, int64_t end, const Hidden& hidden, float rate,
    const Noise& noise, float floor) {
  Partial out;
  Largest seen;
  alignas(64) float x[kTile], shown[kTile];
  const bool plain = hidden.nothing();
  for (int64_t tile = begin; tile < end; tile += kTile) {
    const int64_t n = std::min(kTile, end - tile);
    const Largest seen_before = seen;
    const bool whole = n == kTile && plain;
    if (!whole) load_tile<Dtype>(x, logits + (tile - first), hidden.suppress ? hidden.suppress + tile : nullptr, n);
    if (hidden.below > -kInf) hide_below(x, hidden.below);
    float* y = x;  // what the statistics see
    if (hidden.begin_suppress) hide(x, hidden.begin_suppress + tile, n, y = shown);
    if (out.max == -kInf)
      out.max = std::min(whole ? maximum<Dtype>(logits + (tile - first)) : maximum<Float32>(y), FLT_MAX);
    Sums sums = whole ? pass<Dtype, kTempered>(logits + (tile - first), out.max, rate, x, seen)
                      : pass<Float32, kTempered>(y, out.max, rate, y, seen);
    float highest = any_above(seen.first, out.max) ? largest(seen.first) : out.max;
    if (highest > -kInf) {
      if ((highest - out.max) * rate > kNear) {
        if (highest == kInf) load_tile<Dtype>(x, logits + (tile - first), nullptr, kTile);
        highest = std::min(highest, FLT_MAX);
        move_maximum(out, highest, rate);
        seen = seen_before;
        sums = pass<Float32, kTempered>(y, highest, rate, y, seen);
      }
      out.total += sums.total;
      out.moment += sums.moment;
      move_maximum(out, highest, rate);
    }
    if (noise.temperature > 0) {
      draw(x, tile, noise, floor, out);
    } else {
      const float top = hidden.begin_suppress ? maximum<Float32>(x) : highest;
      if (top > out.best) {
        out.best = out.logit = top;
        out.token = tile + (std::find(x, x + kTile, top) - x);
      }
    }
  }
  out.second = second_largest(seen);
  if (hidden.begin_suppress && out.token >= 0 && hidden.begin_suppress[out.token]) out.logit = -kInf;
  return out;
}

// The chunk's tokens come after the row's.
void append(Partial& row, Partial chunk, double rate) {
  row.second = std::max({std::min(row.max, chunk.max), row.second, chunk.second});
  const float max = std::max(row.max, chunk.max);
  move_maximum(row, max, rate);
  move_maximum(chunk, max, rate);
  row.total += chunk.total;
  row.moment += chunk.moment;
  if (chunk.best > row.best) row.best = chunk.best, row.token = chunk.token, row.logit = chunk.logit;
}

struct Arguments {
  const void* logits;  // of tokens `first` to `first` + `width`
  int64_t first, width, n_rows, row_stride, n;
  PerRow<float> temperature;
  PerRow<int64_t> seeds, positions, step, rows;
  const bool *suppress, *begin_suppress;
  bool tempered;
  const float* least;  // per chosen row, or null

  int64_t row(int64_t i) const { return rows ? rows[i] : i; }
  double rate(int64_t i) const {
    const int64_t r = row(i);
    return r < 0 || r >= n_rows ? 1 : rate_of(temperature, tempered, r);
  }
  Hidden hidden(int64_t i) const { return {suppress, begin_suppress, least ? least[i] : -kInf}; }
  Noise noise(int64_t r) const {
    if (!temperature) return {{0, 0, 0}, 0};
    return {
        {static_cast<uint64_t>(seeds[r]), static_cast<uint32_t>(positions[r]), static_cast<uint32_t>(step[r])},
        temperature[r]};
  }
};

template <typename Dtype>
Partial reduce_chunk_of(const Arguments& in, int64_t row, int64_t i, int64_t begin, int64_t end, float floor) {
  const auto* logits = static_cast<const typename Dtype::type*>(in.logits) + row * in.row_stride;
  const float rate = static_cast<float>(in.rate(i));
  return in.tempered
      ? reduce_chunk<Dtype, true>(logits, in.first, begin, end, in.hidden(i), rate, in.noise(row), floor)
      : reduce_chunk<Dtype, false>(logits, in.first, begin, end, in.hidden(i), rate, in.noise(row), floor);
}

// Appends the logits to what is known of each row.
template <typename Dtype>
void run(const Arguments& in, Partial* known) {
  const int64_t chunks = (in.width + kChunk - 1) / kChunk, end_token = in.first + in.width;
  std::vector<Partial> partials(in.n * chunks);
  const int64_t grain = std::max<int64_t>(1, 2 * kChunk / std::min(in.width, kChunk));
  torch::stable::parallel_for(0, in.n * chunks, grain, [&](int64_t begin, int64_t end) {
    float floor = -kInf;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t i = task / chunks, row = in.row(i), token = in.first + task % chunks * kChunk;
      if (row < 0 || row >= in.n_rows) continue;
      if (task == begin || token == in.first) floor = known[i].best;
      partials[task] = reduce_chunk_of<Dtype>(in, row, i, token, std::min(token + kChunk, end_token), floor);
      floor = std::max(floor, partials[task].best);
    }
  });
  for (int64_t task = 0; task < in.n * chunks; ++task)
    append(known[task / chunks], partials[task], in.rate(task / chunks));
}

void run(const Arguments& in, const Tensor& logits, Partial* known) {
  using torch::headeronly::ScalarType;
  switch (logits.scalar_type()) {
    case ScalarType::Float: return run<Float32>(in, known);
    case ScalarType::BFloat16: return run<BFloat16>(in, known);
    case ScalarType::Half: return run<Float16>(in, known);
    default: STD_TORCH_CHECK(false, "logits must be float32, bfloat16 or float16");
  }
}

struct Results {
  int64_t* token;
  float *log_prob, *margin, *neg_entropy, *lse;

  Results(Tensor& token, Tensor& log_prob, Tensor& margin, Tensor& neg_entropy, Tensor& lse)
      : token(static_cast<int64_t*>(token.mutable_data_ptr())),
        log_prob(static_cast<float*>(log_prob.mutable_data_ptr())),
        margin(static_cast<float*>(margin.mutable_data_ptr())),
        neg_entropy(static_cast<float*>(neg_entropy.mutable_data_ptr())),
        lse(static_cast<float*>(lse.mutable_data_ptr())) {}
};

void write(const Results& out, int64_t i, const Partial& row, double rate) {
  out.token[i] = row.token;
  if (row.token < 0 || row.max == -kInf) {  // nothing to choose, or nothing to measure
    out.margin[i] = 0;
    out.log_prob[i] = out.neg_entropy[i] = out.lse[i] = -kInf;
    return;
  }
  const double log_total = std::log(row.total);
  out.log_prob[i] = static_cast<float>((double(row.logit) - row.max) * rate - log_total);
  out.margin[i] = static_cast<float>(-std::expm1((double(row.second) - row.max) * rate) / row.total);
  out.neg_entropy[i] = static_cast<float>(row.moment / row.total - log_total);
  out.lse[i] = static_cast<float>(row.max * rate + log_total);
}

void gumbel_argmax(
    Tensor logits, std::optional<Tensor> temperature, std::optional<Tensor> seeds, std::optional<Tensor> positions,
    std::optional<Tensor> step, std::optional<Tensor> suppress, std::optional<Tensor> begin_suppress, bool tempered,
    std::optional<Tensor> least, std::optional<Tensor> rows, std::optional<Tensor> count, Tensor token,
    Tensor log_prob, Tensor margin, Tensor neg_entropy, Tensor lse) {
  const int64_t wanted = token.size(0);
  const Arguments in = {
      logits.const_data_ptr(), 0, logits.size(1), logits.size(0), logits.stride(0), counted(count, wanted),
      PerRow<float>(temperature), PerRow<int64_t>(seeds), PerRow<int64_t>(positions), PerRow<int64_t>(step),
      PerRow<int64_t>(rows), flags(suppress), flags(begin_suppress), tempered,
      least ? static_cast<const float*>(least->const_data_ptr()) : nullptr};
  std::vector<Partial> found(wanted);
  run(in, logits, found.data());
  const Results out(token, log_prob, margin, neg_entropy, lse);
  for (int64_t i = 0; i < wanted; ++i) write(out, i, found[i], i < in.n ? in.rate(i) : 1);
}

// `state` [N, 5] of 8 bytes each holds a Partial per row from slice to slice; the slice at token 0 begins it.
static_assert(sizeof(Partial) == 5 * 8);

void gumbel_argmax_slice(
    Tensor logits, int64_t first, std::optional<Tensor> temperature, std::optional<Tensor> seeds,
    std::optional<Tensor> positions, std::optional<Tensor> step, std::optional<Tensor> suppress,
    std::optional<Tensor> begin_suppress, bool tempered, std::optional<Tensor> count, Tensor state) {
  const Arguments in = {
      logits.const_data_ptr(), first, logits.size(1), logits.size(0), logits.stride(0),
      counted(count, logits.size(0)), PerRow<float>(temperature), PerRow<int64_t>(seeds), PerRow<int64_t>(positions),
      PerRow<int64_t>(step), PerRow<int64_t>(), flags(suppress), flags(begin_suppress), tempered, nullptr};
  auto* known = static_cast<Partial*>(state.mutable_data_ptr());
  if (first == 0) std::fill(known, known + state.size(0), Partial());
  run(in, logits, known);
}

void gumbel_argmax_end(
    Tensor state, std::optional<Tensor> temperature, bool tempered, Tensor token, Tensor log_prob, Tensor margin,
    Tensor neg_entropy, Tensor lse) {
  const auto* known = static_cast<const Partial*>(state.const_data_ptr());
  const Results out(token, log_prob, margin, neg_entropy, lse);
  const PerRow<float> T(temperature);
  for (int64_t i = 0; i < token.size(0); ++i) write(out, i, known[i], rate_of(T, tempered, i));
}

}  // namespace
}  // namespace dllm

STABLE_TORCH_LIBRARY_IMPL(dllm_kernels, CPU, m) {
  m.impl("gumbel_argmax", TORCH_BOX(&dllm::gumbel_argmax));
  m.impl("gumbel_argmax_slice", TORCH_BOX(&dllm::gumbel_argmax_slice));
  m.impl("gumbel_argmax_end", TORCH_BOX(&dllm::gumbel_argmax_end));
}
