// Alignment of token sequences with the fewest edits. Costs and ties: dllm_kernels/align_tokens/api.py.

#include "common.h"

#include <algorithm>
#include <vector>

namespace dllm {
namespace {

constexpr int64_t kBits = 64;
constexpr int64_t kBlank = -1;

// What the way back needs of 64 cells of a column of D: bit i belongs to row i + 1 of the word's rows.
struct Cells {
  uint64_t level;  // D[i][j] == D[i-1][j-1]
  uint64_t rise;   // D[i][j] == D[i-1][j] + 1
};

// The vertical differences of a column, D[i][j] - D[i-1][j], which are -1, 0 or 1.
struct Differences {
  uint64_t plus, minus;
};

// The next column's differences in 64 rows. `in` is D[i][j] - D[i][j-1] of the row above; on return, of the last row.
Cells next_column(uint64_t equal, Differences& vertical, int& in) {
  const auto [plus, minus] = vertical;
  const uint64_t carried = equal | (in < 0);
  const uint64_t level = ((((carried & plus) + plus) ^ plus) | carried) | minus;
  uint64_t right_plus = minus | ~(level | plus), right_minus = plus & level;
  const int out = int(right_plus >> (kBits - 1)) - int(right_minus >> (kBits - 1));
  right_plus = right_plus << 1 | (in > 0);
  right_minus = right_minus << 1 | (in < 0);
  const uint64_t either = equal | minus;
  vertical = {right_minus | ~(either | right_plus), right_plus & either};
  in = out;
  return {level, vertical.plus};
}

struct Aligner {
  std::vector<std::pair<int64_t, int64_t>> places;  // (token of x_0, its position), sorted
  std::vector<uint64_t> equal;                      // positions of x_0 that hold the column's token
  std::vector<Differences> vertical;
  std::vector<Cells> cells;  // column by column

  void fill(const int64_t* x0, int64_t n, const int64_t* x1, int64_t m) {
    const int64_t words = (n + kBits - 1) / kBits;
    places.resize(n);
    for (int64_t i = 0; i < n; ++i) places[i] = {x0[i], i};
    std::sort(places.begin(), places.end());
    equal.assign(words, 0);
    vertical.assign(words, {~uint64_t{0}, 0});
    cells.resize(words * m);
    for (int64_t j = 0; j < m; ++j) {
      const auto first = std::lower_bound(places.begin(), places.end(), std::pair<int64_t, int64_t>{x1[j], 0});
      auto last = first;
      for (; last != places.end() && last->first == x1[j]; ++last)
        equal[last->second / kBits] |= uint64_t{1} << last->second % kBits;
      int in = 1;  // D[0][j] = j
      for (int64_t w = 0; w < words; ++w) cells[j * words + w] = next_column(equal[w], vertical[w], in);
      for (auto it = first; it != last; ++it) equal[it->second / kBits] = 0;
    }
  }

  // Writes the alignment into z0 and z1 and returns its number of columns.
  int64_t way_back(const int64_t* x0, int64_t n, const int64_t* x1, int64_t m, int64_t* z0, int64_t* z1) const {
    const int64_t words = (n + kBits - 1) / kBits;
    int64_t i = n, j = m, length = 0;
    while (i > 0 || j > 0) {
      bool pair = false, deletes = j == 0;
      if (i > 0 && j > 0) {
        const Cells& word = cells[(j - 1) * words + (i - 1) / kBits];
        const int bit = (i - 1) % kBits;
        // a match never costs more than another move; a substitution is a step where D is not level
        pair = x0[i - 1] == x1[j - 1] || !(word.level >> bit & 1);
        deletes = word.rise >> bit & 1;
      }
      const bool takes0 = pair || deletes, takes1 = pair || !deletes;
      z0[length] = takes0 ? x0[--i] : kBlank;
      z1[length] = takes1 ? x1[--j] : kBlank;
      ++length;
    }
    std::reverse(z0, z0 + length);
    std::reverse(z1, z1 + length);
    return length;
  }
};

void align_tokens(Tensor x0, Tensor x0_length, Tensor x1, Tensor x1_length, Tensor z0, Tensor z1, Tensor length) {
  const int64_t pairs = x0.size(0), n = x0.size(1), m = x1.size(1);
  const auto* from = static_cast<const int64_t*>(x0.const_data_ptr());
  const auto* to = static_cast<const int64_t*>(x1.const_data_ptr());
  const auto* from_length = static_cast<const int64_t*>(x0_length.const_data_ptr());
  const auto* to_length = static_cast<const int64_t*>(x1_length.const_data_ptr());
  auto* out0 = static_cast<int64_t*>(z0.mutable_data_ptr());
  auto* out1 = static_cast<int64_t*>(z1.mutable_data_ptr());
  auto* columns = static_cast<int64_t*>(length.mutable_data_ptr());
  torch::stable::parallel_for(0, pairs, 4, [&](int64_t begin, int64_t end) {
    Aligner aligner;
    for (int64_t b = begin; b < end; ++b) {
      aligner.fill(from + b * n, from_length[b], to + b * m, to_length[b]);
      columns[b] = aligner.way_back(
          from + b * n, from_length[b], to + b * m, to_length[b], out0 + b * (n + m), out1 + b * (n + m));
    }
  });
}

}  // namespace
}  // namespace dllm

STABLE_TORCH_LIBRARY_IMPL(dllm_kernels, CPU, m) { m.impl("align_tokens", TORCH_BOX(&dllm::align_tokens)); }
