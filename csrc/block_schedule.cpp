// Lists, proposals and moves of a step, row by row. Rules: dllm_kernels/block_schedule/api.py.

#include "common.h"

#include <algorithm>

namespace dllm {
namespace {

template <typename T>
const T* read(const Tensor& t) { return static_cast<const T*>(t.const_data_ptr()); }
template <typename T>
T* write(const Tensor& t) { return static_cast<T*>(t.mutable_data_ptr()); }

// The block that each row is working on; all tables are contiguous.
struct Tables {
  const int64_t *block, *blocks, *begin, *stop;
  int64_t most;

  Tables(const Tensor& block, const Tensor& blocks, const Tensor& begin, const Tensor& stop)
      : block(read<int64_t>(block)), blocks(read<int64_t>(blocks)), begin(read<int64_t>(begin)),
        stop(read<int64_t>(stop)), most(begin.size(1)) {}

  bool active(int64_t b) const { return block[b] < blocks[b]; }
  int64_t at(int64_t b) const { return b * most + std::clamp<int64_t>(block[b], 0, most - 1); }
};

// The window of a row: columns `start` to `stop`, of which those from `begin` on are its block's; none if it is finished.
struct Window {
  int64_t start, begin, stop;

  Window(const Tables& tables, int64_t b, int64_t width, int64_t columns) {
    begin = tables.begin[tables.at(b)];
    stop = tables.active(b) ? tables.stop[tables.at(b)] : 0;
    STD_TORCH_CHECK(stop <= columns, "a block ends behind the last column");
    start = std::max<int64_t>(stop - width, 0);
  }
};

void list_candidates(
    Tensor tokens, Tensor block, Tensor step, Tensor blocks, Tensor begin, Tensor stop, Tensor seeds, int64_t mask_id,
    Tensor hidden_offset, int64_t hidden_rows, bool right_shift, bool block_only, std::optional<Tensor> editable,
    std::optional<Tensor> temperature, Tensor start, Tensor overflow, Tensor lists, Tensor count, Tensor slot,
    std::optional<Tensor> own) {
  const int64_t batch = tokens.size(0), columns = tokens.size(1), window = slot.size(1), room = lists.size(1);
  const Tables tables(block, blocks, begin, stop);
  int64_t* index = write<int64_t>(lists);
  int64_t *position = index + room, *seed = position + room, *step_of = seed + room, found = 0;
  float* warmth = own ? write<float>(*own) : nullptr;
  std::fill(index, index + 4 * room, 0);
  if (warmth) std::fill(warmth, warmth + room, 0.0f);
  for (int64_t b = 0; b < batch; ++b) {
    const Window now(tables, b, window, columns);
    const int64_t* row = read<int64_t>(tokens) + b * columns;
    const bool* open = editable ? read<bool>(*editable) + b * columns : nullptr;
    int64_t* place = write<int64_t>(slot) + b * window;
    write<int64_t>(start)[b] = now.start;
    std::fill(place, place + window, -1);
    for (int64_t column = now.start; column < now.stop; ++column) {
      const bool in_block = column >= now.begin;
      const bool masked = row[column] == mask_id && (in_block || !block_only);
      if (!masked && !(open && in_block && open[column])) continue;
      const int64_t n = found++;
      if (n >= room) continue;
      const int64_t from = right_shift ? std::max<int64_t>(column - 1, 0) : column;
      place[column - now.start] = n;
      index[n] = std::clamp<int64_t>(read<int64_t>(hidden_offset)[b] + from, 0, hidden_rows - 1);
      position[n] = column;
      seed[n] = read<int64_t>(seeds)[b];
      step_of[n] = read<int64_t>(step)[b];
      if (warmth) warmth[n] = read<float>(*temperature)[b];
    }
  }
  *write<int64_t>(count) = found;
  *write<int64_t>(overflow) += std::max<int64_t>(found - room, 0);
}

// What the schedule has for the step of a row: the last step's amount if the block has taken all of them.
template <typename T>
T amount_of(const Tensor& amount, const Tensor& block, const Tensor& step, int64_t b) {
  const int64_t blocks = amount.size(1), steps = amount.size(2);
  const int64_t n = std::clamp<int64_t>(read<int64_t>(block)[b], 0, blocks - 1);
  const int64_t s = std::clamp<int64_t>(read<int64_t>(step)[b], 0, steps - 1);
  return read<T>(amount)[(b * blocks + n) * steps + s];
}

void place_proposals(
    Tensor slot, Tensor token, Tensor rank, std::optional<Tensor> uniform, Tensor block, Tensor step, Tensor amount,
    Tensor row_steps, Tensor proposals, Tensor confidence, Tensor failed, Tensor k) {
  const int64_t batch = slot.size(0), window = slot.size(1), places = token.size(0);
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t* place = read<int64_t>(slot) + b * window;
    int64_t* proposed = write<int64_t>(proposals) + b * window;
    float* sure = write<float>(confidence) + b * window;
    const float chance = uniform ? amount_of<float>(amount, block, step, b) : 0.0f;
    int64_t chosen = 0;
    bool none_finite = false;
    for (int64_t j = 0; j < window; ++j) {
      const int64_t n = place[j];
      STD_TORCH_CHECK(n < places, "a slot lies behind the last candidate");
      proposed[j] = n < 0 ? -1 : read<int64_t>(token)[n];
      sure[j] = n < 0 ? -kInf : read<float>(rank)[n];
      if (n < 0) continue;
      none_finite |= proposed[j] < 0;
      chosen += uniform && read<float>(*uniform)[n] < chance;
    }
    int64_t& since = write<int64_t>(failed)[b];
    if (none_finite && since < 0) since = read<int64_t>(row_steps)[b];
    write<int64_t>(k)[b] = uniform ? chosen : amount_of<int64_t>(amount, block, step, b);
  }
}

// Whether a row's generated part holds an end with no mask before it.
bool is_finished(const int64_t* row, int64_t first, int64_t columns, int64_t mask_id, int64_t eos, int64_t eot) {
  for (int64_t column = std::max<int64_t>(first, 0); column < columns; ++column) {
    if (row[column] == mask_id) return false;
    if (row[column] == eos || row[column] == eot) return true;
  }
  return false;
}

void advance_rows(
    Tensor tokens, Tensor block, Tensor step, Tensor blocks, Tensor begin, Tensor stop, Tensor steps, Tensor proposals,
    Tensor confidence, Tensor committed, int64_t mask_id, Tensor first, Tensor row_steps, Tensor unmasked_steps,
    bool adapts, bool block_only, std::optional<double> edit_threshold, int64_t edit_steps,
    std::optional<int64_t> eos_id, int64_t eot_id, bool stops_between_blocks) {
  const int64_t batch = tokens.size(0), columns = tokens.size(1), window = proposals.size(1);
  const Tables tables(block, blocks, begin, stop);
  const float bar = edit_threshold.value_or(0);
  for (int64_t b = 0; b < batch; ++b) {
    const bool active = tables.active(b);
    const Window now(tables, b, window, columns);
    const int64_t last = read<int64_t>(steps)[tables.at(b)];
    int64_t* row = write<int64_t>(tokens) + b * columns;
    int64_t &at_step = write<int64_t>(step)[b], &unmasked = write<int64_t>(unmasked_steps)[b];
    bool masks_in_block = false, masks = false, edited = false, over = at_step + 1 >= last;
    if (adapts || edit_threshold) {
      for (int64_t column = now.start; column < now.stop; ++column) {
        const bool in_block = column >= now.begin;
        if (row[column] == mask_id) {
          masks = true, masks_in_block |= in_block;
          continue;
        }
        const int64_t cell = b * window + column - now.start, other = read<int64_t>(proposals)[cell];
        const bool differs = other >= 0 && other != mask_id && other != row[column];
        if (!edit_threshold || !in_block || !differs || !(read<float>(confidence)[cell] > bar)) continue;
        row[column] = other;
        edited = true;
      }
    }
    if (edit_threshold) {
      const bool left = block_only ? masks_in_block : masks;
      // no mask before the step: none is left, and none was filled
      const bool none = active && !left && read<int64_t>(committed)[b] == 0;
      unmasked += none;
      over |= left && at_step + 1 >= last - edit_steps;
      over |= none && (!edited || unmasked >= edit_steps);
    } else if (adapts) {
      over |= !masks_in_block;
    }
    over &= active;
    write<int64_t>(row_steps)[b] += active;
    at_step = over ? 0 : at_step + active;
    if (over) unmasked = 0;
    int64_t& at_block = write<int64_t>(block)[b];
    at_block += over;
    if (eos_id && (over || !stops_between_blocks) &&
        is_finished(row, read<int64_t>(first)[b], columns, mask_id, *eos_id, eot_id))
      at_block = tables.blocks[b];
  }
}

}  // namespace
}  // namespace dllm

STABLE_TORCH_LIBRARY_IMPL(dllm_kernels, CPU, m) {
  m.impl("list_candidates", TORCH_BOX(&dllm::list_candidates));
  m.impl("place_proposals", TORCH_BOX(&dllm::place_proposals));
  m.impl("advance_rows", TORCH_BOX(&dllm::advance_rows));
}
