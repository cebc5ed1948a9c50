#include "launch.cuh"
#include "pool_token.cuh"

namespace metamorph {
namespace {

template <bool IS_HELD, typename Element>
__global__ void __launch_bounds__(MOST_THREADS) pool_normalize_kernel(const PoolNormalize a) {
  const int64_t row = row_of_this_team();
  if (row < a.images * a.grid * a.grid) pool_token<IS_HELD, Element>(DeviceTeam(), a, row);
}

}  // namespace

cudaError_t pool_normalize(const PoolNormalize& a, cudaStream_t stream) {
  const int64_t rows = a.images * a.grid * a.grid;
  if (rows == 0) return cudaSuccess;
  const bool held = can_hold(a.tokens, a.tokens.stride, a.columns) &&
                    can_hold(a.tokens, a.image_stride, a.columns);
  const dim3 block = block_shape(a.columns), grid = grid_shape(rows, block);
  return with_element(a.tokens.element, [&](auto element) {
    using E = decltype(element);
    auto* kernel = held ? pool_normalize_kernel<true, E> : pool_normalize_kernel<false, E>;
    kernel<<<grid, block, 0, stream>>>(a);
    return cudaGetLastError();
  });
}

}  // namespace metamorph
