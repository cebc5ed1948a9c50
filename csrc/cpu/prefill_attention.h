// Attention of a block of new tokens of one sequence over a cache: a key head at a time, with all
// its queries, keys in tiles, and an online softmax.
#pragma once

#include "kernels.h"
#include "online_softmax.h"
#include "vector.h"

namespace metamorph::cpu {
namespace {

// Scores of QUERIES rows and `count` keys, -inf behind what each row sees, from keys column by
// column, [head_dim][KEYS_AT_ONCE].
template <int QUERIES>
INLINE void score_rows(const float* queries, int64_t width, const float* columns,
                       const int64_t* visible, int64_t count, int64_t head_dim, float scale,
                       float* scores) {
  constexpr int VECTORS = 2;
  Integers lanes;
  for (int lane = 0; lane < LANES; ++lane) lanes[lane] = lane;
  for (int64_t key = 0; key < count; key += VECTORS * LANES) {
    Floats sums[QUERIES][VECTORS] = {};
    for (int64_t column = 0; column < head_dim; ++column) {
      const float* of_column = columns + column * KEYS_AT_ONCE + key;
      const Floats first = load(of_column), second = load(of_column + LANES);
#pragma GCC unroll 4
      for (int query = 0; query < QUERIES; ++query) {
        const float factor = queries[query * width + column];
        sums[query][0] += factor * first;
        sums[query][1] += factor * second;
      }
    }
#pragma GCC unroll 4
    for (int query = 0; query < QUERIES; ++query) {
#pragma GCC unroll 2
      for (int i = 0; i < VECTORS; ++i) {
        const int64_t begin = key + i * LANES;
        const Integers place = lanes + static_cast<int32_t>(begin);
        const Integers bound = Integers{} + static_cast<int32_t>(visible[query]);
        store(scores + query * KEYS_AT_ONCE + begin,
              place < bound ? scale * sums[query][i] : splat(-__builtin_inff()));
      }
    }
  }
}

template <typename Element>
INLINE void attend_piece(const PrefillAttention& a, const Block& block, int64_t key_head,
                         float* scratch) {
  const int64_t group = a.query_heads / a.key_heads, rows = (block.end - block.first) * group;
  const int64_t width = whole_vectors(a.head_dim, LANES);
  float* queries = scratch;  // row by row: the heads of a token are neighbours
  float* results = queries + rows * width;
  Seen* seen = reinterpret_cast<Seen*>(results + rows * width);
  float* columns = reinterpret_cast<float*>(seen + rows);
  float* values = columns + a.head_dim * KEYS_AT_ONCE;
  float* weights = values + width * KEYS_AT_ONCE;
  const auto token_of = [&](int64_t row) { return block.first + row / group; };
  const auto head_of = [&](int64_t row) { return key_head * group + row % group; };
  for (int64_t row = 0; row < rows; ++row) {
    load_row(static_cast<const Element*>(a.q.data) + token_of(row) * a.q.row_stride +
                 head_of(row) * a.q.head_stride,
             queries + row * width, a.head_dim, width);
    std::memset(results + row * width, 0, width * sizeof(float));
    seen[row] = NOTHING;
  }
  const Element* all_keys = at<Element>(a.keys, block.sequence, key_head);
  const Element* all_values = at<Element>(a.values, block.sequence, key_head);
  for (int64_t key = 0; key < block.keys; key += KEYS_AT_ONCE) {
    const int64_t count = block.keys - key < KEYS_AT_ONCE ? block.keys - key : KEYS_AT_ONCE;
    for (int64_t i = 0; i < count; ++i) {
      float* row = values + i * width;  // of the key, and then of the value
      load_row(all_keys + (key + i) * a.keys.place_stride, row, a.head_dim, width);
      for (int64_t column = 0; column < a.head_dim; ++column) {
        columns[column * KEYS_AT_ONCE + i] = row[column];
      }
      load_row(all_values + (key + i) * a.values.place_stride, row, a.head_dim, width);
    }
    for (int64_t row = 0; row < rows; row += QUERIES_AT_ONCE) {
      const auto tile = [&]<int QUERIES>() __attribute__((always_inline)) {
        int64_t visible[QUERIES], some = 0;
        for (int query = 0; query < QUERIES; ++query) {
          const int64_t left = a.visible[token_of(row + query)] - key;
          visible[query] = left < count ? left : count;
          some = visible[query] > some ? visible[query] : some;
        }
        if (some == 0) return;
        score_rows<QUERIES>(queries + row * width, width, columns, visible, some, a.head_dim,
                            a.scale, weights);
        float corrections[QUERIES];
        for (int query = 0; query < QUERIES; ++query) {
          corrections[query] = weigh(weights + query * KEYS_AT_ONCE, some, seen[row + query]);
        }
        add_values<QUERIES>(results + row * width, width, corrections, weights, values, width,
                            some, width);
      };
      switch (rows - row) {
        case 1: tile.template operator()<1>(); break;
        case 2: tile.template operator()<2>(); break;
        case 3: tile.template operator()<3>(); break;
        default: tile.template operator()<4>();
      }
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    if (a.visible[token_of(row)] == 0) continue;
    put_row(static_cast<Element*>(a.out) +
                (token_of(row) * a.query_heads + head_of(row)) * a.head_dim,
            results + row * width, seen[row], a.head_dim);
  }
}

void attend_block(const PrefillAttention& a, const Block& block, int64_t key_head,
                  float* scratch) {
  if (a.element == Element::FLOAT32) {
    attend_piece<float>(a, block, key_head, scratch);
  } else {
    attend_piece<BFloat16>(a, block, key_head, scratch);
  }
}

}  // namespace
}  // namespace metamorph::cpu
