// A functor over the rows of a block, or over its columns, by torch's threads.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <memory>

#include "block.h"

namespace fastdml {

// longest: columns of the largest class.
template <class T>
void run_rows(const Functor& f, const Block<T>& b, std::int64_t longest) {
  const Kernel& kernel = *f.kernels[active_isa()];
  const std::int64_t arena = arena_size(longest, b.cols) + sorting_size(longest, b.cols);
  // About 20 µs of work at least for every thread that is woken.
  const std::int64_t grain = 1 + 16384 / (b.cols + 1);
  torch::stable::parallel_for(0, b.rows, grain, [&](std::int64_t begin, std::int64_t end) {
    std::unique_ptr<T[]> scratch(new T[arena]);
    if constexpr (sizeof(T) == 4)
      kernel.f32(b, begin, end, scratch.get());
    else
      kernel.f64(b, begin, end, scratch.get());
  });
}

// The block's rows folded into the statistics of its columns.
template <class T>
void run_columns(const Functor& f, const Block<T>& b, T* state, bool first) {
  const Kernel& kernel = *f.kernels[active_isa()];
  const std::int64_t grain = 64 + 16384 / (b.rows + 1);
  torch::stable::parallel_for(0, b.cols, grain, [&](std::int64_t begin, std::int64_t end) {
    if constexpr (sizeof(T) == 4)
      kernel.columns_f32(b, begin, end, state, first);
    else
      kernel.columns_f64(b, begin, end, state, first);
  });
}

}  // namespace fastdml
