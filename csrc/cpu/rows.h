// What stands between the matrix products of a layer, a token at a time, in float32.
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

}  // namespace
}  // namespace metamorph::cpu
