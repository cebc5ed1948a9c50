// A tile of an online softmax: scores to weights, and weights times values to results.
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

// A row as float32, with zeros behind its columns up to whole vectors; `width` of them in all.
template <typename Element>
INLINE void load_row(const Element* from, float* to, int64_t columns, int64_t width) {
  for (int64_t column = 0; column < width; column += LANES) {
    const int64_t some = columns - column;
    store(to + column, some < LANES ? load_some(from + column, some) : load(from + column));
  }
}

// What a query has of the keys before: the largest score, and the sum of weights relative to it.
struct Seen {
  float largest, sum;
};

// Not infinity: it is subtracted from scores of -infinity, too.
constexpr Seen NOTHING = {-__FLT_MAX__, 0};

// Turns `count` scores, and those of -infinity behind them up to a whole vector, to weights.
// Returns by what the results of the keys before are to be multiplied.
INLINE float weigh(float* scores, int64_t count, Seen& seen) {
  Floats top = splat(seen.largest);
  for (int64_t key = 0; key < count; key += LANES) top = larger(top, load(scores + key));
  const float largest = largest_of(top);
  Floats sum = {};
  for (int64_t key = 0; key < count; key += LANES) {
    const Floats weight = exponential(load(scores + key) - largest);
    store(scores + key, weight);
    sum += weight;
  }
  const float correction = exponential(splat(seen.largest - largest))[0];
  seen = {largest, seen.sum * correction + sum_of(sum)};
  return correction;
}

// results = results * corrections + weights * values, for QUERIES rows and VECTORS vectors of each.
template <int QUERIES, int VECTORS, typename Load>
INLINE void add_vectors(float* results, int64_t width, const float* corrections,
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

// The same for all columns of the values of `count` keys.
template <int QUERIES, typename Element>
INLINE void add_values(float* results, int64_t width, const float* corrections,
                       const float* weights, const Element* values, int64_t value_stride,
                       int64_t count, int64_t head_dim) {
  int64_t column = 0;
  for (; column + 2 * LANES <= head_dim; column += 2 * LANES) {
    add_vectors<QUERIES, 2>(results + column, width, corrections, weights, count,
                            [&](int64_t key, int i) __attribute__((always_inline)) {
                              return load(values + key * value_stride + column + i * LANES);
                            });
  }
  for (; column < head_dim; column += LANES) {
    const int64_t some = head_dim - column;
    add_vectors<QUERIES, 1>(results + column, width, corrections, weights, count,
                            [&](int64_t key, int) __attribute__((always_inline)) {
                              const Element* value = values + key * value_stride + column;
                              return some < LANES ? load_some(value, some) : load(value);
                            });
  }
}

// out = results / sum.
template <typename Element>
INLINE void put_row(Element* out, const float* results, const Seen& seen, int64_t head_dim) {
  for (int64_t column = 0; column < head_dim; ++column) put(out + column, results[column] / seen.sum);
}

}  // namespace
}  // namespace metamorph::cpu
