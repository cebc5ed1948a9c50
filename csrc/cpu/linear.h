// A few rows times a matrix that is stored column after column, in float32: what a step of
// generation computes for several sequences. It is read as it lies, where a library for products of
// any size usually copies tiles of it first.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace metamorph::cpu {
namespace {

// Sums that registers hold: rows times vectors, beside the vectors of the matrix and a number of x.
#if defined(__AVX512F__)
constexpr int TILE_ROWS = 8;
#else
constexpr int TILE_ROWS = 4;
#endif
constexpr int TILE_VECTORS = 3;
constexpr int64_t INPUTS_AT_ONCE = 1024;  // whose part of the matrix the second cache keeps

// Adds the products of inputs `begin` to `end` - 1 to ROWS rows of `out`, in VECTORS whole vectors
// of columns, or in one of `columns` < LANES. The first inputs begin with the bias, or zeros.
template <int ROWS, int VECTORS, bool IS_PART = false>
INLINE void add_tile(const Linear& a, int64_t row, int64_t column, int64_t begin, int64_t end,
                     int64_t columns = 0) {
  const auto read = [&](const float* from, int vector) __attribute__((always_inline)) {
    return IS_PART ? load_some(from, columns) : load(from + vector * LANES);
  };
  float* out = a.out + row * a.outputs + column;
  Floats sums[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < VECTORS; ++j) {
      if (begin > 0) {
        sums[i][j] = read(out + i * a.outputs, j);
      } else {
        sums[i][j] = a.bias == nullptr ? Floats{} : read(a.bias + column, j);
      }
    }
  }
  const bool is_first = row == 0;
  const float* x = a.x + row * a.x_stride;
  const float* weight = a.weight + begin * a.weight_stride + column;
  for (int64_t k = begin; k < end; ++k, weight += a.weight_stride) {
    Floats factors[VECTORS];
#pragma GCC unroll 3
    for (int j = 0; j < VECTORS; ++j) factors[j] = read(weight, j);
    if (is_first) {  // of the next strip: nothing else would, as far apart as columns lie
#pragma GCC unroll 3
      for (int j = 0; j < VECTORS; ++j) __builtin_prefetch(weight + (VECTORS + j) * LANES);
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) {
      const Floats number = splat(x[i * a.x_stride + k]);
#pragma GCC unroll 3
      for (int j = 0; j < VECTORS; ++j) sums[i][j] += number * factors[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i) {
    float* to = out + i * a.outputs;
#pragma GCC unroll 3
    for (int j = 0; j < VECTORS; ++j) {
      if constexpr (IS_PART) {
        std::memcpy(to, &sums[i][j], columns * sizeof(float));
      } else {
        store(to + j * LANES, sums[i][j]);
      }
    }
  }
}

// Rows from `row` on, of which ROWS or fewer are left.
template <int ROWS>
INLINE void add_rows(const Linear& a, int64_t row, int64_t column, int64_t last_column,
                     int64_t begin, int64_t end) {
  if constexpr (ROWS > 1) {
    if (a.rows - row < ROWS) return add_rows<ROWS - 1>(a, row, column, last_column, begin, end);
  }
  if (last_column - column == TILE_VECTORS * LANES) {
    return add_tile<ROWS, TILE_VECTORS>(a, row, column, begin, end);
  }
  for (; column + LANES <= last_column; column += LANES) {
    add_tile<ROWS, 1>(a, row, column, begin, end);
  }
  if (column < last_column) {
    add_tile<ROWS, 1, true>(a, row, column, begin, end, last_column - column);
  }
}

// Columns `first` to `last` - 1 of out = x W^T + bias, a strip of TILE_VECTORS vectors at a time.
void linear_columns(const Linear& a, int64_t first, int64_t last) {
  constexpr int64_t STRIP = TILE_VECTORS * LANES;
  for (int64_t column = first; column < last; column += STRIP) {
    const int64_t last_column = column + STRIP < last ? column + STRIP : last;
    int64_t begin = 0;
    do {  // without inputs there is a bias still
      const int64_t end = begin + INPUTS_AT_ONCE < a.inputs ? begin + INPUTS_AT_ONCE : a.inputs;
      for (int64_t row = 0; row < a.rows; row += TILE_ROWS) {
        add_rows<TILE_ROWS>(a, row, column, last_column, begin, end);
      }
      begin = end;
    } while (begin < a.inputs);
  }
}

}  // namespace
}  // namespace metamorph::cpu
