// remove_radial_ on CUDA: one warp per row.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "cuda/device.cuh"
#include "cuda/launch.h"

namespace fastdml {
namespace {

constexpr int kWarps = 8;

template <class T, class X>
__global__ void __launch_bounds__(32 * kWarps)
    remove_radial(T* g, const X* x, const T* scale, std::int64_t rows, int dim, std::int64_t ldx) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (i >= rows) return;
  const int lane = threadIdx.x % 32;
  T* own = g + i * dim;
  const X* point = x + i * ldx;
  T dot = 0;
  for (int d = lane; d < dim; d += 32) dot += own[d] * static_cast<T>(point[d]);
  for (int mask = 16; mask > 0; mask /= 2) dot += __shfl_xor_sync(0xffffffffu, dot, mask);
  const T along = dot * scale[i] * scale[i];
  for (int d = lane; d < dim; d += 32) own[d] -= along * static_cast<T>(point[d]);
}

template <class T, class X>
void launch(void* g, const void* x, const void* scale, std::int64_t rows, std::int64_t dim,
            std::int64_t ldx, cudaStream_t stream) {
  remove_radial<<<static_cast<unsigned>((rows + kWarps - 1) / kWarps), 32 * kWarps, 0, stream>>>(
      static_cast<T*>(g), static_cast<const X*>(x), static_cast<const T*>(scale), rows,
      static_cast<int>(dim), ldx);
}

}  // namespace

const char* cuda_remove_radial(void* g, const void* x, Element x_type, const void* scale,
                               std::int64_t rows, std::int64_t dim, std::int64_t ldx, int device,
                               void* stream) {
  if (rows == 0) return nullptr;
  const auto on = static_cast<cudaStream_t>(stream);
  const OnDevice guard(device);
  if (!guard.ready()) return guard.error();
  switch (x_type) {
    case Element::float32:
      launch<float, float>(g, x, scale, rows, dim, ldx, on);
      break;
    case Element::float64:
      launch<double, double>(g, x, scale, rows, dim, ldx, on);
      break;
    case Element::bfloat16:
      launch<float, __nv_bfloat16>(g, x, scale, rows, dim, ldx, on);
      break;
    case Element::float16:
      launch<float, __half>(g, x, scale, rows, dim, ldx, on);
      break;
  }
  return guard.error();
}

}  // namespace fastdml
