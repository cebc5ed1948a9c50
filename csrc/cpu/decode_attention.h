// Attention of one query a sequence over a cache: a key head at a time, with all its queries, keys
// in tiles, and an online softmax.
#pragma once

#include "kernels.h"
#include "online_softmax.h"
#include "vector.h"

namespace metamorph::cpu {
namespace {

// The products of a query and a key, added up by lanes. A query has zeros behind its columns.
template <typename Element>
INLINE Floats products(const float* query, const Element* key, int64_t head_dim) {
  Floats sums = {};
  int64_t column = 0;
  for (; column + LANES <= head_dim; column += LANES) {
    sums += load(query + column) * load(key + column);
  }
  if (column < head_dim) {
    sums += load(query + column) * load_some(key + column, head_dim - column);
  }
  return sums;
}

// Asks for the rows of the next tile while this one is computed: a cache is longer than processors
// look ahead by themselves.
template <typename Element>
INLINE void fetch(const Element* rows, int64_t place_stride, int64_t count, int64_t head_dim) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t column = 0; column < head_dim; column += 64 / sizeof(Element)) {
      __builtin_prefetch(rows + i * place_stride + column);
    }
  }
}

// Scores of the next LANES of `count` keys; -inf in the lanes behind them. With VECTORS of a head
// known, nothing is left to loop over.
template <int VECTORS, typename Element>
Floats scores(const float* query, const Element* keys, int64_t place_stride, int64_t count,
              int64_t columns, float scale) {
  const int64_t head_dim = VECTORS > 0 ? VECTORS * LANES : columns;
  if (count >= LANES) {
    return scale * sums_of<0, LANES>([&](int i) __attribute__((always_inline)) {
      return products(query, keys + i * place_stride, head_dim);
    });
  }
  Floats found = splat(-__builtin_inff());
  for (int64_t i = 0; i < count; ++i) {
    found[i] = scale * sum_of(products(query, keys + i * place_stride, head_dim));
  }
  return found;
}

template <typename Element>
using Scores = Floats (*)(const float*, const Element*, int64_t, int64_t, int64_t, float);

template <typename Element>
INLINE Scores<Element> scores_of(int64_t head_dim) {
  switch (head_dim) {
    case 1 * LANES: return scores<1, Element>;
    case 2 * LANES: return scores<2, Element>;
    case 4 * LANES: return scores<4, Element>;
    case 8 * LANES: return scores<8, Element>;
    default: return scores<0, Element>;
  }
}

template <int QUERIES, typename Element>
void attend_tile(const float* queries, float* results, int64_t width, Seen* seen,
                 Scores<Element> scores, const Element* keys, int64_t key_stride,
                 const Element* values, int64_t value_stride, int64_t count, int64_t next,
                 int64_t head_dim, float scale, float* weights) {
  for (int64_t key = 0; key < count; key += LANES) {
    if (key < next) {
      const int64_t some = next - key < LANES ? next - key : LANES, ahead = key + KEYS_AT_ONCE;
      fetch(keys + ahead * key_stride, key_stride, some, head_dim);
      fetch(values + ahead * value_stride, value_stride, some, head_dim);
    }
    for (int query = 0; query < QUERIES; ++query) {
      store(weights + query * KEYS_AT_ONCE + key,
            scores(queries + query * width, keys + key * key_stride, key_stride, count - key,
                   head_dim, scale));
    }
  }
  float corrections[QUERIES];
  for (int query = 0; query < QUERIES; ++query) {
    corrections[query] = weigh(weights + query * KEYS_AT_ONCE, count, seen[query]);
  }
  add_values<QUERIES>(results, width, corrections, weights, values, value_stride, count, head_dim);
}

template <typename Element>
INLINE void attend(const DecodeAttention& a, int64_t sequence, int64_t key_head, float* scratch) {
  const int64_t group = a.query_heads / a.key_heads, first = key_head * group;
  const int64_t width = whole_vectors(a.head_dim, LANES);
  float* queries = scratch;
  float* results = queries + group * width;
  Seen* seen = reinterpret_cast<Seen*>(results + group * width);
  float* weights = reinterpret_cast<float*>(seen + group);
  for (int64_t query = 0; query < group; ++query) {
    load_row(static_cast<const Element*>(a.q.data) + sequence * a.q.row_stride +
                 (first + query) * a.q.head_stride,
             queries + query * width, a.head_dim, width);
    std::memset(results + query * width, 0, width * sizeof(float));
    seen[query] = NOTHING;
  }
  const Scores<Element> scores = scores_of<Element>(a.head_dim);
  const Element* keys = at<Element>(a.keys, sequence, key_head);
  const Element* values = at<Element>(a.values, sequence, key_head);
  const int64_t length = a.lengths[sequence];
  for (int64_t key = 0; key < length; key += KEYS_AT_ONCE) {
    const int64_t count = length - key < KEYS_AT_ONCE ? length - key : KEYS_AT_ONCE;
    const int64_t left = length - key - count;
    const int64_t next = left < KEYS_AT_ONCE ? left : KEYS_AT_ONCE;  // keys of the next tile
    for (int64_t query = 0; query < group; query += QUERIES_AT_ONCE) {
      const auto tile = [&]<int QUERIES>() __attribute__((always_inline)) {
        attend_tile<QUERIES>(queries + query * width, results + query * width, width, seen + query,
                             scores, keys + key * a.keys.place_stride, a.keys.place_stride,
                             values + key * a.values.place_stride, a.values.place_stride, count,
                             query == 0 ? next : 0, a.head_dim, a.scale, weights);
      };
      switch (group - query) {
        case 1: tile.template operator()<1>(); break;
        case 2: tile.template operator()<2>(); break;
        case 3: tile.template operator()<3>(); break;
        default: tile.template operator()<4>();
      }
    }
  }
  Element* out = static_cast<Element*>(a.out) +
                 (sequence * a.query_heads + first) * a.head_dim;
  for (int64_t query = 0; query < group; ++query) {
    put_row(out + query * a.head_dim, results + query * width, seen[query], a.head_dim);
  }
}

void attend_head(const DecodeAttention& a, int64_t sequence, int64_t key_head, float* scratch) {
  if (a.element == Element::FLOAT32) {
    attend<float>(a, sequence, key_head, scratch);
  } else {
    attend<BFloat16>(a, sequence, key_head, scratch);
  }
}

}  // namespace
}  // namespace metamorph::cpu
