// The chosen experts of every token: pairs of token and expert are sorted by expert once, each expert that was chosen is
// one product up and one down (linear.h), and a token's results are added up in its own order. Formulae:
// dllm_kernels/swiglu_experts/api.py.
//
// Sums are those of linear.h, so a token has the same bits whatever is computed beside it. Threads take experts one
// after the other, and parts of their weights where fewer experts than threads were chosen. Rows are quantised before
// both products with weights of 8 bits, and what lies between stays float32.

#include "linear.h"

#include <memory>

namespace dllm {
namespace {

constexpr int64_t kMostPairs = 16 * kLanes;  // of a task: more would meet weights from the same cache no more often

int64_t ceiling(int64_t n, int64_t of) { return (n + of - 1) / of; }

// x / (1 + e^-x)
vfloat silu(vfloat x) { return x / (1.0f + exponential(min(-x, splat(80)))); }

// Memory that nobody has to fill first, with a vector behind it that may be read.
template <typename Number>
std::unique_ptr<Number[]> room(int64_t n) { return std::unique_ptr<Number[]>(new Number[n + kLanes]); }

// Of weights of the dtype Weight and hidden states of the dtype Hidden: the same, or weights of 8 bits with scales.
template <typename Weight, typename Hidden>
class Experts {
  using Number = typename Hidden::type;
  using Input = typename Weight::type;
  using Inner = std::conditional_t<std::is_same_v<Weight, Int8>, Float32, Hidden>;

  // Pairs `first` to `end` in the order of experts, which are of one expert.
  struct Task {
    int64_t expert, first, end;
  };

 public:
  Experts(
      const Tensor& hidden, const Tensor& gate_up, const Tensor& down, const Tensor& index, const Tensor& weights,
      const std::optional<Tensor>& gate_up_scale, const std::optional<Tensor>& down_scale)
      : tokens_(hidden.size(0)), width_(hidden.size(1)), stride_(hidden.stride(0)), inner_(down.size(2)),
        chosen_(index.size(1)), hidden_(static_cast<const Number*>(hidden.const_data_ptr())),
        gate_up_(static_cast<const Input*>(gate_up.const_data_ptr())),
        down_(static_cast<const Input*>(down.const_data_ptr())), gate_up_scale_(numbers(gate_up_scale)),
        down_scale_(numbers(down_scale)), weights_(static_cast<const float*>(weights.const_data_ptr())),
        activated_(room<typename Inner::type>(pairs() * inner_)), results_(room<Number>(pairs() * width_)) {
    sort(static_cast<const int64_t*>(index.const_data_ptr()), down.size(0));
  }

  void operator()(Number* out) const {
    each_part(inner_, [&](const Task& task, int64_t begin, int64_t end, Workspace& with) {
      go_up(task, begin, end, with);
    });
    each_part(width_, [&](const Task& task, int64_t begin, int64_t end, Workspace& with) {
      go_down(task, begin, end, with);
    });
    torch::stable::parallel_for(0, tokens_, 16, [&](int64_t begin, int64_t end) {
      for (int64_t token = begin; token < end; ++token) add_up(token, out + token * width_);
    });
  }

 private:
  // What a thread writes into.
  struct Workspace {
    typename Linear<Weight, Hidden>::Workspace gate, up;
    typename Linear<Weight, Inner>::Workspace down;
  };

  static const float* numbers(const std::optional<Tensor>& scale) {
    return scale ? static_cast<const float*>(scale->const_data_ptr()) : nullptr;
  }

  // The scales of an expert's matrix of so many rows.
  static const float* of_expert(const float* scales, int64_t expert, int64_t rows) {
    return scales ? scales + expert * rows : nullptr;
  }

  int64_t pairs() const { return tokens_ * chosen_; }

  void sort(const int64_t* index, int64_t experts) {
    std::vector<int64_t> next(experts + 1);
    for (int64_t pair = 0; pair < pairs(); ++pair) {
      STD_TORCH_CHECK(0 <= index[pair] && index[pair] < experts, "index must name experts from 0 on");
      ++next[index[pair] + 1];
    }
    for (int64_t expert = 0; expert < experts; ++expert) {
      const int64_t begin = next[expert], end = next[expert + 1] += begin;
      for (int64_t first = begin; first < end; first += kMostPairs)
        tasks_.push_back({expert, first, std::min(first + kMostPairs, end)});
    }
    order_.resize(pairs());
    for (int64_t pair = 0; pair < pairs(); ++pair) order_[next[index[pair]]++] = pair;
  }

  // Calls use(task, begin, end, workspace) for every task and every part of so many columns of results.
  template <typename Use>
  void each_part(int64_t columns, const Use& use) const {
    const int64_t tasks = tasks_.size(), threads = torch::stable::get_num_threads();
    const int64_t most = std::min(ceiling(columns, kGroup), tasks < 2 * threads ? ceiling(2 * threads, tasks) : 1);
    const int64_t part = ceiling(ceiling(columns, most), kLanes) * kLanes, parts = ceiling(columns, part);
    for_each_stripe(tasks * parts, [&] {
      return [&, workspace = Workspace()](int64_t at, int64_t, int64_t) mutable {
        const int64_t begin = at % parts * part;
        use(tasks_[at / parts], begin, std::min(begin + part, columns), workspace);
      };
    }, 1);
  }

  // silu(W_gate h) * (W_up h), columns `begin` to `end`.
  void go_up(const Task& task, int64_t begin, int64_t end, Workspace& with) const {
    const int64_t n = task.end - task.first;
    std::vector<Number> rows(n * width_);
    for (int64_t i = 0; i < n; ++i)
      std::copy_n(hidden_ + order_[task.first + i] / chosen_ * stride_, width_, &rows[i * width_]);
    const Linear<Weight, Hidden> linear(
        rows.data(), width_, n, width_, gate_up_ + task.expert * 2 * inner_ * width_, width_, 2 * inner_, nullptr,
        of_expert(gate_up_scale_, task.expert, 2 * inner_));
    auto* to = activated_.get() + task.first * inner_;
    for (; begin < end; begin += kStripe) {
      const int64_t stripe_end = std::min(begin + kStripe, end);
      for (int64_t block = 0; block < linear.blocks(); ++block) {
        const float* gates = linear(block, begin, stripe_end, with.gate) - linear.first_row(block) * kRow - begin;
        linear.each(block, inner_ + begin, inner_ + stripe_end, with.up, [&](int64_t row, int64_t token, vfloat up) {
          const int64_t column = token - inner_;
          const vfloat gate = load(gates + row * kRow + column);
          write_few<Inner>(to + row * inner_ + column, silu(gate) * up, stripe_end - column);
        });
      }
    }
  }

  // W_down of that, columns `begin` to `end`, to the places of the pairs.
  void go_down(const Task& task, int64_t begin, int64_t end, Workspace& with) const {
    const Linear<Weight, Inner> linear(
        activated_.get() + task.first * inner_, inner_, task.end - task.first, inner_,
        down_ + task.expert * width_ * inner_, inner_, width_, nullptr, of_expert(down_scale_, task.expert, width_));
    for (; begin < end; begin += kStripe) {
      const int64_t stripe_end = std::min(begin + kStripe, end);
      for (int64_t block = 0; block < linear.blocks(); ++block)
        linear.each(block, begin, stripe_end, with.down, [&](int64_t row, int64_t column, vfloat numbers) {
          write_few<Hidden>(
              results_.get() + order_[task.first + row] * width_ + column, numbers, stripe_end - column);
        });
    }
  }

  void add_up(int64_t token, Number* out) const {
    const Number* of_token = results_.get() + token * chosen_ * width_;
    for (int64_t column = 0; column < width_; column += kLanes) {
      vfloat sum = {};
      for (int64_t j = 0; j < chosen_; ++j)
        sum = multiply_add(
            splat(weights_[token * chosen_ + j]), Hidden::load(of_token + j * width_ + column), sum);
      write_few<Hidden>(out + column, sum, width_ - column);
    }
  }

  int64_t tokens_, width_, stride_, inner_, chosen_;
  const Number* hidden_;
  const Input *gate_up_, *down_;
  const float *gate_up_scale_, *down_scale_, *weights_;
  std::vector<Task> tasks_;
  std::vector<int64_t> order_;  // pairs, token by token, in the order of their experts
  std::unique_ptr<typename Inner::type[]> activated_;
  std::unique_ptr<Number[]> results_;
};

// hidden and out [T, H] of one dtype; gate_up [E, 2 I, H] and down [E, H, I] of the same, or int8 with gate_up_scale
// [E, 2 I] and down_scale [E, H] in float32; index int64 and weights float32 [T, k]. All but the rows of hidden adjacent.
void swiglu_experts(
    Tensor hidden, Tensor gate_up, Tensor down, Tensor index, Tensor weights, std::optional<Tensor> gate_up_scale,
    std::optional<Tensor> down_scale, Tensor out) {
  with_dtype_of(hidden, [&](auto dtype) {
    using Hidden = decltype(dtype);
    const auto run = [&](auto of_weights) {
      const Experts<decltype(of_weights), Hidden> experts(
          hidden, gate_up, down, index, weights, gate_up_scale, down_scale);
      experts(static_cast<typename Hidden::type*>(out.mutable_data_ptr()));
    };
    gate_up_scale ? run(Int8()) : run(dtype);
  });
}

}  // namespace
}  // namespace dllm

STABLE_TORCH_LIBRARY_IMPL(dllm_kernels, CPU, m) { m.impl("swiglu_experts", TORCH_BOX(&dllm::swiglu_experts)); }
