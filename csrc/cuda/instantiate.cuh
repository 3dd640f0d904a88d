// Compiles one loss for CUDA. A generated source file defines FASTDML_ISA and FASTDML_LISTS, includes
// this file, then the loss's header, which ends in FASTDML_ROW_LOSS.
#pragma once
#include <cuda_runtime.h>

#include "device.cuh"
#include "row.cuh"

namespace fastdml {
inline namespace FASTDML_ISA {

// Reading sorted rows takes more registers than two blocks of a multiprocessor leave a thread.
constexpr int least_blocks(bool sorted) { return sorted ? 1 : 2; }

template <class T, template <class> class Loss, bool kSorted, class Form>
__global__ void __launch_bounds__(kMaxThreads, least_blocks(kSorted))
    rows_kernel(const __grid_constant__ Block<T> b, const __grid_constant__ Target target,
                const __grid_constant__ Loss<T> loss, const __grid_constant__ SortedRows<T> sorted,
                const __grid_constant__ Lengths<T> lengths) {
  extern __shared__ __align__(16) unsigned char shared[];
  T* scratch = reinterpret_cast<T*>(shared);
  BlockTeam team;
  run_rows<kSorted, Form>(b, target, loss, team, blockIdx.x, gridDim.x, scratch, scratch + kScratch, lengths,
                    sorted);
}

template <class T, template <class> class Loss>
__global__ void __launch_bounds__(kMaxThreads, 2)
    keys_kernel(const __grid_constant__ Block<T> b, const __grid_constant__ Loss<T> loss,
                const __grid_constant__ SortedRows<T> to) {
  __shared__ T scratch[kScratch];
  BlockTeam team;
  run_keys(b, loss, team, blockIdx.x, gridDim.x, scratch, to);
}

// One warp for a short row, so that its folds need no barrier; more threads for a long one, so that
// the rows in flight on all multiprocessors fit in the cache between two visits. No more than 256: then
// three blocks are on a multiprocessor, and one computes while another waits.
inline int threads_for(std::int64_t cols) {
  return cols <= 1024 ? 32 : cols <= 4096 ? 128 : kMaxThreads;
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
                        const SortedRows<T>& sorted, const Lengths<T>& lengths, std::int64_t blocks,
                        int threads) {
  const std::size_t bytes = (kScratch + kArena) * sizeof(T);
  const auto with = [&](auto kernel) -> const char* {
    if (bytes > 48 * 1024) {
      const cudaError_t error = cudaFuncSetAttribute(
          kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
      if (error != cudaSuccess) return cudaGetErrorString(error);
    }
    kernel<<<static_cast<unsigned>(blocks), threads, bytes, static_cast<cudaStream_t>(call.stream)>>>(
        b, call.target, loss, sorted, lengths);
    return nullptr;
  };
  // Sorted rows have one form: their kernels are many already, and visit a row but once.
  if constexpr (kSorted)
    return with(rows_kernel<T, Loss, true, AnyForm>);
  else
    return by_form(b, call.target, [&](auto form) {
      return with(rows_kernel<T, Loss, false, decltype(form)>);
    });
}

// Rows whose lists are short, and then the others; either sorted or not.
template <class T, template <class> class Loss, bool kSorted>
const char* launch_short(const Block<T>& b, const CudaCall& call, const Loss<T>& loss,
                         const SortedRows<T>& sorted) {
  return launch_rows<T, Loss, kSorted>(b, call, loss, sorted, {}, b.rows, threads_for(b.cols));
}
template <class T, template <class> class Loss, bool kSorted>
const char* launch_long(const Block<T>& b, const CudaCall& call, const Loss<T>& loss,
                        const SortedRows<T>& sorted) {
  if (kArena == 0 || !call.arena) return nullptr;
  Lengths<T> lengths;
  const std::int64_t room = kSorted && !sorted.kept ? sort_room(b.cols) : 0;
  for (const LongLists& launch : call.long_lists) {
    if (launch.blocks == 0) continue;
    lengths = {lengths.upto, launch.most, static_cast<T*>(call.arena), launch.values, room};
    if (const char* error = launch_rows<T, Loss, kSorted>(b, call, loss, sorted, lengths, launch.blocks,
                                                          kMaxThreads))
      return error;
  }
  return nullptr;
}

template <class T, template <class> class Loss>
const char* launch(const Block<T>& b, const CudaCall& call) {
  if (b.rows == 0) return nullptr;
  const Loss<T> loss = loss_of<T, Loss>(b.parameters);
  const OnDevice guard(call.device);
  if (!guard.ready()) return guard.error();
  SortedRows<T> sorted;
  const Sorts which = sorts<T>(loss);
  const char* error = nullptr;
  if constexpr (kSorts<T, Loss<T>> > 0) {
    if (which == Sorts::all) {
      error = sort_block<T, Loss>(b, call, loss, sorted);
      if (!error) error = launch_short<T, Loss, true>(b, call, loss, sorted);
    }
    if (!error && which != Sorts::none) error = launch_long<T, Loss, true>(b, call, loss, sorted);
  }
  if constexpr (!kWholeRows<Loss<T>>) {
    if (!error && which != Sorts::all) error = launch_short<T, Loss, false>(b, call, loss, sorted);
    if (!error && which == Sorts::none) error = launch_long<T, Loss, false>(b, call, loss, sorted);
  }
  return error ? error : guard.error();
}

template <template <class> class Loss>
int sorts_of(const double* parameters) {
  using Of = Loss<double>;
  return sorts<double>(loss_of<double, Loss>(parameters)) == Sorts::all ? kSorts<double, Of> : 0;
}
template <template <class> class Loss>
bool sorts_long(const double* parameters) {
  return sorts<double>(loss_of<double, Loss>(parameters)) == Sorts::long_lists;
}

}  // namespace FASTDML_ISA
}  // namespace fastdml

#define FASTDML_ROW_LOSS(name, Loss)                                                               \
  namespace fastdml {                                                                              \
  extern const CudaKernel cuda_kernel_##name;                                                      \
  const CudaKernel cuda_kernel_##name = {launch<float, Loss>,      launch<double, Loss>, FASTDML_LISTS, \
                                         kWholeRows<Loss<float>>, sorts_of<Loss>,  sorts_long<Loss>, \
                                         kWholeRows<Loss<float>>};                                 \
  }
