// Compiles one loss for CUDA. A generated source file defines FASTDML_ISA and FASTDML_LISTS, includes
// this file, then the loss's header, which ends in FASTDML_ROW_LOSS.
#pragma once
#include <cuda_runtime.h>

#include "device.cuh"
#include "row.cuh"

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T, template <class> class Loss>
__global__ void __launch_bounds__(kMaxThreads, 1)
    rows_kernel(const __grid_constant__ Block<T> b, const __grid_constant__ Target target,
                const __grid_constant__ Loss<T> loss, T* arena, std::int64_t arena_values) {
  extern __shared__ __align__(16) unsigned char shared[];
  T* scratch = reinterpret_cast<T*>(shared);
  BlockTeam team;
  run_rows(b, target, loss, team, blockIdx.x, gridDim.x, scratch, scratch + kScratch,
           arena ? arena + blockIdx.x * arena_values : nullptr);
}

// One warp for a short row, so that its folds need no barrier; more threads for a long one, so that
// the rows in flight on all multiprocessors fit in the cache between two visits.
inline int threads_for(std::int64_t cols) {
  return cols <= 1024 ? 32 : cols <= 4096 ? 128 : cols <= 16384 ? 256 : kMaxThreads;
}

template <class T, template <class> class Loss>
const char* launch(const Block<T>& b, const CudaCall& call) {
  if (b.rows == 0) return nullptr;
  constexpr std::size_t count = sizeof(Loss<T>) / sizeof(T);
  T parameters[count];
  for (std::size_t k = 0; k < count; ++k) parameters[k] = static_cast<T>(b.parameters[k]);
  Loss<T> loss;
  std::memcpy(&loss, parameters, sizeof loss);

  const OnDevice guard(call.device);
  if (!guard.ready()) return guard.error();
  const auto kernel = rows_kernel<T, Loss>;
  const auto stream = static_cast<cudaStream_t>(call.stream);
  const int threads = threads_for(b.cols);
  const std::size_t bytes = (kScratch + kArena) * sizeof(T);
  if (bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  kernel<<<static_cast<unsigned>(b.rows), threads, bytes, stream>>>(
      b, call.target, loss, nullptr, 0);
  if (kArena > 0 && call.arena)
    kernel<<<call.arena_blocks, kMaxThreads, bytes, stream>>>(
        b, call.target, loss, static_cast<T*>(call.arena), call.arena_values);
  return guard.error();
}

}  // namespace FASTDML_ISA
}  // namespace fastdml

#define FASTDML_ROW_LOSS(name, Loss)                                                               \
  namespace fastdml {                                                                              \
  extern const CudaKernel cuda_kernel_##name;                                                      \
  const CudaKernel cuda_kernel_##name = {launch<float, Loss>, launch<double, Loss>, FASTDML_LISTS,  \
                                         kWholeRows<Loss<float>>};                                 \
  }
