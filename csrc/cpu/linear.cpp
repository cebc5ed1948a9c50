// The op of linear.h as PyTorch sees it.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>

#include "kernels.h"
#include "tensors.h"

namespace metamorph::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t COLUMNS_AT_ONCE = 48;  // whole strips of every level
constexpr int64_t PRODUCTS_OF_A_THREAD = 1 << 18;  // fewer take less time than it takes to wake one

Tensor linear_op(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  require_tensor("x", x, 2, "[M, I]", ScalarType::Float);
  require(weight.is_cpu() && weight.dim() == 2 && weight.scalar_type() == ScalarType::Float,
          "weight: expected float32 of shape [O, I] on the CPU");
  const int64_t rows = x.size(0), inputs = x.size(1), outputs = weight.size(0);
  require(weight.size(1) == inputs, "weight: expected shape [O, ", inputs, "], got [", outputs,
          ", ", weight.size(1), "]");
  require(weight.stride(0) == 1 || outputs <= 1,
          "weight: expected columns that lie together in memory, got a stride of ",
          weight.stride(0));
  if (bias.has_value()) {
    require_tensor("bias", *bias, 1, "[O]", ScalarType::Float);
    require(bias->size(0) == outputs, "bias: expected shape [", outputs, "], got [", bias->size(0),
            "]");
  }
  Tensor out = torch::stable::new_empty(x, {rows, outputs});
  const auto floats = [](const Tensor& tensor) {
    return static_cast<const float*>(tensor.const_data_ptr());
  };
  const Linear arguments = {.x = floats(x),
                            .x_stride = x.stride(0),
                            .weight = floats(weight),
                            .weight_stride = weight.stride(1),
                            .bias = bias.has_value() ? floats(*bias) : nullptr,
                            .out = static_cast<float*>(out.mutable_data_ptr()),
                            .rows = rows,
                            .inputs = inputs,
                            .outputs = outputs};
  const int64_t strips = (outputs + COLUMNS_AT_ONCE - 1) / COLUMNS_AT_ONCE;
  if (rows == 0 || strips == 0) return out;
  const int64_t grain = PRODUCTS_OF_A_THREAD / (rows * (inputs + 1) * COLUMNS_AT_ONCE) + 1;
  torch::stable::parallel_for(0, strips, grain, [&](int64_t begin, int64_t end) {
    kernels().linear_columns(arguments, begin * COLUMNS_AT_ONCE,
                             std::min(end * COLUMNS_AT_ONCE, outputs));
  });
  return out;
}

}  // namespace
}  // namespace metamorph::cpu

STABLE_TORCH_LIBRARY_FRAGMENT(metamorph_cpu_ops, library) {
  library.def("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(metamorph_cpu_ops, CompositeExplicitAutograd, library) {
  library.impl("linear", TORCH_BOX(&metamorph::cpu::linear_op));
}
