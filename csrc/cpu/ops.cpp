// The ops for CPUs as PyTorch sees them: checks, outputs, threads, and the registration. Only
// LibTorch's stable ABI.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

namespace metamorph::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Keys of a head that are worth a thread: fewer take less time than it takes to wake one.
constexpr int64_t KEYS_OF_A_THREAD = 4096;

template <typename... Parts>
void require(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// The best that this processor has, or less where PyTorch's own variable asks for less.
Kernels best_kernels() {
#if defined(__x86_64__)
  const char* variable = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string most = variable == nullptr ? "" : variable;
  if (most == "default") return baseline_kernels();
  if (most != "avx2" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return avx512_kernels();
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2_kernels();
#endif
  return baseline_kernels();
}

void require_tensor(const char* name, const Tensor& tensor, int64_t dimensions,
                    const char* letters, ScalarType type) {
  require(tensor.is_cpu(), name, ": expected a tensor on the CPU");
  require(tensor.dim() == dimensions, name, ": expected shape ", letters, ", got ", tensor.dim(),
          " dimensions");
  require(tensor.scalar_type() == type, name, ": expected ", torch::headeronly::toString(type),
          " as q has, got ", torch::headeronly::toString(tensor.scalar_type()));
  require(tensor.stride(dimensions - 1) == 1 || tensor.size(dimensions - 1) <= 1, name,
          ": expected neighbouring columns in memory, got a stride of ",
          tensor.stride(dimensions - 1));
}

Cache cache_of(const Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

std::vector<int64_t> lengths_of(const Tensor& lengths, int64_t batch, int64_t places) {
  const ScalarType type = lengths.scalar_type();
  require(lengths.is_cpu() && lengths.dim() == 1 && lengths.size(0) == batch &&
              (type == ScalarType::Long || type == ScalarType::Int),
          "lengths: expected int32 or int64 of shape [", batch, "] on the CPU");
  std::vector<int64_t> found(batch);
  for (int64_t i = 0; i < batch; ++i) {
    const int64_t at = i * lengths.stride(0);
    found[i] = type == ScalarType::Long
                   ? static_cast<const int64_t*>(lengths.const_data_ptr())[at]
                   : static_cast<const int32_t*>(lengths.const_data_ptr())[at];
    require(0 <= found[i] && found[i] <= places, "lengths: expected 0 to ", places, ", got ",
            found[i]);
  }
  return found;
}

Tensor decode_attention_op(const Tensor& q, const Tensor& keys, const Tensor& values,
                           const Tensor& lengths, double scale) {
  static const Kernels kernels = best_kernels();
  const ScalarType type = q.scalar_type();
  require(type == ScalarType::Float || type == ScalarType::BFloat16,
          "q: expected float32 or bfloat16, got ", torch::headeronly::toString(type));
  require_tensor("q", q, 3, "[B, Hq, D]", type);
  require_tensor("k_cache", keys, 4, "[B, S, Hkv, D]", type);
  require_tensor("v_cache", values, 4, "[B, S, Hkv, D]", type);
  const int64_t batch = q.size(0), places = keys.size(1);
  DecodeAttention arguments = {};
  arguments.query_heads = q.size(1);
  arguments.key_heads = keys.size(2);
  arguments.head_dim = q.size(2);
  for (int64_t i = 0; i < 4; ++i) {
    require(values.size(i) == keys.size(i), "v_cache: expected the shape of k_cache");
  }
  require(keys.size(0) == batch && keys.size(3) == arguments.head_dim,
          "k_cache: expected as many sequences and columns as q has");
  require(arguments.key_heads > 0 && arguments.query_heads % arguments.key_heads == 0,
          "q: expected heads in a multiple of the ", arguments.key_heads, " key heads, got ",
          arguments.query_heads);
  const std::vector<int64_t> counts = lengths_of(lengths, batch, places);
  Tensor out = torch::stable::new_zeros(q, {batch, arguments.query_heads, arguments.head_dim});
  arguments.element = type == ScalarType::Float ? Element::FLOAT32 : Element::BFLOAT16;
  arguments.q = {q.const_data_ptr(), q.stride(0), q.stride(1)};
  arguments.keys = cache_of(keys);
  arguments.values = cache_of(values);
  arguments.out = out.mutable_data_ptr();
  arguments.lengths = counts.data();
  arguments.scale = static_cast<float>(scale);

  // Threads share the keys of all heads; a head is for the thread whose share its first key is in.
  int64_t all_keys = 0;
  for (const int64_t count : counts) all_keys += count * arguments.key_heads;
  const auto attend = [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(scratch_floats(arguments, kernels.lanes));
    int64_t first = 0;
    for (int64_t sequence = 0; sequence < batch; ++sequence) {
      for (int64_t head = 0; head < arguments.key_heads && counts[sequence] > 0; ++head) {
        if (begin <= first && first < end) {
          kernels.attend_head(arguments, sequence, head, scratch.data());
        }
        first += counts[sequence];
      }
    }
  };
  if (all_keys > 0) torch::stable::parallel_for(0, all_keys, KEYS_OF_A_THREAD, attend);
  return out;
}

}  // namespace
}  // namespace metamorph::cpu

STABLE_TORCH_LIBRARY(metamorph_cpu_ops, library) {
  library.def(
      "decode_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor lengths, float scale) "
      "-> Tensor");
}

// For tensors of every device, so that those of a wrong one meet the checks above.
STABLE_TORCH_LIBRARY_IMPL(metamorph_cpu_ops, CompositeExplicitAutograd, library) {
  library.impl("decode_attention", TORCH_BOX(&metamorph::cpu::decode_attention_op));
}
