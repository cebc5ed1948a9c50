// The ops as PyTorch sees them: checks, outputs, and the registration. Only LibTorch's stable ABI.
#define USE_CUDA  // for the declaration of aoti_torch_get_current_cuda_stream
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "kernels.h"
#include "require.h"

// Weak, because a PyTorch without CUDA does not have it and shall load the library all the same.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(
    int32_t device_index, void** ret_stream);

namespace metamorph {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Element element_of(const char* name, const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  if (type == ScalarType::BFloat16) return Element::BFLOAT16;
  if (type == ScalarType::Half) return Element::FLOAT16;
  require(type == ScalarType::Float, name, ": expected float32, bfloat16 or float16, got ",
          torch::headeronly::toString(type));
  return Element::FLOAT32;
}

// The rows of a tensor whose last two dimensions are rows and columns.
Rows rows_of(const char* name, const Tensor& tensor, int64_t dimensions, const char* letters) {
  require(tensor.is_cuda(), name, ": expected a tensor on a CUDA device");
  require(tensor.dim() == dimensions, name, ": expected shape ", letters, ", got ", tensor.dim(),
          " dimensions");
  const int64_t columns = tensor.size(dimensions - 1);
  require(1 <= columns && columns <= MOST_COLUMNS, name, ": expected from 1 to ", MOST_COLUMNS,
          " columns, got ", columns);
  require(tensor.stride(dimensions - 1) == 1 || columns == 1, name,
          ": expected neighbouring columns in memory, got a stride of ",
          tensor.stride(dimensions - 1));
  return {tensor.const_data_ptr(), element_of(name, tensor), tensor.stride(dimensions - 2)};
}

void require_same_device(const char* name, const Tensor& tensor, const Tensor& first) {
  require(tensor.is_cuda() && tensor.get_device_index() == first.get_device_index(), name,
          ": expected a tensor on CUDA device ", first.get_device_index());
}

// Runs `launch` on the current stream of the tensor's device.
template <typename Launch>
void on_device_of(const Tensor& tensor, const char* op, const Launch& launch) {
  const int32_t device = tensor.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const cudaError_t error = launch(static_cast<cudaStream_t>(stream));
  require(error == cudaSuccess, op, ": the launch failed: ", cudaGetErrorString(error));
}

std::tuple<Tensor, Tensor> cosine_rows_op(
    const Tensor& prediction, const Tensor& target, const std::optional<Tensor>& target_index,
    bool with_gradient, bool mean, const std::optional<Tensor>& count) {
  CosineRows arguments = {};
  arguments.prediction = rows_of("prediction", prediction, 2, "[N, C]");
  arguments.target = rows_of("target", target, 2, "[M, C]");
  arguments.rows = prediction.size(0);
  arguments.targets = target.size(0);
  arguments.columns = prediction.size(1);
  require_same_device("target", target, prediction);
  require(target.size(1) == arguments.columns, "target: expected ", arguments.columns,
          " columns as prediction has, got ", target.size(1));
  if (target_index.has_value()) {
    require_same_device("target_index", *target_index, prediction);
    require(target_index->scalar_type() == ScalarType::Long && target_index->dim() == 1 &&
                target_index->size(0) == arguments.rows && target_index->is_contiguous(),
            "target_index: expected a contiguous int64 tensor of shape [", arguments.rows, "]");
    arguments.target_index = static_cast<const int64_t*>(target_index->const_data_ptr());
  } else {
    require(arguments.targets == arguments.rows, "target: expected ", arguments.rows,
            " rows as prediction has, got ", arguments.targets);
  }
  arguments.mean = mean;
  require(count.has_value() == (mean && target_index.has_value()),
          "count: expected for a mean with target_index, and for nothing else");
  if (count.has_value()) {
    require_same_device("count", *count, prediction);
    require(count->scalar_type() == ScalarType::Long && count->dim() == 0,
            "count: expected an int64 tensor of shape []");
    arguments.count = static_cast<const int64_t*>(count->const_data_ptr());
  }
  Tensor losses = torch::stable::new_empty(prediction, {arguments.rows}, ScalarType::Float);
  const ScalarType gradient_type = arguments.prediction.element == Element::FLOAT16
                                       ? ScalarType::Float
                                       : prediction.scalar_type();
  Tensor gradient =
      with_gradient ? torch::stable::new_empty(
                          prediction, {arguments.rows, arguments.columns}, gradient_type)
                    : torch::stable::new_empty(prediction, {0}, gradient_type);
  arguments.losses = static_cast<float*>(losses.mutable_data_ptr());
  if (with_gradient) arguments.gradient = gradient.mutable_data_ptr();
  on_device_of(prediction, "cosine_rows",
               [&](cudaStream_t stream) { return cosine_rows(arguments, stream); });
  return {losses, gradient};
}

Tensor pool_normalize_op(const Tensor& features, int64_t grid) {
  PoolNormalize arguments = {};
  arguments.tokens = rows_of("features", features, 3, "[B, N, C]");
  arguments.image_stride = features.stride(0);
  arguments.images = features.size(0);
  arguments.columns = features.size(2);
  const int64_t side = std::llround(std::sqrt(static_cast<double>(features.size(1))));
  require(side > 0 && side <= INT32_MAX && side * side == features.size(1),
          "features: expected [B, N, C] with N a square, got N = ", features.size(1));
  require(0 < grid && grid <= INT16_MAX, "grid: expected from 1 to ", INT16_MAX, ", got ", grid);
  arguments.side = static_cast<int>(side);
  arguments.grid = static_cast<int>(grid);
  Tensor pooled = torch::stable::new_empty(
      features, {arguments.images, grid * grid, arguments.columns});
  arguments.pooled = pooled.mutable_data_ptr();
  on_device_of(features, "pool_normalize",
               [&](cudaStream_t stream) { return pool_normalize(arguments, stream); });
  return pooled;
}

std::tuple<Tensor, Tensor> quantise_rows_op(const Tensor& x, bool gelu) {
  QuantiseRows arguments = {};
  arguments.x = rows_of("x", x, 2, "[N, C]");
  arguments.rows = x.size(0);
  arguments.columns = x.size(1);
  arguments.with_gelu = gelu;
  Tensor values = torch::stable::new_empty(
      x, {arguments.rows, arguments.columns}, ScalarType::Float8_e4m3fn);
  Tensor scales = torch::stable::new_empty(x, {arguments.rows}, ScalarType::Float);
  arguments.values = values.mutable_data_ptr();
  arguments.scales = static_cast<float*>(scales.mutable_data_ptr());
  on_device_of(x, "quantise_rows",
               [&](cudaStream_t stream) { return quantise_rows(arguments, stream); });
  return {values, scales};
}

void scale_op(Tensor values, const Tensor& factor) {
  require(values.is_cuda(), "values: expected a tensor on a CUDA device");
  require(values.is_contiguous(), "values: expected a contiguous tensor");
  require_same_device("factor", factor, values);
  require(factor.scalar_type() == ScalarType::Float && factor.dim() <= 1 && factor.numel() == 1,
          "factor: expected a float32 tensor of shape [] or [1]");
  Scale arguments = {};
  arguments.element = element_of("values", values);
  arguments.values = values.mutable_data_ptr();
  arguments.count = values.numel();
  arguments.factor = static_cast<const float*>(factor.const_data_ptr());
  on_device_of(values, "scale_", [&](cudaStream_t stream) { return scale(arguments, stream); });
}

}  // namespace
}  // namespace metamorph

STABLE_TORCH_LIBRARY(metamorph_ops, library) {
  library.def(
      "cosine_rows(Tensor prediction, Tensor target, Tensor? target_index, bool with_gradient, "
      "bool mean, Tensor? count) -> (Tensor, Tensor)");
  library.def("pool_normalize(Tensor features, int grid) -> Tensor");
  library.def("quantise_rows(Tensor x, bool gelu) -> (Tensor, Tensor)");
  library.def("scale_(Tensor(a!) values, Tensor factor) -> ()");
}

// For tensors of every device, so that those of a wrong one meet the checks above.
STABLE_TORCH_LIBRARY_IMPL(metamorph_ops, CompositeExplicitAutograd, library) {
  library.impl("cosine_rows", TORCH_BOX(&metamorph::cosine_rows_op));
  library.impl("pool_normalize", TORCH_BOX(&metamorph::pool_normalize_op));
  library.impl("quantise_rows", TORCH_BOX(&metamorph::quantise_rows_op));
  library.impl("scale_", TORCH_BOX(&metamorph::scale_op));
}
