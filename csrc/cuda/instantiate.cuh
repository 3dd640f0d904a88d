// Compiles one loss for CUDA. A generated source file defines FASTDML_ISA and FASTDML_LISTS, includes
// this file, then the loss's header, which ends in FASTDML_ROW_LOSS.
#pragma once
#include <cuda_runtime.h>

#include "device.cuh"
#include "row.cuh"

namespace fastdml {
inline namespace FASTDML_ISA {

// Reading sorted rows takes more registers than a block of the largest size leaves a thread.
constexpr int most_threads(bool sorted) { return sorted ? kMaxThreads / 2 : kMaxThreads; }

template <class T, template <class> class Loss, bool kSorted>
__global__ void __launch_bounds__(most_threads(kSorted), 1)
    rows_kernel(const __grid_constant__ Block<T> b, const __grid_constant__ Target target,
                const __grid_constant__ Loss<T> loss, const __grid_constant__ SortedRows<T> sorted,
                T* arena, std::int64_t arena_values) {
  extern __shared__ __align__(16) unsigned char shared[];
  T* scratch = reinterpret_cast<T*>(shared);
  BlockTeam team;
  run_rows<kSorted>(b, target, loss, team, blockIdx.x, gridDim.x, scratch, scratch + kScratch,
                    arena ? arena + blockIdx.x * arena_values : nullptr, sorted);
}

template <class T, template <class> class Loss>
__global__ void __launch_bounds__(kMaxThreads, 1)
    keys_kernel(const __grid_constant__ Block<T> b, const __grid_constant__ Loss<T> loss,
                const __grid_constant__ SortedRows<T> to) {
  __shared__ T scratch[kScratch];
  BlockTeam team;
  run_keys(b, loss, team, blockIdx.x, gridDim.x, scratch, to);
}

// One warp for a short row, so that its folds need no barrier; more threads for a long one, so that
// the rows in flight on all multiprocessors fit in the cache between two visits.
inline int threads_for(std::int64_t cols) {
  return cols <= 1024 ? 32 : cols <= 4096 ? 128 : cols <= 16384 ? 256 : kMaxThreads;
}

template <class T, template <class> class Loss>
Loss<T> loss_of(const double* given) {
  constexpr std::size_t count = sizeof(Loss<T>) / sizeof(T);
  T parameters[count];
  for (std::size_t k = 0; k < count; ++k) parameters[k] = static_cast<T>(given[k]);
  Loss<T> loss;
  std::memcpy(&loss, parameters, sizeof loss);
  return loss;
}

// Writes the keys of all rows and sorts them. The last buffer is room for every sort, then the one that
// the sort before has left.
template <class T, template <class> class Loss>
const char* sort_block(const Block<T>& b, const CudaCall& call, const Loss<T>& loss,
                       SortedRows<T>& sorted) {
  constexpr int N = kSorts<T, Loss<T>>;
  const Sorting& room = call.sorting;
  sorted.kept = room.kept;
  for (int k = 0; k < N; ++k) {
    sorted.keys[k] = static_cast<KeyBits<T>*>(room.keys[k]);
    sorted.columns[k] = room.columns[k];
  }
  const auto stream = static_cast<cudaStream_t>(call.stream);
  keys_kernel<T, Loss>
      <<<static_cast<unsigned>(b.rows), threads_for(b.cols), 0, stream>>>(b, loss, sorted);
  void* other_keys = room.keys[N];
  std::int32_t* other_columns = room.columns[N];
  for (int k = 0; k < N; ++k) {
    SegmentedSort sort{{sorted.keys[k], other_keys}, {sorted.columns[k], other_columns}, b.rows, b.cols,
                       sizeof(T), room.temporary, room.temporary_bytes};
    if (const char* error = cuda_sort_rows(sort, call.stream)) return error;
    sorted.keys[k] = static_cast<KeyBits<T>*>(sort.keys[sort.sorted]);
    sorted.columns[k] = sort.columns[sort.sorted];
    other_keys = sort.keys[1 - sort.sorted];
    other_columns = sort.columns[1 - sort.sorted];
  }
  return nullptr;
}

template <class T, template <class> class Loss, bool kSorted>
const char* launch_rows(const Block<T>& b, const CudaCall& call, const Loss<T>& loss,
                        const SortedRows<T>& sorted) {
  const auto kernel = rows_kernel<T, Loss, kSorted>;
  const auto stream = static_cast<cudaStream_t>(call.stream);
  const std::size_t bytes = (kScratch + kArena) * sizeof(T);
  if (bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  constexpr int most = most_threads(kSorted);
  const int threads = threads_for(b.cols) < most ? threads_for(b.cols) : most;
  kernel<<<static_cast<unsigned>(b.rows), threads, bytes, stream>>>(
      b, call.target, loss, sorted, nullptr, 0);
  if (kArena > 0 && call.arena)
    kernel<<<call.arena_blocks, most, bytes, stream>>>(
        b, call.target, loss, sorted, static_cast<T*>(call.arena), call.arena_values);
  return nullptr;
}

template <class T, template <class> class Loss>
const char* launch(const Block<T>& b, const CudaCall& call) {
  if (b.rows == 0) return nullptr;
  const Loss<T> loss = loss_of<T, Loss>(b.parameters);
  const OnDevice guard(call.device);
  if (!guard.ready()) return guard.error();
  SortedRows<T> sorted;
  const char* error = nullptr;
  if constexpr (kSorts<T, Loss<T>> > 0) {
    if (sorts<T>(loss)) {
      error = sort_block<T, Loss>(b, call, loss, sorted);
      if (!error) error = launch_rows<T, Loss, true>(b, call, loss, sorted);
      return error ? error : guard.error();
    }
  }
  if constexpr (!kWholeRows<Loss<T>>) error = launch_rows<T, Loss, false>(b, call, loss, sorted);
  return error ? error : guard.error();
}

template <template <class> class Loss>
int sorts_of(const double* parameters) {
  return sorts<double>(loss_of<double, Loss>(parameters));
}

}  // namespace FASTDML_ISA
}  // namespace fastdml

#define FASTDML_ROW_LOSS(name, Loss)                                                               \
  namespace fastdml {                                                                              \
  extern const CudaKernel cuda_kernel_##name;                                                      \
  const CudaKernel cuda_kernel_##name = {launch<float, Loss>,      launch<double, Loss>, FASTDML_LISTS, \
                                         kWholeRows<Loss<float>>, sorts_of<Loss>,                   \
                                         kWholeRows<Loss<float>>};                                 \
  }
