// Gumbel-argmax with confidence: one pass over a chunk of a row's logits. Formulae: dllm_kernels/gumbel_argmax/api.py.
//
// A row is cut into chunks of a fixed width, each reduced by itself and then combined in order: so a row's result does
// not depend on which thread has which chunk or on what else is in the batch. Inside a chunk each tile is read once,
// for the two largest logits and for sums relative to the largest of the tiles before; one that exceeds it by more than
// a little, which would cost the sums their precision, is read again from cache.

#pragma once

#include "draw.h"

namespace dllm {

// Of one chunk, or of all tokens of a row so far. Statistics are those of softmax(l rate); begin-suppressed tokens, whose
// logit counts as -inf in them, may still be the best.
struct Partial {
  float max = -kInf, second = -kInf;  // the two largest logits
  double total = 0;                   // sum e^gap, gap = (l - max) rate
  double moment = 0;                  // sum e^gap gap
  float best = -kInf;                 // the best tile's score, or the largest logit where nothing is drawn
  float logit = -kInf;                // and its token with the token's logit
  int64_t token = -1;
  float top = -kInf;  // the largest logit, and the first token that has it
  int64_t argmax = -1;
};

// What lower tokens of a row have reached: what does not exceed it cannot win.
struct Reached {
  float score = -kInf, top = -kInf;

  void take(const Partial& chunk) {
    score = std::max(score, chunk.best);
    top = std::max(top, chunk.top);
  }
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
float maximum(const typename Dtype::type* logits, int64_t n) {
  vfloat found = splat(-kInf);
  for (int64_t i = 0; i < n; i += kLanes) found = max(max(Dtype::load(logits + i), splat(-kInf)), found);
  return largest(found);
}

// The same logits with those at which `hidden` is true as -inf.
inline void hide(const float* x, const bool* hidden, int64_t n, int64_t padded, float* out) {
  std::copy(x + n, x + padded, out + n);
  for (int64_t i = 0; i < n; ++i) out[i] = hidden[i] ? -kInf : x[i];
}

inline void hide_below(float* x, int64_t n, float least) {
  for (int64_t i = 0; i < n; i += kLanes) store(x + i, load(x + i) < least ? splat(-kInf) : load(x + i));
}

// One pass over a tile: sum e^gap and sum e^gap gap, and the largest logits so far. `x` gets the logits as
// float32. Moving the second sum to a maximum that lies s higher loses s ulp to cancellation, so kNear.
constexpr float kNear = 1;
constexpr int64_t kStride = 64;  // tokens that a step of a pass reads, so tiles are padded to a multiple of it

template <typename Dtype, bool kTempered>
Sums pass(
    const typename Dtype::type* logits, int64_t n, float max_so_far, float rate, float* x, Largest& largest) {
  constexpr int kSums = kStride / kLanes;  // short chains of float32 additions, the same length on every machine
  vfloat total[kSums] = {}, moment[kSums] = {};
  for (int64_t i = 0; i < n; i += kStride)
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

inline float second_largest(const Largest& seen) {
  float first = -kInf, second = -kInf;
  for (int i = 0; i < kLanes; ++i)
    for (const float v : {seen.first[i], seen.second[i]}) {
      second = std::max(second, std::min(first, v));
      first = std::max(first, v);
    }
  return second;
}

inline void move_maximum(Partial& p, float max, double rate) {
  if (p.total > 0 && p.max < max) {
    const double shift = (double(p.max) - max) * rate, scale = std::exp(shift);
    p.moment = scale * (p.moment + shift * p.total);
    p.total *= scale;
  }
  p.max = max;
}

// `logits` are those of tokens `begin` to `end`, a chunk of a row that begins with a block.
template <typename Dtype, bool kTempered>
Partial reduce_chunk(
    const typename Dtype::type* logits, int64_t begin, int64_t end, const Hidden& hidden, float softcap, float rate,
    const Noise& noise, const Reached& reached) {
  Partial out;
  Largest seen;
  alignas(64) float x[kTile], shown[kTile];
  const bool plain = hidden.nothing() && softcap == 0, drawn = noise.temperature > 0;
  const int64_t multiple = drawn ? kBlock : kStride;
  TileNoise tiles(noise);
  BestTile best;
  for (int64_t tile = begin; tile < end; tile += kTile, logits += kTile) {
    const int64_t n = std::min(kTile, end - tile), padded = (n + multiple - 1) / multiple * multiple;
    const Largest seen_before = seen;
    const bool whole = n == padded && plain;
    if (!whole) load_tile<Dtype>(x, logits, hidden.suppress ? hidden.suppress + tile : nullptr, n, padded, softcap);
    if (hidden.below > -kInf) hide_below(x, padded, hidden.below);
    float* y = x;  // what the statistics see
    if (hidden.begin_suppress) hide(x, hidden.begin_suppress + tile, n, padded, y = shown);
    if (out.max == -kInf)
      out.max = std::min(whole ? maximum<Dtype>(logits, n) : maximum<Float32>(y, padded), FLT_MAX);
    Sums sums = whole ? pass<Dtype, kTempered>(logits, n, out.max, rate, x, seen)
                      : pass<Float32, kTempered>(y, padded, out.max, rate, y, seen);
    float highest = any_above(seen.first, out.max) ? largest(seen.first) : out.max;
    if (highest > -kInf) {
      if ((highest - out.max) * rate > kNear) {
        if (highest == kInf) load_tile<Dtype>(x, logits, nullptr, n, padded);
        highest = std::min(highest, FLT_MAX);
        move_maximum(out, highest, rate);
        seen = seen_before;
        sums = pass<Float32, kTempered>(y, padded, highest, rate, y, seen);
      }
      out.total += sums.total;
      out.moment += sums.moment;
      move_maximum(out, highest, rate);
    }
    if (drawn)
      for (int64_t i = 0; i < padded; i += kBlock)
        find_tile(x + i, (tile + i) / kBlock, noise, tiles, reached.score, best);
    const float top = hidden.begin_suppress ? maximum<Float32>(x, padded) : highest;
    if (top > std::max(out.top, reached.top)) {
      out.top = top;
      out.argmax = tile + (std::find(x, x + n, top) - x);
    }
  }
  if (best.tile >= 0) {
    const Drawn drawn = draw_token(best, noise);
    out.best = best.score, out.token = drawn.token, out.logit = drawn.logit;
  } else if (!drawn) {
    out.best = out.logit = out.top, out.token = out.argmax;
  }
  out.second = second_largest(seen);
  if (hidden.begin_suppress && out.token >= 0 && hidden.begin_suppress[out.token]) out.logit = -kInf;
  return out;
}

// The chunk's tokens come after the row's.
inline void append(Partial& row, Partial chunk, double rate) {
  row.second = std::max({std::min(row.max, chunk.max), row.second, chunk.second});
  const float max = std::max(row.max, chunk.max);
  move_maximum(row, max, rate);
  move_maximum(chunk, max, rate);
  row.total += chunk.total;
  row.moment += chunk.moment;
  if (chunk.best > row.best) row.best = chunk.best, row.token = chunk.token, row.logit = chunk.logit;
  if (chunk.top > row.top) row.top = chunk.top, row.argmax = chunk.argmax;
}

// What is drawn in each row, and what is hidden of all.
struct Sampling {
  PerRow<float> temperature;
  PerRow<int64_t> seeds, positions, step;
  const bool *suppress, *begin_suppress;
  bool tempered;
  float softcap;  // 0: none

  Sampling(
      const std::optional<Tensor>& temperature, const std::optional<Tensor>& seeds,
      const std::optional<Tensor>& positions, const std::optional<Tensor>& step,
      const std::optional<Tensor>& suppress, const std::optional<Tensor>& begin_suppress, bool tempered,
      std::optional<double> softcap)
      : temperature(temperature), seeds(seeds), positions(positions), step(step), suppress(flags(suppress)),
        begin_suppress(flags(begin_suppress)), tempered(tempered), softcap(static_cast<float>(softcap.value_or(0))) {}

  double rate(int64_t row) const { return rate_of(temperature, tempered, row); }
  Noise noise(int64_t row) const {
    if (!temperature || !(temperature[row] > 0)) return {{0, 0, 0}, 0};
    return {
        {static_cast<uint64_t>(seeds[row]), static_cast<uint32_t>(positions[row]), static_cast<uint32_t>(step[row])},
        clamped(temperature[row])};
  }

  // A chunk of `row`, without the logits that are below `below`.
  template <typename Dtype>
  Partial reduce(
      const typename Dtype::type* logits, int64_t row, int64_t begin, int64_t end, float below,
      const Reached& reached) const {
    const auto chunk = tempered ? reduce_chunk<Dtype, true> : reduce_chunk<Dtype, false>;
    const Hidden hidden = {suppress, begin_suppress, below};
    return chunk(logits, begin, end, hidden, softcap, static_cast<float>(rate(row)), noise(row), reached);
  }
};

struct Results {
  int64_t* token;
  float *log_prob, *margin, *neg_entropy, *lse;
  int64_t* argmax;

  Results(
      Tensor& token, Tensor& log_prob, Tensor& margin, Tensor& neg_entropy, Tensor& lse, Tensor& argmax)
      : token(static_cast<int64_t*>(token.mutable_data_ptr())),
        log_prob(static_cast<float*>(log_prob.mutable_data_ptr())),
        margin(static_cast<float*>(margin.mutable_data_ptr())),
        neg_entropy(static_cast<float*>(neg_entropy.mutable_data_ptr())),
        lse(static_cast<float*>(lse.mutable_data_ptr())), argmax(static_cast<int64_t*>(argmax.mutable_data_ptr())) {}

  void write(int64_t i, const Partial& row, double rate) const {
    token[i] = row.token;
    argmax[i] = row.argmax;
    if (row.token < 0 || row.max == -kInf) {  // nothing to choose, or nothing to measure
      margin[i] = 0;
      log_prob[i] = neg_entropy[i] = lse[i] = -kInf;
      return;
    }
    const double log_total = std::log(row.total);
    log_prob[i] = static_cast<float>((double(row.logit) - row.max) * rate - log_total);
    margin[i] = static_cast<float>(-std::expm1((double(row.second) - row.max) * rate) / row.total);
    neg_entropy[i] = static_cast<float>(row.moment / row.total - log_total);
    lse[i] = static_cast<float>(row.max * rate + log_total);
  }
};

}  // namespace dllm
