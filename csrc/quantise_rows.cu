#include "launch.cuh"
#include "quantise_row.cuh"

namespace metamorph {
namespace {

template <bool IS_HELD, typename Element>
__global__ void __launch_bounds__(MOST_THREADS) quantise_rows_kernel(const QuantiseRows a) {
  const int64_t row = row_of_this_team();
  if (row < a.rows) quantise_row<IS_HELD, Element>(DeviceTeam(), a, row);
}

}  // namespace

cudaError_t quantise_rows(const QuantiseRows& a, cudaStream_t stream) {
  if (a.rows == 0) return cudaSuccess;
  const bool held = can_hold(a.x, a.x.stride, a.columns);
  const dim3 block = block_shape(a.columns), grid = grid_shape(a.rows, block);
  return with_element(a.x.element, [&](auto element) {
    using E = decltype(element);
    auto* kernel = held ? quantise_rows_kernel<true, E> : quantise_rows_kernel<false, E>;
    kernel<<<grid, block, 0, stream>>>(a);
    return cudaGetLastError();
  });
}

}  // namespace metamorph
