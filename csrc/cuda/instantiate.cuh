// Compiles one loss for CUDA. A generated source file defines FASTDML_ISA and FASTDML_LISTS, includes
// this file, then the loss's header, which ends in FASTDML_ROW_LOSS.
#pragma once
#include <cuda_runtime.h>

#include "device.cuh"
#include "row.cuh"

namespace fastdml {
inline namespace FASTDML_ISA {

// Blocks of a multiprocessor that a kernel's registers must leave room for. Reading sorted rows takes more
// than two leave a thread. One form of all calls can do with what three leave, unless the loss walks along
// lists besides, or has more numbers than fit beside what the row keeps. A loss that takes still more in
// float64 says so itself (`static constexpr bool large`).
template <class Loss, class T, bool kSorted, class Form>
constexpr int least_blocks() {
  if constexpr (sizeof(T) == 8 && requires { Loss::large; }) return 1;
  constexpr bool small = !FASTDML_LISTS && sizeof(Loss) / sizeof(T) <= 7;
  return kSorted ? 1 : Form::fixed && small ? 3 : 2;
}

template <class T, template <class> class Loss, bool kSorted, class Form>
__global__ void __launch_bounds__(kMaxThreads, least_blocks<Loss<T>, T, kSorted, Form>())
    rows_kernel(const __grid_constant__ Block<T> b, const __grid_constant__ Target target,
                const __grid_constant__ Loss<T> loss, const __grid_constant__ SortedRows<T> sorted,
                const __grid_constant__ Lengths<T> lengths, int held) {
  extern __shared__ __align__(16) unsigned char shared[];
  T* scratch = reinterpret_cast<T*>(shared);
  BlockTeam team;
  run_rows<kSorted, Form>(b, target, loss, team, blockIdx.x, gridDim.x, scratch, scratch + kScratch, lengths,
                    sorted, held);
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

// Lets a kernel have what a block may have at all, whatever this launch needs: before it another thread may
// do the same for one that needs less. It only bounds launches: how many blocks a processor holds goes by
// what a launch asks for, and how much of a processor is shared memory is said apart (find_held).
template <class Kernel>
cudaError_t allow_shared(Kernel kernel, int device) {
  int most = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
}

// How many columns of a row its block keeps: as many as shared memory has room for without a block less on
// the processor.
template <class Kernel>
cudaError_t find_held(Kernel kernel, int device, int threads, std::int64_t used, std::int64_t cols,
                      std::int64_t size, std::int64_t& held) {
  int blocks = 0, whole = 0, reserved = 0, most = 0;
  cudaError_t error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads,
                                                                    static_cast<std::size_t>(used));
  const auto ask = [&](int& value, cudaDeviceAttr what) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, what, device);
  };
  ask(whole, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  ask(reserved, cudaDevAttrReservedSharedMemoryPerBlock);
  ask(most, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (error != cudaSuccess) return error;
  held = held_columns({whole, reserved, most}, blocks, used, cols, size);
  // The driver would otherwise choose for itself how much of the nearest cache is shared memory. It takes
  // the next size that there is, so a part of a percent more could cost the columns half of their cache.
  return held == 0 ? cudaSuccess
                   : cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                          static_cast<int>(100 * shared_budget(whole) / whole));
}

template <class T, template <class> class Loss, bool kSorted>
const char* launch_rows(const Block<T>& b, const CudaCall& call, const Loss<T>& loss,
                        const SortedRows<T>& sorted, const Lengths<T>& lengths, std::int64_t blocks,
                        int threads) {
  const std::int64_t used = (kScratch + kArena) * sizeof(T);
  const auto with = [&](auto kernel) -> const char* {
    std::int64_t held = 0;
    cudaError_t error = allow_shared(kernel, call.device);
    if (!kSorted && error == cudaSuccess)
      error = find_held(kernel, call.device, threads, used, b.cols, sizeof(T), held);
    const std::int64_t bytes = used + held * static_cast<std::int64_t>(sizeof(T));
    if (error != cudaSuccess) return text_of(error);
    kernel<<<static_cast<unsigned>(blocks), threads, static_cast<std::size_t>(bytes),
             static_cast<cudaStream_t>(call.stream)>>>(b, call.target, loss, sorted, lengths,
                                                       static_cast<int>(held));
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
