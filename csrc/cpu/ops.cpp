// The ops for CPUs as PyTorch sees them: checks, outputs, threads, and the registration. Only
// LibTorch's stable ABI.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "kernels.h"
#include "tensors.h"

namespace metamorph::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// What is worth a thread: less takes less time than it takes to wake one.
constexpr int64_t KEYS_OF_A_THREAD = 4096;
constexpr int64_t PAIRS_OF_A_THREAD = 16384;
constexpr int64_t NUMBERS_OF_A_THREAD = 32768;

// The best kernels that this processor has, or less where PyTorch's own variable asks for less.
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

}  // namespace

const Kernels& kernels() {
  static const Kernels best = best_kernels();
  return best;
}

namespace {

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

// What both kinds of attention over a cache take: q [rows, Hq, D] and caches of its dtype.
template <typename Attention>
Attention attention_of(const Tensor& q, const char* q_letters, const Tensor& keys,
                       const Tensor& values, double scale) {
  const ScalarType type = q.scalar_type();
  require(type == ScalarType::Float || type == ScalarType::BFloat16,
          "q: expected float32 or bfloat16, got ", torch::headeronly::toString(type));
  require_tensor("q", q, 3, q_letters, type);
  require_tensor("k_cache", keys, 4, "[B, S, Hkv, D]", type);
  require_tensor("v_cache", values, 4, "[B, S, Hkv, D]", type);
  Attention arguments = {};
  arguments.query_heads = q.size(1);
  arguments.key_heads = keys.size(2);
  arguments.head_dim = q.size(2);
  for (int64_t i = 0; i < 4; ++i) {
    require(values.size(i) == keys.size(i), "v_cache: expected the shape of k_cache");
  }
  require(keys.size(3) == arguments.head_dim, "k_cache: expected as many columns as q has, ",
          arguments.head_dim, ", got ", keys.size(3));
  require(arguments.key_heads > 0 && arguments.query_heads % arguments.key_heads == 0,
          "q: expected heads in a multiple of the ", arguments.key_heads, " key heads, got ",
          arguments.query_heads);
  arguments.element = type == ScalarType::Float ? Element::FLOAT32 : Element::BFLOAT16;
  arguments.q = {q.const_data_ptr(), q.stride(0), q.stride(1)};
  arguments.keys = cache_of(keys);
  arguments.values = cache_of(values);
  arguments.scale = static_cast<float>(scale);
  return arguments;
}

Tensor decode_attention_op(const Tensor& q, const Tensor& keys, const Tensor& values,
                           const Tensor& lengths, double scale) {
  auto arguments = attention_of<DecodeAttention>(q, "[B, Hq, D]", keys, values, scale);
  const int64_t batch = q.size(0);
  require(keys.size(0) == batch, "k_cache: expected as many sequences as q has, ", batch, ", got ",
          keys.size(0));
  const std::vector<int64_t> counts = lengths_of(lengths, batch, keys.size(1));
  Tensor out = torch::stable::new_zeros(q, {batch, arguments.query_heads, arguments.head_dim});
  arguments.out = out.mutable_data_ptr();
  arguments.lengths = counts.data();

  // Threads share the keys of all heads; a head is for the thread whose share its first key is in.
  int64_t all_keys = 0;
  for (const int64_t count : counts) all_keys += count * arguments.key_heads;
  const auto attend = [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(scratch_floats(arguments, kernels().lanes));
    int64_t first = 0;
    for (int64_t sequence = 0; sequence < batch; ++sequence) {
      for (int64_t head = 0; head < arguments.key_heads && counts[sequence] > 0; ++head) {
        if (begin <= first && first < end) {
          kernels().attend_head(arguments, sequence, head, scratch.data());
        }
        first += counts[sequence];
      }
    }
  };
  if (all_keys > 0) torch::stable::parallel_for(0, all_keys, KEYS_OF_A_THREAD, attend);
  return out;
}

const int32_t* visible_of(const Tensor& visible, int64_t tokens, int64_t places) {
  require(visible.is_cpu() && visible.scalar_type() == ScalarType::Int && visible.dim() == 1 &&
              visible.size(0) == tokens && visible.is_contiguous(),
          "visible: expected a contiguous int32 tensor of shape [", tokens, "] on the CPU");
  const int32_t* found = static_cast<const int32_t*>(visible.const_data_ptr());
  for (int64_t i = 0; i < tokens; ++i) {
    require(0 <= found[i] && found[i] <= places, "visible: expected 0 to ", places, ", got ",
            found[i]);
  }
  return found;
}

std::vector<Block> blocks_of(const Tensor& blocks, const int32_t* visible, int64_t tokens,
                             int64_t sequences) {
  require(blocks.is_cpu() && blocks.scalar_type() == ScalarType::Int && blocks.dim() == 2 &&
              blocks.size(1) == 3 && blocks.is_contiguous(),
          "blocks: expected a contiguous int32 tensor of shape [blocks, 3] on the CPU");
  const int32_t* from = static_cast<const int32_t*>(blocks.const_data_ptr());
  std::vector<Block> found(blocks.size(0));
  for (Block& block : found) {
    block = {from[0], from[1], from[2], 0};
    from += 3;
    require(0 <= block.sequence && block.sequence < sequences,
            "blocks: expected sequences 0 to ", sequences - 1, ", got ", block.sequence);
    require(0 <= block.first && block.first <= block.end && block.end <= tokens,
            "blocks: expected tokens of 0 to ", tokens, ", got ", block.first, " to ", block.end);
    for (int64_t token = block.first; token < block.end; ++token) {
      block.keys = std::max<int64_t>(block.keys, visible[token]);
    }
  }
  return found;
}

Tensor prefill_attention_op(const Tensor& q, const Tensor& keys, const Tensor& values,
                            const Tensor& visible, const Tensor& blocks, double scale) {
  auto arguments = attention_of<PrefillAttention>(q, "[T, Hq, D]", keys, values, scale);
  const int64_t tokens = q.size(0);
  arguments.visible = visible_of(visible, tokens, keys.size(1));
  const auto table = blocks_of(blocks, arguments.visible, tokens, keys.size(0));
  Tensor out = torch::stable::new_zeros(q, {tokens, arguments.query_heads, arguments.head_dim});
  arguments.out = out.mutable_data_ptr();

  // As above, of all pairs of a token and a key; those that a token does not see count, too.
  const auto pairs_of = [](const Block& block) { return (block.end - block.first) * block.keys; };
  int64_t all_pairs = 0, longest = 0;
  for (const Block& block : table) {
    all_pairs += pairs_of(block) * arguments.key_heads;
    longest = std::max(longest, block.end - block.first);
  }
  const auto attend = [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(scratch_floats(arguments, longest, kernels().lanes));
    int64_t first = 0;
    for (const Block& block : table) {
      for (int64_t head = 0; head < arguments.key_heads && pairs_of(block) > 0; ++head) {
        if (begin <= first && first < end) {
          kernels().attend_block(arguments, block, head, scratch.data());
        }
        first += pairs_of(block);
      }
    }
  };
  if (all_pairs > 0) torch::stable::parallel_for(0, all_pairs, PAIRS_OF_A_THREAD, attend);
  return out;
}

const float* floats(const Tensor& tensor) {
  return static_cast<const float*>(tensor.const_data_ptr());
}

// Rows of float32 to threads, each of so many numbers.
template <typename Row>
void for_rows(int64_t rows, int64_t numbers, const Row& row) {
  if (rows == 0) return;
  torch::stable::parallel_for(
      0, rows, NUMBERS_OF_A_THREAD / (numbers + 1) + 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) row(i);
      });
}

Tensor rotate_op(const Tensor& x, const Tensor& cos, const Tensor& sin, int64_t heads) {
  require_tensor("x", x, 3, "[T, H, D]", ScalarType::Float);
  const int64_t tokens = x.size(0), head_dim = x.size(2);
  require(0 <= heads && heads <= x.size(1), "heads: expected 0 to ", x.size(1), ", got ", heads);
  require(x.stride(1) == head_dim || x.size(1) <= 1, "x: expected neighbouring heads in memory");
  require(head_dim % 2 == 0, "x: expected heads of an even number of columns, got ", head_dim);
  for (const auto& [name, table] : {std::pair("cos", &cos), std::pair("sin", &sin)}) {
    require_tensor(name, *table, 3, "[T, 1, D]", ScalarType::Float);
    require(table->size(0) == tokens && table->size(1) == 1 && table->size(2) == head_dim, name,
            ": expected shape [", tokens, ", 1, ", head_dim, "]");
  }
  Tensor out = torch::stable::new_empty(x, {tokens, heads, head_dim});
  float* to = static_cast<float*>(out.mutable_data_ptr());
  const float *from = floats(x), *cosines = floats(cos), *sines = floats(sin);
  const int64_t x_stride = x.stride(0), cos_stride = cos.stride(0), sin_stride = sin.stride(0);
  for_rows(tokens, heads * head_dim, [&](int64_t token) {
    kernels().rotate_token(from + token * x_stride, cosines + token * cos_stride,
                           sines + token * sin_stride, to + token * heads * head_dim, heads,
                           head_dim);
  });
  return out;
}

Tensor rms_norm_op(const Tensor& x, const Tensor& weight, double eps) {
  require_tensor("x", x, 2, "[T, H]", ScalarType::Float);
  require_tensor("weight", weight, 1, "[H]", ScalarType::Float);
  const int64_t tokens = x.size(0), columns = x.size(1);
  require(weight.size(0) == columns, "weight: expected shape [", columns, "], got [",
          weight.size(0), "]");
  Tensor out = torch::stable::new_empty(x, {tokens, columns});
  float* to = static_cast<float*>(out.mutable_data_ptr());
  const float *from = floats(x), *weights = floats(weight);
  const int64_t stride = x.stride(0);
  for_rows(tokens, columns, [&](int64_t token) {
    kernels().norm_row(from + token * stride, weights, to + token * columns, columns,
                       static_cast<float>(eps));
  });
  return out;
}

Tensor swiglu_op(const Tensor& gate_up) {
  require_tensor("gate_up", gate_up, 2, "[T, 2 F]", ScalarType::Float);
  const int64_t tokens = gate_up.size(0), columns = gate_up.size(1) / 2;
  require(gate_up.size(1) == 2 * columns, "gate_up: expected an even number of columns, got ",
          gate_up.size(1));
  Tensor out = torch::stable::new_empty(gate_up, {tokens, columns});
  float* to = static_cast<float*>(out.mutable_data_ptr());
  const float* from = floats(gate_up);
  const int64_t stride = gate_up.stride(0);
  for_rows(tokens, 2 * columns, [&](int64_t token) {
    const float* gate = from + token * stride;
    kernels().swiglu_row(gate, gate + columns, to + token * columns, columns);
  });
  return out;
}

void require_rows(const char* name, const Tensor& cache, const char* rows_name,
                  const Tensor& rows) {
  const ScalarType type = cache.scalar_type();
  require_tensor(name, cache, 4, "[B, S, Hkv, D]", type);
  require_tensor(rows_name, rows, 3, "[N, Hkv, D]", type);
  require(rows.size(1) == cache.size(2) && rows.size(2) == cache.size(3), rows_name,
          ": expected [N, ", cache.size(2), ", ", cache.size(3), "] as ", name, " has, got [N, ",
          rows.size(1), ", ", rows.size(2), "]");
}

// Copies the heads of each token to its place in one of the caches.
void store_rows(const Tensor& cache, const Tensor& rows, const int64_t* sequences,
                const int64_t* places) {
  const int64_t size = cache.element_size(), head_bytes = cache.size(3) * size;
  char* to = static_cast<char*>(cache.mutable_data_ptr());
  const char* from = static_cast<const char*>(rows.const_data_ptr());
  const int64_t sequence_stride = cache.stride(0) * size, place_stride = cache.stride(1) * size;
  const int64_t head_stride = cache.stride(2) * size;
  const int64_t row_stride = rows.stride(0) * size, row_head_stride = rows.stride(1) * size;
  for (int64_t i = 0; i < rows.size(0); ++i) {
    char* place = to + sequences[i] * sequence_stride + places[i] * place_stride;
    for (int64_t head = 0; head < cache.size(2); ++head) {
      std::memcpy(place + head * head_stride, from + i * row_stride + head * row_head_stride,
                  head_bytes);
    }
  }
}

const int64_t* indices(const char* name, const Tensor& tensor, int64_t count, int64_t bound) {
  require(tensor.is_cpu() && tensor.scalar_type() == ScalarType::Long && tensor.dim() == 1 &&
              tensor.size(0) == count && tensor.is_contiguous(),
          name, ": expected a contiguous int64 tensor of shape [", count, "] on the CPU");
  const int64_t* found = static_cast<const int64_t*>(tensor.const_data_ptr());
  for (int64_t i = 0; i < count; ++i) {
    require(0 <= found[i] && found[i] < bound, name, ": expected 0 to ", bound - 1, ", got ",
            found[i]);
  }
  return found;
}

void store_op(Tensor keys, Tensor values, const Tensor& sequences, const Tensor& places,
              const Tensor& k, const Tensor& v) {
  // All before the first is written.
  require_rows("keys", keys, "k", k);
  require_rows("values", values, "v", v);
  require(keys.size(0) == values.size(0) && keys.size(1) == values.size(1),
          "values: expected as many sequences and places as keys has");
  require(k.size(0) == v.size(0), "v: expected ", k.size(0), " rows as k has, got ", v.size(0));
  const int64_t* owners = indices("sequences", sequences, k.size(0), keys.size(0));
  const int64_t* targets = indices("places", places, k.size(0), keys.size(1));
  store_rows(keys, k, owners, targets);
  store_rows(values, v, owners, targets);
}

}  // namespace
}  // namespace metamorph::cpu

STABLE_TORCH_LIBRARY(metamorph_cpu_ops, library) {
  library.def(
      "decode_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor lengths, float scale) "
      "-> Tensor");
  library.def(
      "prefill_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor visible, Tensor blocks, "
      "float scale) -> Tensor");
  library.def("rotate(Tensor x, Tensor cos, Tensor sin, int heads) -> Tensor");
  library.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  library.def("swiglu(Tensor gate_up) -> Tensor");
  library.def(
      "store(Tensor(a!) keys, Tensor(b!) values, Tensor sequences, Tensor places, Tensor k, "
      "Tensor v) -> ()");
}

// For tensors of every device, so that those of a wrong one meet the checks above.
STABLE_TORCH_LIBRARY_IMPL(metamorph_cpu_ops, CompositeExplicitAutograd, library) {
  library.impl("decode_attention", TORCH_BOX(&metamorph::cpu::decode_attention_op));
  library.impl("prefill_attention", TORCH_BOX(&metamorph::cpu::prefill_attention_op));
  library.impl("rotate", TORCH_BOX(&metamorph::cpu::rotate_op));
  library.impl("rms_norm", TORCH_BOX(&metamorph::cpu::rms_norm_op));
  library.impl("swiglu", TORCH_BOX(&metamorph::cpu::swiglu_op));
  library.impl("store", TORCH_BOX(&metamorph::cpu::store_op));
}
