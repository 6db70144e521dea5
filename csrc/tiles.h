// Products by the matrix tiles of Intel's CPUs (AMX): 32 tokens with vectors of 16 rows at a time, in bfloat16.
//
// A tile holds 16 rows of 64 bytes. Weights are a left operand as they lie, 32 numbers of each of 16 tokens, and rows of
// hidden states, stored as pairs of numbers in lanes (linear.h), are a right one. One instruction adds to a product the
// sum of 32 terms: where such sums begin depends on nothing but the hidden size, so a row has the same bits in every
// company.

#pragma once

#include "common.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define DLLM_TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace dllm {

constexpr int64_t kTileTokens = 32, kTileSteps = 16;

#if defined(DLLM_TILES)

// Linux hands tiles to processes that ask for them.
inline bool tiles_allowed() {
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool allowed = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return allowed;
}

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Static: compilers think that less of it is read than is.
inline const TileShapes kTileShapes;

// A thread has tiles while this exists.
class TileScope {
 public:
  TileScope() : allowed_(tiles_allowed()) {
    if (allowed_) _tile_loadconfig(&kTileShapes);
  }
  ~TileScope() {
    if (allowed_) _tile_release();
  }
  TileScope(const TileScope&) = delete;

 private:
  bool allowed_;
};

// The products of V vectors of rows with kTileTokens tokens. `ahead`: the weights to be read after these and the next.
template <int V>
void multiply_tiles(
    const float* rows, const uint16_t* weight, int64_t stride, int64_t steps, const uint16_t* ahead, vfloat (*out)[V]) {
  constexpr int64_t kRowStride = V * sizeof(vfloat);
  const int64_t token_stride = stride * sizeof *weight;
  const uint16_t* second = weight + 16 * stride;
  asm volatile("" ::: "memory");  // what the tiles read has been written
  for (int v = 0; v < V; v += 2) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < steps; k += kTileSteps) {
      if (v == 0)
        for (int64_t t = 0; t < kTileTokens; ++t) __builtin_prefetch(ahead + t * stride + 2 * k, 0, 2);
      const float* lanes = rows + (k * V + v) * kLanes;
      _tile_loadd(4, weight + 2 * k, token_stride);
      _tile_loadd(5, second + 2 * k, token_stride);
      _tile_loadd(6, lanes, kRowStride);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 5, 6);
      if (v + 1 < V) {
        _tile_loadd(7, lanes + kLanes, kRowStride);
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, &out[0][v], kRowStride);
    _tile_stored(1, &out[16][v], kRowStride);
    if (v + 1 < V) {
      _tile_stored(2, &out[0][v + 1], kRowStride);
      _tile_stored(3, &out[16][v + 1], kRowStride);
    }
  }
}

#else

inline bool tiles_allowed() { return false; }
struct TileScope {};

#endif

}  // namespace dllm
