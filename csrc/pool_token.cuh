// One pooled token: four taps of a square of tokens, weighted, and scaled to length one.
#pragma once

#include <cfloat>

#include "kernels.h"
#include "row.cuh"

namespace metamorph {

// The two neighbours on one axis that a pooled position reads, and their weights.
struct Taps {
  int tokens[2];
  float weights[2];
};

// Half-pixel centres, clamped at the border, no antialiasing. A far token without weight is the near
// one: 0 times NaN would be NaN.
METAMORPH_BOTH Taps taps(int position, int side, int grid) {
  const float centre = (position + 0.5f) * (static_cast<float>(side) / grid) - 0.5f;
  const float clamped = centre > 0 ? centre : 0;
  const int near = clamped < side - 1 ? static_cast<int>(clamped) : side - 1;
  const float weight = clamped - near;
  const int far = weight > 0 && near < side - 1 ? near + 1 : near;
  return {{near, far}, {1 - weight, weight}};
}

// The weighted sum of four tokens, as a source of values.
template <typename Element>
struct Blend {
  Row<Element> tokens[4];
  float weights[4];

  template <typename Team>
  METAMORPH_BOTH void fill(const Share<true, Team>& share, float (&values)[HELD]) const {
#pragma unroll
    for (int i = 0; i < HELD; ++i) values[i] = 0;
#pragma unroll
    for (int tap = 0; tap < 4; ++tap) {
      float token[HELD];
      tokens[tap].fill(share, token);
#pragma unroll
      for (int i = 0; i < HELD; ++i) values[i] += weights[tap] * token[i];
    }
  }
  METAMORPH_BOTH float one(int column) const {
    float value = 0;
#pragma unroll
    for (int tap = 0; tap < 4; ++tap) value += weights[tap] * tokens[tap].one(column);
    return value;
  }
};

// `image` is the first of side x side tokens, `stride` elements apart.
template <typename Element>
METAMORPH_BOTH Blend<Element> blend(
    const Element* image, int64_t stride, int side, const Taps& down, const Taps& across) {
  Blend<Element> result;
#pragma unroll
  for (int tap = 0; tap < 4; ++tap) {
    const int64_t token =
        static_cast<int64_t>(down.tokens[tap / 2]) * side + across.tokens[tap % 2];
    result.tokens[tap].data = image + token * stride;
    result.weights[tap] = down.weights[tap / 2] * across.weights[tap % 2];
  }
  return result;
}

template <bool IS_HELD, typename Element, typename Team>
METAMORPH_BOTH void unit_blend(
    const Team& team, const Blend<Element>& source, int columns, Element* pooled) {
  const Share<IS_HELD, Team> share(team, columns);
  const Values<IS_HELD, Blend<Element>, Team> values(source, share);
  float squares[1] = {};
#pragma unroll(IS_HELD ? HELD : 1)
  for (int i = 0; i < share.count(); ++i) squares[0] += values[i] * values[i];
  team.sum(squares);
  // A token too short for float32 becomes zeros, one with a NaN NaN throughout.
  const float inverse = squares[0] < FLT_MIN ? 0 : rsqrtf(squares[0]);
  write_row(pooled, share, [&](int i) { return values[i] * inverse; });
}

// Token `row` of a call, all images counted through.
template <bool IS_HELD, typename Element, typename Team>
METAMORPH_BOTH void pool_token(const Team& team, const PoolNormalize& a, int64_t row) {
  const int64_t cells = static_cast<int64_t>(a.grid) * a.grid;
  const auto* image = static_cast<const Element*>(a.tokens.data) + row / cells * a.image_stride;
  const int cell = static_cast<int>(row % cells);
  const Taps down = taps(cell / a.grid, a.side, a.grid);
  const Taps across = taps(cell % a.grid, a.side, a.grid);
  unit_blend<IS_HELD>(
      team, blend(image, a.tokens.stride, a.side, down, across), static_cast<int>(a.columns),
      static_cast<Element*>(a.pooled) + row * a.columns);
}

}  // namespace metamorph
