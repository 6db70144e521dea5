// Attention of every query to all keys, of short canvases: one head of one row of the batch at a time, whose keys and
// values are laid out once and whose scores never leave the thread's caches. Rows lie in a batch, or one after the other
// in a single long one. Formulae: dllm_kernels/attention/api.py.
//
// Scores are the products of linear.h with queries as its rows: lanes are queries, so a softmax goes along vectors. The
// sum over values has the head's dimensions as lanes. Every sum is one chain over keys in order, so a query has the same
// bits whatever is computed beside it, and a packed row those of a batch.

#include "linear.h"

namespace dllm {
namespace {

constexpr int64_t kQueries = 2 * kLanes;  // that meet a key at a time

// Inlined into each other, the loops would keep their sums in memory.
#define DLLM_APART [[gnu::noinline]]

// Of a tensor [B, heads, rows, d], adjacent along d.
template <typename T>
struct Heads {
  T* data;
  int64_t batch, head, row;

  template <typename Pointer>
  Heads(Pointer data, const Tensor& t)
      : data(static_cast<T*>(data)), batch(t.stride(0)), head(t.stride(1)), row(t.stride(2)) {}
  T* of(int64_t b, int64_t h, int64_t first) const { return data + b * batch + h * head + first * row; }
};

template <typename Dtype>
class Attention {
  using Factor = dllm::Factor<Dtype>;
  using Input = typename Dtype::type;
  using Number = typename Factor::type;
  static constexpr int64_t kStep = Factor::kStep, kTogether = kTokens<Factor, 2>;

 public:
  // Of rows with at most `keys` keys.
  Attention(
      const Tensor& query, const Tensor& key, const Tensor& value, int64_t keys, const std::optional<Tensor>& mask,
      std::optional<int64_t> window, double scale, Tensor& out)
      : dim_(query.size(3)), shared_(query.size(1) / key.size(1)), scale_(float(scale)),
        window_(window.value_or(keys)), query_(query.const_data_ptr(), query), key_(key.const_data_ptr(), key),
        value_(value.const_data_ptr(), value), out_(out.mutable_data_ptr(), out),
        mask_(mask ? static_cast<const uint8_t*>(mask->const_data_ptr()) : nullptr),
        mask_batch_(mask ? mask->stride(0) : 0), mask_row_(mask ? mask->stride(1) : 0),
        mask_key_(mask ? mask->stride(2) : 0) {
    const int64_t padded = (keys + kTogether - 1) / kTogether * kTogether;
    laid_keys_.resize(padded * dim_);
    laid_values_.resize((keys + kStep - 1) / kStep * kStep * dim_);
    laid_queries_.resize(kQueries * dim_);
    scores_.resize(2 * padded);
    visible_.resize(padded);
  }

  // A head of a row of the batch: so many queries, and as many keys, from place `begin` on.
  void operator()(int64_t batch, int64_t head, int64_t begin, int64_t queries, int64_t keys) {
    keys_ = keys;
    hides_ = mask_ || window_ < keys;
    lay_keys(key_.of(batch, head / shared_, begin));
    lay_values(value_.of(batch, head / shared_, begin));
    for (int64_t first = 0; first < queries; first += kQueries) {
      const int64_t n = std::min(kQueries, queries - first);
      const Input* from = query_.of(batch, head, begin + first);
      Input* to = out_.of(batch, head, begin + first);
      n > kLanes ? block<2>(batch, first, n, from, to) : block<1>(batch, first, n, from, to);
    }
  }

 private:
  // [keys, d], zeros behind.
  DLLM_APART void lay_keys(const Input* from) {
    for (int64_t k = 0; k < keys_; ++k, from += key_.row) {
      __builtin_prefetch(from + key_.head, 0, 2);
      convert(from, &laid_keys_[k * dim_]);
    }
  }

  // [keys / kStep, d, kStep], zeros behind.
  DLLM_APART void lay_values(const Input* from) {
    for (int64_t k = 0; k < keys_; k += kStep, from += kStep * value_.row) {
      Number* to = &laid_values_[k * dim_];
      for (int64_t i = 0; i < kStep; ++i) __builtin_prefetch(from + i * value_.row + value_.head, 0, 2);
      if constexpr (kStep == 1) convert(from, to);
      else lay_pairs(from, k + 1 < keys_ ? from + value_.row : nullptr, to);
    }
  }

  void lay_pairs(const Input* first, const Input* second, Number* to) const {
    for (int64_t d = 0; d < dim_; d += kLanes) {  // bits of a bfloat16 are the upper ones of a float
      const vuint low = (vuint)Dtype::load(first + d) >> 16, high = second ? (vuint)Dtype::load(second + d) : vuint{};
      store(reinterpret_cast<float*>(to + d * kStep), (vfloat)(low | high));
    }
  }

  void convert(const Input* from, Number* to) const {
    if constexpr (std::is_same_v<Input, Number>) std::copy(from, from + dim_, to);
    else
      for (int64_t d = 0; d < dim_; d += kLanes) store(to + d, Dtype::load(from + d));
  }

  // [d / kStep, V kLanes, kStep]
  template <int V>
  DLLM_APART void lay_queries(const Input* from, int64_t n) {
    constexpr int64_t kWidth = kStep * kLanes;  // numbers that fill a vector
    Number row[kWidth];
    for (int64_t d = 0; d < dim_; d += kWidth)
      for (int v = 0; v < V; ++v) {
        std::array<vfloat, kLanes> square = {};
        for (int64_t i = 0; i < std::min<int64_t>(kLanes, n - v * kLanes); ++i) {
          const Input* at = from + (v * kLanes + i) * query_.row + d;
          if (d == 0) __builtin_prefetch(at + query_.head, 0, 2);
          if constexpr (std::is_same_v<Input, Number>) std::memcpy(&square[i], at, sizeof row);
          else square[i] = Dtype::load(at);
        }
        transpose(square);
        for (int64_t i = 0; i < kLanes; ++i)
          std::memcpy(&laid_queries_[((d / kStep + i) * V + v) * kWidth], &square[i], sizeof row);
      }
  }

  // Bit i of visible_[k]: whether query `first + i` sees key k. Returns the range of keys that some query sees.
  std::pair<int64_t, int64_t> find_visible(int64_t batch, int64_t first, int64_t n) {
    if (!hides_) return {0, keys_};
    if (!mask_) return find_in_window(first, n);
    std::fill(visible_.begin(), visible_.end(), 0);
    for (int64_t i = 0; i < n; ++i) {
      const uint8_t* row = mask_ + batch * mask_batch_ + (first + i) * mask_row_;
      if (mask_key_ == 1)
        for (int64_t k = 0; k < keys_; ++k) visible_[k] |= uint32_t(row[k]) << i;
      else
        for (int64_t k = 0; k < keys_; ++k) visible_[k] |= uint32_t(row[k * mask_key_]) << i;
    }
    int64_t begin = 0, end = keys_;
    while (begin < end && !visible_[begin]) ++begin;
    while (begin < end && !visible_[end - 1]) --end;
    return {begin / kTogether * kTogether, end};
  }

  // The same where a query at place q sees the keys in (q - window, q + window).
  std::pair<int64_t, int64_t> find_in_window(int64_t first, int64_t n) {
    const int64_t begin = std::max<int64_t>(0, first - window_ + 1) / kTogether * kTogether;
    const int64_t end = std::min(keys_, first + n - 1 + window_);
    for (int64_t k = begin; k < end; ++k) {
      const int64_t low = std::max<int64_t>(0, k - window_ + 1 - first), high = std::min(n, k + window_ - first);
      visible_[k] = low < high ? uint32_t((uint64_t{1} << high) - (uint64_t{1} << low)) : 0;
    }
    return {begin, end};
  }

  template <int V>
  DLLM_APART void block(int64_t batch, int64_t first, int64_t n, const Input* from, Input* to) {
    const auto [begin, end] = find_visible(batch, first, n);
    lay_queries<V>(from, n);
    auto* scores = reinterpret_cast<vfloat(*)[V]>(scores_.data());
    for (int64_t k = begin; k < end; k += kTokens<Factor, V>) {
      const Number* keys = &laid_keys_[k * dim_];
      multiply<Factor, Lanes<vfloat>, V>(
          reinterpret_cast<const float*>(laid_queries_.data()), keys, dim_, dim_ / kStep, keys, scores + k);
    }
    const std::array<vfloat, V> inverse = softmax<V>(scores, begin, end);
    float factors[kQueries];
    std::memcpy(factors, &inverse, sizeof inverse);
    const auto* weights = reinterpret_cast<const Number*>(scores + begin);
    for (int64_t d = 0; d < dim_;) {
      const bool wide = dim_ - d >= 4 * kLanes;
      wide ? add_values<V, 4, 4>(weights, begin, end, d, n, factors, to)
           : add_values<V, 8, 2>(weights, begin, end, d, n, factors, to);
      d += (wide ? 4 : 2) * kLanes;
    }
  }

  // Scores become e^(scale (score - the largest)), as numbers [keys / kStep, V kLanes, kStep]. Returns 1 / their sum; 0
  // for queries that see no key, NaN for those with a score that is no number.
  template <int V>
  DLLM_APART std::array<vfloat, V> softmax(vfloat (*scores)[V], int64_t begin, int64_t end) const {
    std::array<vfloat, V> largest, total = {}, checked = {};
    largest.fill(splat(-kInf));
    for (int64_t k = begin; k < end; ++k)
      for (int v = 0; v < V; ++v) {
        scores[k][v] *= scale_;
        if (hides_) scores[k][v] = as_int(splat(0)) == bits_of(visible_[k], v) ? splat(-kInf) : scores[k][v];
        largest[v] = max(scores[k][v], largest[v]);
      }
    std::array<vfloat, V> from = largest;
    for (vfloat& score : from) score = score == -kInf ? splat(0) : score;
    for (int64_t k = begin; k < end; k += kStep)
      for (int v = 0; v < V; ++v) {
        vfloat numbers[2] = {};
        for (int64_t i = 0; i < std::min(kStep, end - k); ++i) {
          const vfloat x = scores[k + i][v] - from[v];
          checked[v] += x;
          numbers[i] = exponential(x);
          total[v] += numbers[i];
        }
        if constexpr (kStep == 2) scores[begin + (k - begin) / 2][v] = pairs_of(numbers[0], numbers[1]);
        else scores[k][v] = numbers[0];
      }
    std::array<vfloat, V> inverse;
    for (int v = 0; v < V; ++v) {
      inverse[v] = largest[v] == -kInf ? splat(0) : 1.0f / total[v];
      inverse[v] = checked[v] != checked[v] ? checked[v] : inverse[v];
    }
    return inverse;
  }

  // Lanes that are not 0 where bit v kLanes + i is set.
  static vint bits_of(uint32_t bits, int v) {
    vint lane;
    for (int i = 0; i < kLanes; ++i) lane[i] = 1 << i;
    return (vint{} + int32_t(bits >> (v * kLanes))) & lane;
  }

  // Two numbers of at least 0, rounded to bfloat16, in each lane.
  static vfloat pairs_of(vfloat first, vfloat second) {
    const vuint low = (vuint)first, high = (vuint)second;
    return (vfloat)((low + 0x7fff + (low >> 16 & 1)) >> 16 | ((high + 0x7fff + (high >> 16 & 1)) & 0xffff0000));
  }

  // The sums over keys of weights times N vectors of values, from dimension `d` on, for T queries at a time.
  template <int V, int T, int N>
  DLLM_APART void add_values(
      const Number* weights, int64_t begin, int64_t end, int64_t d, int64_t n, const float* factors, Input* to) const {
    const int64_t steps = (end - begin + kStep - 1) / kStep;
    for (int64_t q = 0; q < n; q += T) {
      vfloat sums[T][N] = {};
      const Number* values = &laid_values_[begin * dim_ + d * kStep];
      const Number* weight = weights + q * kStep;
      for (int64_t k = 0; k < steps; ++k, values += dim_ * kStep, weight += V * kLanes * kStep)
        for (int t = 0; t < T; ++t)
          for (int j = 0; j < N; ++j)
            sums[t][j] = Factor::multiply_add(
                weight + t * kStep, load(reinterpret_cast<const float*>(values + j * kLanes * kStep)), sums[t][j]);
      for (int64_t t = 0; t < std::min<int64_t>(T, n - q); ++t)
        for (int j = 0; j < N; ++j)
          Dtype::write(to + (q + t) * out_.row + d + j * kLanes, sums[t][j] * factors[q + t]);
    }
  }

  int64_t keys_ = 0, dim_, shared_;  // query heads of a key's head
  bool hides_ = false;               // whether some query may not see some key
  float scale_;
  int64_t window_;
  Heads<const Input> query_, key_, value_;
  Heads<Input> out_;
  const uint8_t* mask_;
  int64_t mask_batch_, mask_row_, mask_key_;
  std::vector<Number> laid_keys_, laid_values_, laid_queries_;
  std::vector<vfloat> scores_;
  std::vector<uint32_t> visible_;
};

void check_heads(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& out) {
  for (const Tensor* t : {&query, &key, &value, &out})
    STD_TORCH_CHECK(t->size(3) % 32 == 0 && t->stride(3) == 1, "numbers of a head must be adjacent, 32 or a multiple");
}

// query and out [B, heads, L, d], key and value [B, heads of keys, S, d] of one dtype, adjacent along d, a multiple of 32;
// mask bool [B, L, S].
void attention(Tensor query, Tensor key, Tensor value, std::optional<Tensor> mask, double scale, Tensor out) {
  check_heads(query, key, value, out);
  with_dtype_of(query, [&](auto dtype) {
    const int64_t heads = query.size(1), queries = query.size(2), keys = key.size(2);
    torch::stable::parallel_for(0, query.size(0) * heads, 1, [&](int64_t begin, int64_t end) {
      Attention<decltype(dtype)> attention(query, key, value, keys, mask, std::nullopt, scale, out);
      for (int64_t task = begin; task < end; ++task) attention(task / heads, task % heads, 0, queries, keys);
    });
  });
}

// query and out [1, heads, T, d], key and value [1, heads of keys, T, d] as above; ends int32 [rows + 1], from 0 to T.
void packed_attention(
    Tensor query, Tensor key, Tensor value, Tensor ends, std::optional<int64_t> window, double scale, Tensor out) {
  check_heads(query, key, value, out);
  const int64_t rows = ends.size(0) - 1, heads = query.size(1);
  const auto* end_of = static_cast<const int32_t*>(ends.const_data_ptr());
  STD_TORCH_CHECK(
      ends.stride(0) == 1 && rows >= 0 && end_of[0] == 0 && end_of[rows] == query.size(2),
      "ends must go from 0 to the number of tokens");
  int64_t longest = 0;
  for (int64_t row = 0; row < rows; ++row) {
    STD_TORCH_CHECK(end_of[row] <= end_of[row + 1], "ends must not fall");
    longest = std::max<int64_t>(longest, end_of[row + 1] - end_of[row]);
  }
  with_dtype_of(query, [&](auto dtype) {
    // rows are neighbours of a thread, which so has short ones and long ones
    torch::stable::parallel_for(0, heads * rows, 1, [&](int64_t begin, int64_t end) {
      Attention<decltype(dtype)> attention(query, key, value, longest, std::nullopt, window, scale, out);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t row = task % rows, n = end_of[row + 1] - end_of[row];
        attention(0, task / rows, end_of[row], n, n);
      }
    });
  });
}

}  // namespace
}  // namespace dllm

STABLE_TORCH_LIBRARY_IMPL(dllm_kernels, CPU, m) {
  m.impl("attention", TORCH_BOX(&dllm::attention));
  m.impl("packed_attention", TORCH_BOX(&dllm::packed_attention));
}
