// What the kernels for CPUs take, in plain C++, and the levels of instructions that they exist for.
#pragma once

#include <cstdint>

namespace metamorph::cpu {

enum class Element { FLOAT32, BFLOAT16 };

// A tensor whose last dimension lies together in memory; strides are counted in elements.
struct Heads {
  const void* data;
  int64_t row_stride, head_stride;
};

struct Cache {
  const void* data;
  int64_t sequence_stride, place_stride, head_stride;
};

// out = softmax(scale q k^T) v of one query a sequence over the first lengths[b] places of a cache.
struct DecodeAttention {
  Element element;
  Heads q;              // [B, Hq, D]
  Cache keys, values;   // [B, S, Hkv, D]
  void* out;            // [B, Hq, D], dense
  const int64_t* lengths;  // [B], each in 1..S for the sequences that a kernel is asked for
  int64_t query_heads, key_heads, head_dim;
  float scale;
};

// out = softmax(scale q k^T) v of T new tokens: each sees the first places of its sequence.
struct PrefillAttention {
  Element element;
  Heads q;                 // [T, Hq, D]
  Cache keys, values;      // [B, S, Hkv, D]
  void* out;               // [T, Hq, D], dense, zeros
  const int32_t* visible;  // [T], each in 0..S
  int64_t query_heads, key_heads, head_dim;
  float scale;
};

// Tokens first to end - 1, all of one sequence, and the most places that one of them sees.
struct Block {
  int64_t sequence, first, end, keys;
};

// out = x W^T + bias of a few rows, in float32; W is stored column after column.
struct Linear {
  const float* x;  // [rows, inputs]
  int64_t x_stride;
  const float* weight;  // its column k at weight + k weight_stride
  int64_t weight_stride;
  const float* bias;  // [outputs], or nullptr
  float* out;         // [rows, outputs], dense
  int64_t rows, inputs, outputs;
};

// The queries of one key head of one sequence. `scratch` are floats of the thread's own.
using AttendHead = void (*)(const DecodeAttention&, int64_t sequence, int64_t key_head,
                            float* scratch);
// The same of one block.
using AttendBlock = void (*)(const PrefillAttention&, const Block&, int64_t key_head,
                             float* scratch);

// The heads of one token: cos and sin are as long as a head, the sign of the first half in sin.
using RotateToken = void (*)(const float* from, const float* cos, const float* sin, float* to,
                             int64_t heads, int64_t head_dim);
using NormRow = void (*)(const float* from, const float* weight, float* to, int64_t columns,
                         float eps);
using SwigluRow = void (*)(const float* gate, const float* up, float* to, int64_t columns);
// Some of the columns of a `Linear`.
using LinearColumns = void (*)(const Linear&, int64_t first, int64_t last);
using LargestOfRow = int64_t (*)(const float* row, int64_t columns);

struct Kernels {
  int64_t lanes;  // floats of a vector
  AttendHead attend_head;
  AttendBlock attend_block;
  RotateToken rotate_token;
  NormRow norm_row;
  SwigluRow swiglu_row;
  LargestOfRow largest_of_row;
  LinearColumns linear_columns;
};

constexpr int64_t KEYS_AT_ONCE = 64;    // of which scores are held
constexpr int64_t QUERIES_AT_ONCE = 4;  // that share a load of a value

// Of each level its own, as it must not lend its code to another.
static inline int64_t whole_vectors(int64_t columns, int64_t lanes) {
  return (columns + lanes - 1) / lanes * lanes;
}

// What `attend_head` needs: a query and a result in whole vectors, a maximum and a sum for each
// query of a key head, and scores.
inline int64_t scratch_floats(const DecodeAttention& a, int64_t lanes) {
  const int64_t width = whole_vectors(a.head_dim, lanes);
  return a.query_heads / a.key_heads * (2 * width + 2) + QUERIES_AT_ONCE * KEYS_AT_ONCE;
}

// What `attend_block` needs for so many tokens: the same for all of their queries, and a tile of
// keys and values.
inline int64_t scratch_floats(const PrefillAttention& a, int64_t tokens, int64_t lanes) {
  const int64_t width = whole_vectors(a.head_dim, lanes);
  return a.query_heads / a.key_heads * tokens * (2 * width + 2) +
         KEYS_AT_ONCE * (a.head_dim + width + QUERIES_AT_ONCE);
}

// The best kernels that this processor has.
const Kernels& kernels();

// The same source compiled for each level; a level is called on processors that have it only.
Kernels baseline_kernels();
#if defined(__x86_64__)
Kernels avx2_kernels();
Kernels avx512_kernels();
#endif

}  // namespace metamorph::cpu
