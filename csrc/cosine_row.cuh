// One row of the cosine loss, 1 - cos(prediction, target), and its gradient.
#pragma once

#include <cfloat>
#include <cmath>
#include <type_traits>

#include "kernels.h"
#include "row.cuh"

namespace metamorph {

// 1 / norm, or 0 for a row without direction: zeros, or a norm too short or too long for float32.
METAMORPH_BOTH float inverse_norm(float squares) {
  return squares >= FLT_MIN ? rsqrtf(squares) : 0;
}

// The elements of the gradient. Before it meets the cotangent it may be beyond float16's range.
template <typename Prediction>
using Gradient = std::conditional_t<std::is_same_v<Prediction, __half>, float, Prediction>;

METAMORPH_BOTH float gradient_divisor(const CosineRows& a) {
  if (!a.mean) return 1;
  const int64_t count = a.count == nullptr ? a.rows : *a.count;
  return count > 1 ? static_cast<float>(count) : 1;
}

// Takes the dot of unit rows, since the plain dot of long rows overflows. `gradient` may be null.
template <bool IS_HELD, typename Prediction, typename Target, typename Team>
METAMORPH_BOTH void unit_dot(
    const Team& team, Row<Prediction> prediction, Row<Target> target, int columns, float divisor,
    float* loss, Gradient<Prediction>* gradient) {
  const Share<IS_HELD, Team> share(team, columns);
  const Values<IS_HELD, Row<Prediction>, Team> p(prediction, share);
  const Values<IS_HELD, Row<Target>, Team> t(target, share);

  float squares[2] = {};
#pragma unroll(IS_HELD ? HELD : 1)
  for (int i = 0; i < share.count(); ++i) {
    squares[0] += p[i] * p[i];
    squares[1] += t[i] * t[i];
  }
  team.sum(squares);
  const float p_inverse = inverse_norm(squares[0]), t_inverse = inverse_norm(squares[1]);

  float cosine[1] = {};
#pragma unroll(IS_HELD ? HELD : 1)
  for (int i = 0; i < share.count(); ++i) {
    cosine[0] += p[i] * p_inverse * (t[i] * t_inverse);
  }
  team.sum(cosine);
  if (team.rank() == 0) *loss = 1 - cosine[0];
  if (gradient == nullptr) return;
  const float slope = p_inverse / divisor;
  write_row(gradient, share, [&](int i) {
    return (cosine[0] * (p[i] * p_inverse) - t[i] * t_inverse) * slope;
  });
}

// A row without a target: the loss and every element of the gradient are `value`.
template <bool IS_HELD, typename Element, typename Team>
METAMORPH_BOTH void constant_row(
    const Team& team, float value, int columns, float* loss, Element* gradient) {
  if (team.rank() == 0) *loss = value;
  if (gradient == nullptr) return;
  const Share<IS_HELD, Team> share(team, columns);
  write_row(gradient, share, [&](int) { return value; });
}

// Row `row` of a call. A kernel cannot raise for too large an index, so the loss becomes NaN.
template <bool IS_HELD, typename Prediction, typename Target, typename Team>
METAMORPH_BOTH void cosine_row(const Team& team, const CosineRows& a, int64_t row) {
  const int columns = static_cast<int>(a.columns);
  float* loss = a.losses + row;
  auto* gradient = static_cast<Gradient<Prediction>*>(a.gradient);
  if (gradient != nullptr) gradient += row * a.columns;
  const int64_t target = a.target_index == nullptr ? row : a.target_index[row];
  if (target < 0 || target >= a.targets) {
    constant_row<IS_HELD>(team, target < 0 ? 0 : NAN, columns, loss, gradient);
    return;
  }
  const auto* predictions = static_cast<const Prediction*>(a.prediction.data);
  const auto* targets = static_cast<const Target*>(a.target.data);
  unit_dot<IS_HELD, Prediction, Target>(
      team, {predictions + row * a.prediction.stride}, {targets + target * a.target.stride},
      columns, gradient_divisor(a), loss, gradient);
}

}  // namespace metamorph
