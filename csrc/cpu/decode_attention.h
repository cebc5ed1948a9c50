// Attention of one query a sequence over a cache: a key head at a time, with all its queries, keys
// in tiles, and an online softmax.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace metamorph::cpu {
namespace {

template <typename Element>
INLINE const Element* at(const Cache& cache, int64_t sequence, int64_t head) {
  return static_cast<const Element*>(cache.data) + sequence * cache.sequence_stride +
         head * cache.head_stride;
}

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

// Scores of the next LANES of `count` keys; -inf in the lanes behind them.
template <typename Element>
Floats scores(const float* query, const Element* keys, int64_t place_stride, int64_t count,
              int64_t head_dim, float scale) {
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

// results = results * corrections + weights * values, for QUERIES rows and VECTORS vectors of each.
template <int QUERIES, int VECTORS, typename Load>
INLINE void add_values(float* results, int64_t width, const float* corrections,
                       const float* weights, int64_t count, const Load& load_value) {
  Floats sums[QUERIES][VECTORS];
#pragma GCC unroll 4
  for (int query = 0; query < QUERIES; ++query) {
#pragma GCC unroll 4
    for (int i = 0; i < VECTORS; ++i) {
      sums[query][i] = load(results + query * width + i * LANES) * corrections[query];
    }
  }
  for (int64_t key = 0; key < count; ++key) {
    Floats value[VECTORS];
#pragma GCC unroll 4
    for (int i = 0; i < VECTORS; ++i) value[i] = load_value(key, i);
#pragma GCC unroll 4
    for (int query = 0; query < QUERIES; ++query) {
      const float weight = weights[query * KEYS_AT_ONCE + key];
#pragma GCC unroll 4
      for (int i = 0; i < VECTORS; ++i) sums[query][i] += weight * value[i];
    }
  }
#pragma GCC unroll 4
  for (int query = 0; query < QUERIES; ++query) {
#pragma GCC unroll 4
    for (int i = 0; i < VECTORS; ++i) store(results + query * width + i * LANES, sums[query][i]);
  }
}

template <int QUERIES, typename Element>
void attend_tile(const float* queries, float* results, int64_t width, float* largest,
                        float* sums, const Element* keys, int64_t key_stride,
                        const Element* values, int64_t value_stride, int64_t count,
                        int64_t next, int64_t head_dim, float scale, float* weights) {
  float corrections[QUERIES];
#pragma GCC unroll 4
  for (int query = 0; query < QUERIES; ++query) {
    float* row = weights + query * KEYS_AT_ONCE;
    Floats top = splat(largest[query]);
    for (int64_t key = 0; key < count; key += LANES) {
      if (query == 0 && key < next) {
        const int64_t some = next - key < LANES ? next - key : LANES, ahead = key + KEYS_AT_ONCE;
        fetch(keys + ahead * key_stride, key_stride, some, head_dim);
        fetch(values + ahead * value_stride, value_stride, some, head_dim);
      }
      const Floats found = scores(queries + query * width, keys + key * key_stride, key_stride,
                                  count - key, head_dim, scale);
      store(row + key, found);
      top = found > top ? found : top;
    }
    const float new_largest = largest_of(top);
    Floats sum = {};
    for (int64_t key = 0; key < count; key += LANES) {
      const Floats weight = exponential(load(row + key) - new_largest);
      store(row + key, weight);
      sum += weight;
    }
    corrections[query] = exponential(splat(largest[query] - new_largest))[0];
    sums[query] = sums[query] * corrections[query] + sum_of(sum);
    largest[query] = new_largest;
  }
  int64_t column = 0;
  for (; column + 2 * LANES <= head_dim; column += 2 * LANES) {
    add_values<QUERIES, 2>(results + column, width, corrections, weights, count,
                           [&](int64_t key, int i) __attribute__((always_inline)) {
                             return load(values + key * value_stride + column + i * LANES);
                           });
  }
  for (; column < head_dim; column += LANES) {
    const int64_t some = head_dim - column;
    add_values<QUERIES, 1>(results + column, width, corrections, weights, count,
                           [&](int64_t key, int) __attribute__((always_inline)) {
                             const Element* value = values + key * value_stride + column;
                             return some < LANES ? load_some(value, some) : load(value);
                           });
  }
}

template <typename Element>
INLINE void attend(const DecodeAttention& a, int64_t sequence, int64_t key_head, float* scratch) {
  const int64_t group = a.query_heads / a.key_heads, first = key_head * group;
  const int64_t width = (a.head_dim + LANES - 1) / LANES * LANES;
  float* queries = scratch;
  float* results = queries + group * width;
  float* largest = results + group * width;
  float* sums = largest + group;
  float* weights = sums + group;
  for (int64_t query = 0; query < group; ++query) {
    const Element* from = static_cast<const Element*>(a.q.data) + sequence * a.q.sequence_stride +
                          (first + query) * a.q.head_stride;
    for (int64_t column = 0; column < width; column += LANES) {
      const int64_t some = a.head_dim - column;
      store(queries + query * width + column,
            some < LANES ? load_some(from + column, some) : load(from + column));
      store(results + query * width + column, Floats{});
    }
    largest[query] = -__FLT_MAX__;  // not infinity: it is subtracted from scores of -infinity, too
    sums[query] = 0;
  }
  const Element* keys = at<Element>(a.keys, sequence, key_head);
  const Element* values = at<Element>(a.values, sequence, key_head);
  const int64_t length = a.lengths[sequence];
  for (int64_t key = 0; key < length; key += KEYS_AT_ONCE) {
    const int64_t count = length - key < KEYS_AT_ONCE ? length - key : KEYS_AT_ONCE;
    const int64_t left = length - key - count;
    const int64_t next = left < KEYS_AT_ONCE ? left : KEYS_AT_ONCE;  // keys of the next tile
    for (int64_t query = 0; query < group; query += QUERIES_AT_ONCE) {
      const auto tile = [&]<int QUERIES>() __attribute__((always_inline)) {
        attend_tile<QUERIES>(queries + query * width, results + query * width, width,
                             largest + query, sums + query, keys + key * a.keys.place_stride,
                             a.keys.place_stride, values + key * a.values.place_stride,
                             a.values.place_stride, count, query == 0 ? next : 0, a.head_dim,
                             a.scale, weights);
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
    for (int64_t column = 0; column < a.head_dim; ++column) {
      put(out + query * a.head_dim + column, results[query * width + column] / sums[query]);
    }
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
