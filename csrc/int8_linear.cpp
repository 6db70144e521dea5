// A linear layer with weights of 8 bits: rows are quantised, multiplied, scaled and written in one pass. Threads share
// the rows, or the weight's where there are few. Formulae: dllm_kernels/int8_linear/api.py.

#include "linear.h"

namespace dllm {
namespace {

constexpr int64_t kMostRows = 8 * kLanes;  // of a task: they stay in the second cache, and a stripe of weights meets all

int64_t ceiling(int64_t n, int64_t of) { return (n + of - 1) / of; }

// hidden [n, H] and out [n, V] of one dtype, weight [V, H] int8, scale [V] and bias [V] float32: columns adjacent.
void int8_linear(Tensor hidden, Tensor weight, Tensor scale, std::optional<Tensor> bias, Tensor out) {
  const int64_t n = hidden.size(0), vocab_size = weight.size(0), threads = torch::stable::get_num_threads();
  const int64_t rows = std::min(kMostRows, ceiling(ceiling(n, threads), kLanes) * kLanes), blocks = ceiling(n, rows);
  const int64_t parts = std::min(ceiling(threads, blocks), ceiling(vocab_size, kGroup));
  const int64_t tokens = ceiling(ceiling(vocab_size, parts), kGroup) * kGroup;
  with_dtype_of(hidden, [&](auto dtype) {
    using Dtype = decltype(dtype);
    auto* to = static_cast<typename Dtype::type*>(out.mutable_data_ptr());
    const int64_t stride = out.stride(0);
    torch::stable::parallel_for(0, blocks * parts, 1, [&](int64_t first_task, int64_t end_task) {
      for (int64_t task = first_task; task < end_task; ++task) {
        const int64_t first = task / parts * rows, part = task % parts * tokens;
        const Linear<Int8, Dtype> linear(hidden, first, std::min(rows, n - first), weight, bias, scale);
        typename Linear<Int8, Dtype>::Workspace workspace;
        const int64_t last = std::min(part + tokens, vocab_size);
        for (int64_t begin = part; begin < last; begin += kStripe) {
          const int64_t end = std::min(begin + kStripe, last);
          for (int64_t block = 0; block < linear.blocks(); ++block)
            linear.each(block, begin, end, workspace, [&](int64_t row, int64_t token, vfloat numbers) {
              write_few<Dtype>(to + (first + row) * stride + token, numbers, end - token);
            });
        }
      }
    });
  });
}

}  // namespace
}  // namespace dllm

STABLE_TORCH_LIBRARY_IMPL(dllm_kernels, CPU, m) { m.impl("int8_linear", TORCH_BOX(&dllm::int8_linear)); }
