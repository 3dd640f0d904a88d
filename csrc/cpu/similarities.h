// Products of a block to what a loss sees: fastdml/engine/similarity.py. Row functors do this themselves
// (instantiate.h); here it is for matrices that no functor visits, a teacher's.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <cstdint>

#include "block.h"
#include "differences.h"

namespace fastdml {

template <class T>
void similarities(const Block<T>& b) {
  const std::int64_t grain = 1 + 16384 / (b.cols + 1);
  torch::stable::parallel_for(0, b.rows, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      T* const row = b.s + i * b.ld;
      if (b.row_scale)
        for (std::int64_t j = 0; j < b.cols; ++j) row[j] *= b.row_scale[i] * b.col_scale[j];
      if (b.metric == Metric::product) continue;
      const T own = b.row_square[i];
      bool some = false;
      for (std::int64_t j = 0; j < b.cols; ++j) {
        const T total = own + b.col_square[j];
        row[j] = total - T(2) * row[j];
        some |= row[j] < T(kNear) * total;
      }
      for (std::int64_t j = 0; some && j < b.cols; ++j) {
        const T total = own + b.col_square[j];
        if (row[j] < T(kNear) * total) row[j] = near_distance(b, i, j, row[j], total);
      }
      if (b.epsilon != T(0))
        for (std::int64_t j = 0; j < b.cols; ++j) row[j] += b.epsilon;
      if (b.metric == Metric::distance)
        for (std::int64_t j = 0; j < b.cols; ++j) row[j] = std::sqrt(row[j]);
    }
  });
}

}  // namespace fastdml
