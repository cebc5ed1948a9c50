// Which kernel takes a call, and with how many threads.
#pragma once

#include <algorithm>

#include "kernels.h"
#include "row.cuh"
#include "team.cuh"

namespace metamorph {

// Narrow rows: a warp each, four to a block. Wide rows: a block each.
inline dim3 block_shape(int64_t columns) {
  constexpr int ROWS_OF_A_BLOCK = 4;
  const int64_t warps = (columns + WARP * HELD - 1) / (WARP * HELD);
  if (warps == 1) return dim3(WARP, ROWS_OF_A_BLOCK);
  return dim3(warps * WARP < MOST_THREADS ? static_cast<unsigned>(warps * WARP) : MOST_THREADS);
}

// So many rows that a launch cannot have their blocks make it fail, not wrap around.
inline dim3 grid_shape(int64_t rows, dim3 block) {
  return dim3(static_cast<unsigned>(std::min<int64_t>((rows - 1) / block.y + 1, UINT32_MAX)));
}

inline __device__ int64_t row_of_this_team() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
}

// Whether a team can hold rows of these columns, `stride` elements apart (row.cuh).
inline bool can_hold(const Rows& rows, int64_t stride, int64_t columns) {
  const int64_t bytes = rows.element == Element::FLOAT32 ? 4 : 2;
  return columns <= MOST_THREADS * HELD && columns % CHUNK == 0 && stride * bytes % 16 == 0 &&
         reinterpret_cast<uintptr_t>(rows.data) % 16 == 0;
}

// Calls `function` with a value of the element's type.
template <typename Function>
cudaError_t with_element(Element element, const Function& function) {
  switch (element) {
    case Element::FLOAT32: return function(float{});
    case Element::BFLOAT16: return function(__nv_bfloat16{});
    case Element::FLOAT16: return function(__half{});
  }
  return cudaErrorInvalidValue;
}

}  // namespace metamorph
