// How every op for CPUs checks a tensor. With PyTorch's headers, of which only the stable ABI.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "../require.h"

namespace metamorph::cpu {

inline void require_tensor(const char* name, const torch::stable::Tensor& tensor,
                           int64_t dimensions, const char* letters,
                           torch::headeronly::ScalarType type) {
  require(tensor.is_cpu(), name, ": expected a tensor on the CPU");
  require(tensor.dim() == dimensions, name, ": expected shape ", letters, ", got ", tensor.dim(),
          " dimensions");
  require(tensor.scalar_type() == type, name, ": expected ", torch::headeronly::toString(type),
          ", got ", torch::headeronly::toString(tensor.scalar_type()));
  require(tensor.stride(dimensions - 1) == 1 || tensor.size(dimensions - 1) <= 1, name,
          ": expected neighbouring columns in memory, got a stride of ",
          tensor.stride(dimensions - 1));
}

}  // namespace metamorph::cpu
