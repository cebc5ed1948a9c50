// The threads that work on one row: a warp, or a whole block of several warps, along x.
#pragma once

#include <cstdint>

namespace metamorph {

constexpr int WARP = 32;
constexpr int MOST_THREADS = 512;  // of a team, so that each thread may use 128 registers

// All threads of a team call alike, and all get the same bits.
class DeviceTeam {
 public:
  __device__ int rank() const { return threadIdx.x; }
  __device__ int size() const { return blockDim.x; }

  template <int COUNT>
  __device__ void sum(float (&values)[COUNT]) const {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
#pragma unroll
      for (int distance = WARP / 2; distance > 0; distance /= 2) {
        values[i] += __shfl_xor_sync(0xffffffffu, values[i], distance);
      }
    }
    if (size() == WARP) return;
    __shared__ float sums[COUNT][MOST_THREADS / WARP];
    __syncthreads();  // until all have read the sums of an earlier call
    if (rank() % WARP == 0) {
      for (int i = 0; i < COUNT; ++i) sums[i][rank() / WARP] = values[i];
    }
    __syncthreads();
    for (int i = 0; i < COUNT; ++i) {
      values[i] = 0;
      for (int warp = 0; warp < size() / WARP; ++warp) values[i] += sums[i][warp];
    }
  }

  __device__ uint32_t maximum(uint32_t value) const {
    value = __reduce_max_sync(0xffffffffu, value);
    if (size() == WARP) return value;
    __shared__ uint32_t maxima[MOST_THREADS / WARP];
    __syncthreads();  // until all have read the maxima of an earlier call
    if (rank() % WARP == 0) maxima[rank() / WARP] = value;
    __syncthreads();
    for (int warp = 0; warp < size() / WARP; ++warp) value = max(value, maxima[warp]);
    return value;
  }
};

}  // namespace metamorph
