// A dense tensor times one number, in place, by spans as long as the rows that a team can hold.
#pragma once

#include "kernels.h"
#include "row.cuh"

namespace metamorph {

template <bool IS_HELD, typename Element, typename Team>
METAMORPH_BOTH void scale_row(const Team& team, Element* values, int columns, float factor) {
  const Row<Element> row = {values};
  const Share<IS_HELD, Team> share(team, columns);
  const Values<IS_HELD, Row<Element>, Team> x(row, share);
  write_row(values, share, [&](int i) { return x[i] * factor; });
}

// The spans that fall to team `first` of `teams`. A factor of 1 leaves the values unread.
template <typename Element, typename Team>
METAMORPH_BOTH void scale_spans(const Team& team, const Scale& a, int64_t first, int64_t teams) {
  const float factor = *a.factor;
  if (factor == 1) return;
  const bool aligned = reinterpret_cast<uintptr_t>(a.values) % 16 == 0;
  const int64_t span = team.size() * HELD;
  for (int64_t start = first * span; start < a.count; start += teams * span) {
    auto* values = static_cast<Element*>(a.values) + start;
    const int columns = static_cast<int>(a.count - start < span ? a.count - start : span);
    const int held = aligned ? columns / CHUNK * CHUNK : 0;
    scale_row<true>(team, values, held, factor);
    scale_row<false>(team, values + held, columns - held, factor);
  }
}

}  // namespace metamorph
