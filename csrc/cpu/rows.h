// What stands between matrix products, a token at a time, in float32.
#pragma once

#include "kernels.h"
#include "vector.h"

namespace metamorph::cpu {
namespace {

// to = from * cos + the other half of from * sin, for the heads of one token.
void rotate_token(const float* from, const float* cos, const float* sin, float* to, int64_t heads,
                  int64_t head_dim) {
  const int64_t half = head_dim / 2;
  for (int64_t head = 0; head < heads; ++head, from += head_dim, to += head_dim) {
    const float* __restrict first = from;
    const float* __restrict second = from + half;
    float* __restrict out = to;
    for (int64_t i = 0; i < half; ++i) {
      out[i] = first[i] * cos[i] + second[i] * sin[i];
      out[half + i] = second[i] * cos[half + i] + first[i] * sin[half + i];
    }
  }
}

// to = from * weight / root of the mean square and eps.
void norm_row(const float* from, const float* weight, float* to, int64_t columns, float eps) {
  const int64_t whole = columns / LANES * LANES, rest = columns - whole;
  Floats squares = {};
  for (int64_t i = 0; i < whole; i += LANES) squares += load(from + i) * load(from + i);
  if (rest > 0) squares += load_some(from + whole, rest) * load_some(from + whole, rest);
  const float mean = sum_of(squares) / static_cast<float>(columns);
  const float scale = 1.0f / __builtin_sqrtf(mean + eps);
  for (int64_t i = 0; i < columns; ++i) to[i] = from[i] * scale * weight[i];
}

INLINE Floats swiglu(Floats gate, Floats up) {
  const Floats decay = exponential(gate < 0.0f ? gate : -gate);  // no power is too large
  return (gate < 0.0f ? gate * decay : gate) / (1.0f + decay) * up;
}

// to = silu(gate) * up.
void swiglu_row(const float* gate, const float* up, float* to, int64_t columns) {
  int64_t i = 0;
  for (; i + LANES <= columns; i += LANES) store(to + i, swiglu(load(gate + i), load(up + i)));
  if (i < columns) {
    const Floats last = swiglu(load_some(gate + i, columns - i), load_some(up + i, columns - i));
    std::memcpy(to + i, &last, (columns - i) * sizeof(float));
  }
}

// The first of the largest numbers of a row, or its first NaN, if it has one, as in PyTorch.
int64_t largest_of_row(const float* row, int64_t columns) {
  constexpr int64_t BLOCK = 64 * LANES;  // is searched for the place of its largest number
  float largest = row[0];
  int64_t first = 0;
  for (int64_t start = 0; start < columns && largest == largest; start += BLOCK) {
    const int64_t end = start + BLOCK < columns ? start + BLOCK : columns;
    Floats most = splat(row[start]);
    Integers strange = {};
    int64_t i = start;
    for (; i + LANES <= end; i += LANES) {
      const Floats some = load(row + i);
      strange |= some != some;
      most = some > most ? some : most;
    }
    float of_block = row[start];
    for (int lane = 0; lane < LANES; ++lane) {
      if (strange[lane] != 0) of_block = __builtin_nanf("");
      if (most[lane] > of_block) of_block = most[lane];
    }
    for (; i < end; ++i) {
      if (row[i] > of_block || row[i] != row[i]) of_block = row[i];
    }
    if (of_block > largest || of_block != of_block) {
      largest = of_block;
      first = start;
    }
  }
  while (largest == largest ? row[first] != largest : row[first] == row[first]) ++first;
  return first;
}

}  // namespace
}  // namespace metamorph::cpu
