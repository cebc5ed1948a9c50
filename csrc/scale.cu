#include "launch.cuh"
#include "scale_span.cuh"

namespace metamorph {
namespace {

constexpr int THREADS = 256;
// A few for each multiprocessor: enough to fill a GPU, and gone in microseconds if the factor is 1.
constexpr int64_t MOST_BLOCKS = 2048;

template <typename Element>
__global__ void __launch_bounds__(THREADS) scale_kernel(const Scale a) {
  scale_spans<Element>(DeviceTeam(), a, blockIdx.x, gridDim.x);
}

}  // namespace

cudaError_t scale(const Scale& a, cudaStream_t stream) {
  if (a.count == 0) return cudaSuccess;
  const int64_t spans = (a.count - 1) / (THREADS * HELD) + 1;
  const dim3 grid(static_cast<unsigned>(std::min(spans, MOST_BLOCKS)));
  return with_element(a.element, [&](auto element) {
    scale_kernel<decltype(element)><<<grid, THREADS, 0, stream>>>(a);
    return cudaGetLastError();
  });
}

}  // namespace metamorph
