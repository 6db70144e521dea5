// The product of hidden states with a language-model head, stored: threads take stripes of the vocabulary (linear.h).

#include "linear.h"

namespace dllm {
namespace {

// hidden [n, H], weight [V, H] and bias [V] of one dtype, and out [n, V] of the same: columns adjacent everywhere.
void linear(Tensor hidden, Tensor weight, std::optional<Tensor> bias, Tensor out) {
  with_dtype_of(hidden, [&](auto dtype) {
    using Dtype = decltype(dtype);
    const Linear<Dtype> linear(hidden, 0, hidden.size(0), weight, bias);
    auto* to = static_cast<typename Dtype::type*>(out.mutable_data_ptr());
    const int64_t stride = out.stride(0);
    for_each_stripe(weight.size(0), [&] {
      return [&, workspace = typename Linear<Dtype>::Workspace()](
                 int64_t, int64_t begin, int64_t end) mutable {
        for (int64_t block = 0; block < linear.blocks(); ++block) {
          const float* logits = linear(block, begin, end, workspace);
          for (int64_t row = linear.first_row(block); row < linear.first_row(block + 1); ++row, logits += kRow)
            write_all<Dtype>(to + row * stride + begin, logits, end - begin);
        }
      };
    });
  });
}

}  // namespace
}  // namespace dllm

STABLE_TORCH_LIBRARY_IMPL(dllm_kernels, CPU, m) {
  m.impl("linear", TORCH_BOX(&dllm::linear));
}
