#include "cosine_row.cuh"
#include "launch.cuh"

namespace metamorph {
namespace {

template <bool IS_HELD, typename Prediction, typename Target>
__global__ void __launch_bounds__(MOST_THREADS) cosine_rows_kernel(const CosineRows a) {
  const int64_t row = row_of_this_team();
  if (row < a.rows) cosine_row<IS_HELD, Prediction, Target>(DeviceTeam(), a, row);
}

}  // namespace

cudaError_t cosine_rows(const CosineRows& a, cudaStream_t stream) {
  if (a.rows == 0) return cudaSuccess;
  const bool held = can_hold(a.prediction, a.prediction.stride, a.columns) &&
                    can_hold(a.target, a.target.stride, a.columns);
  const dim3 block = block_shape(a.columns), grid = grid_shape(a.rows, block);
  return with_element(a.prediction.element, [&](auto prediction) {
    return with_element(a.target.element, [&](auto target) {
      using P = decltype(prediction);
      using T = decltype(target);
      auto* kernel = held ? cosine_rows_kernel<true, P, T> : cosine_rows_kernel<false, P, T>;
      kernel<<<grid, block, 0, stream>>>(a);
      return cudaGetLastError();
    });
  });
}

}  // namespace metamorph
