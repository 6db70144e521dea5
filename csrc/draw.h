// The draw of a token in two levels, bit for bit the one that dllm_kernels/draw.py specifies: the best tile of 16 tokens,
// then the best token in it.
//
// Few tiles are computed as specified. A tile's score is m + T (log S + G) with S <= 16 and G = -log E <= -log U, its
// uniform number. So a tile cannot exceed a score c if l + T (log 16 - log U) does not for any of its logits, which
// takes no exponential; nor if the sum of e^((l - c) / T), which is S e^((m - c) / T), does not exceed U, where the
// largest of four logits may stand for all four. Of a vocabulary of 50,000 some thirty tiles are computed.

#pragma once

#include "logits.h"
#include "philox.h"

#include <algorithm>

namespace dllm {

constexpr int64_t kBlock = 512;  // adjacent tokens, which are those of 32 tiles; token 128 k + 4 r + j is of tile r
constexpr int64_t kColumns = 128;

struct Noise {
  philox::Address address;
  float temperature;  // 0, or as it is clamped

  float rate() const { return 1 / temperature; }
};

// Roundings, here and in the specification, move log S, G and (l - c) / T by less than this altogether, and the last
// rounding of a score moves it by less than kRounding of it.
constexpr float kSlack = 0x1p-12f, kRounding = 0x1p-21f;

// Noise of a row's tiles. The words of 32 Philox blocks serve four blocks of the vocabulary, which are 8 apart, so those
// of 8 are kept.
class TileNoise {
 public:
  explicit TileNoise(const Noise& noise) : noise_(noise) {}

  // What is asked about from here on: a block of the vocabulary.
  void move_to(int64_t block) {
    const int64_t group = block / 32, g = block % 8;
    own_ = block / 8 % 4;
    words_ = kept_[g];
    if (group_[g] != group) {
      group_[g] = group;
      philox::words(noise_.address, static_cast<uint32_t>(256 * group + 32 * g), philox::kTileNoise, kept_[g]);
    }
    float* out = most_;
    for (int r = 0; r < 32; r += kLanes) {
      vuint w;
      std::memcpy(&w, words_[own_] + r, sizeof w);
      const vfloat most = (philox::gumbel_bound(w) + kLogTokens) * noise_.temperature;
      for (const vfloat pairs : {zip<false>(most, most), zip<true>(most, most)}) {
        store(out, zip<false>(pairs, pairs));
        store(out + kLanes, zip<true>(pairs, pairs));
        out += 2 * kLanes;
      }
    }
  }

  // What the score of each column's tile exceeds its largest logit by, at most.
  const float* most() const { return most_; }

  // At most U of tile r of the block.
  float least_uniform(int r) const { return static_cast<float>(words_[own_][r]) * (0x1p-32f * (1 - 0x1p-20f)); }

  float gumbel(int r) const { return philox::gumbel(words_[own_][r], words_[(own_ + 1) % 4][r]); }

 private:
  static constexpr float kLogTokens = 2.7725887f + kSlack;  // log 16

  Noise noise_;
  int64_t group_[8] = {-1, -1, -1, -1, -1, -1, -1, -1}, own_ = 0;
  uint32_t kept_[8][4][32];
  uint32_t (*words_)[32] = nullptr;
  float most_[kColumns];
};

// The best tile so far, with its logits: those of k in vector k.
struct BestTile {
  float score = -kInf;
  int64_t tile = -1;
  vfloat4 logits[4];
};

// The tile's first logit is at `x`.
inline void load_columns(const float* x, vfloat4 (&out)[4]) {
  for (int k = 0; k < 4; ++k) out[k] = load<vfloat4>(x + kColumns * k);
}

inline float tile_score(const vfloat4 (&l)[4], float T, float rate, float noise) {
  const vfloat4 low = l[0] > l[1] ? l[0] : l[1], high = l[2] > l[3] ? l[2] : l[3], top = low > high ? low : high;
  const float m = std::max(std::max(top[0], top[1]), std::max(top[2], top[3]));
  if (m == -kInf) return -kInf;
  vfloat4 e[4];
  for (int k = 0; k < 4; ++k) e[k] = philox::exp_float32((l[k] - m) * rate);
  const vfloat4 of_j = (e[0] + e[1]) + (e[2] + e[3]);
  const float total = (of_j[0] + of_j[1]) + (of_j[2] + of_j[3]);
  return std::max(m + T * (philox::log_float32(total) + noise), -FLT_MAX);  // what is above -inf stays so
}

// The best tile of a block with logits x, if it is better than `best` and above `floor`; of equals the first.
inline void find_tile(
    const float* x, int64_t block, const Noise& noise, TileNoise& tiles, float floor, BestTile& best) {
  const float T = noise.temperature, rate = noise.rate();
  tiles.move_to(block);
  for (int64_t column = 0; column < kColumns; column += kLanes) {
    const float reached = std::max(best.score, std::max(floor, -FLT_MAX));
    const float c = reached - std::abs(reached) * kRounding;
    const float* first = x + column;
    const vfloat top = max(
        max(load(first), load(first + kColumns)), max(load(first + 2 * kColumns), load(first + 3 * kColumns)));
    if (!any_above(top + load(tiles.most() + column), c)) continue;
    // NaN (-inf less -inf) becomes -87, and e^80 exceeds every U
    const vfloat weight = 4 * exponential(min(max((top - c) * rate + kSlack, splat(-87)), splat(80)));
    for (int lane = 0; lane < kLanes; lane += 4) {
      const int r = static_cast<int>(column + lane) / 4;
      const float sum = (weight[lane] + weight[lane + 1]) + (weight[lane + 2] + weight[lane + 3]);
      if (!(sum > tiles.least_uniform(r))) continue;
      vfloat4 logits[4];
      load_columns(first + lane, logits);
      const float score = tile_score(logits, T, rate, tiles.gumbel(r));
      if (!(score > std::max(best.score, floor))) continue;
      best.score = score;
      best.tile = 32 * block + r;
      std::copy(logits, logits + 4, best.logits);
    }
  }
}

struct Drawn {
  int64_t token;
  float logit;
};

// The token of the tile that won.
inline Drawn draw_token(const BestTile& best, const Noise& noise) {
  const int64_t first = best.tile / 32 * kBlock + best.tile % 32 * 4;
  Drawn drawn = {-1, -kInf};
  float highest = -kInf;
  for (int k = 0; k < 4; ++k) {
    const int64_t token = first + kColumns * k;
    const philox::Block four = philox::block(noise.address, static_cast<uint32_t>(token / 4), philox::kTokenNoise);
    for (int j = 0; j < 4; ++j) {
      const float logit = best.logits[k][j];
      if (logit == -kInf) continue;
      const float g = philox::gumbel(four.word[j], four.word[(j + 1) % 4]);
      const float noisy = std::max(logit + noise.temperature * g, -FLT_MAX);  // what is above -inf stays so
      if (noisy > highest) highest = noisy, drawn = {token + j, logit};
    }
  }
  return drawn;
}

}  // namespace dllm
