// One row in float8_e4m3fn with its scale, after an exact GELU where one is asked for.
#pragma once

#include "kernels.h"
#include "row.cuh"

namespace metamorph {

METAMORPH_BOTH float gelu(float x) { return 0.5f * x * (1 + erff(x * 0.70710678f)); }

// A row in memory, or its GELU, as a source of values.
template <typename Element>
struct Activated {
  Row<Element> row;
  bool with_gelu;

  template <typename Team>
  METAMORPH_BOTH void fill(const Share<true, Team>& share, float (&values)[HELD]) const {
    row.fill(share, values);
    if (!with_gelu) return;
#pragma unroll
    for (int i = 0; i < HELD; ++i) values[i] = gelu(values[i]);
  }
  METAMORPH_BOTH float one(int column) const {
    return with_gelu ? gelu(row.one(column)) : row.one(column);
  }
};

// x / scale, rounded as a division rounds it, at the cost of one division for all x (Markstein).
// A scale whose inverse could overflow is first multiplied by a power of two, and x with it.
class Quotient {
 public:
  METAMORPH_BOTH explicit Quotient(float scale)
      : boost(scale < 0x1p-64f ? 0x1p64f : 1), divisor(scale * boost), inverse(1 / divisor) {}

  METAMORPH_BOTH float operator()(float x) const {
    const float dividend = x * boost, near = dividend * inverse;
    return fmaf(fmaf(-near, divisor, dividend), inverse, near);
  }

 private:
  float boost, divisor, inverse;
};

// Row `row` of a call. The scale is the largest magnitude / 448, or 1 where that is 0. A NaN or an
// infinity makes every value of the row NaN.
template <bool IS_HELD, typename Element, typename Team>
METAMORPH_BOTH void quantise_row(const Team& team, const QuantiseRows& a, int64_t row) {
  const auto* data = static_cast<const Element*>(a.x.data) + row * a.x.stride;
  const Activated<Element> source = {{data}, a.with_gelu};
  const Share<IS_HELD, Team> share(team, static_cast<int>(a.columns));
  const Values<IS_HELD, Activated<Element>, Team> x(source, share);
  // The bits of magnitudes, as integers, are in the order of magnitude, NaN above infinity.
  uint32_t largest = 0;
#pragma unroll(IS_HELD ? HELD : 1)
  for (int i = 0; i < share.count(); ++i) {
    const uint32_t magnitude = bits_as<uint32_t>(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  float row_scale = bits_as<float>(team.maximum(largest)) / 448;
  if (row_scale == 0) row_scale = 1;
  if (team.rank() == 0) a.scales[row] = row_scale;
  const Quotient quotient(row_scale);
  auto* values = static_cast<__nv_fp8_e4m3*>(a.values) + row * a.columns;
  write_row(values, share, [&](int i) { return quotient(x[i]); });
}

}  // namespace metamorph
