// Products of a block to what a loss sees: fastdml/engine/similarity.py. Row functors do this themselves
// (instantiate.h); here it is for matrices that no functor visits, a teacher's.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <cstdint>

#include "block.h"

namespace fastdml {

// s [rows, cols], rows ld apart. Scales: both or neither; squares: for distances.
template <class T>
void similarities(T* s, std::int64_t rows, std::int64_t cols, std::int64_t ld, const T* row_scale,
                  const T* col_scale, Metric metric, const T* row_square, const T* col_square,
                  T epsilon) {
  // What is left of two nearly equal numbers is rounding: it counts as 0.
  const T tiny = sizeof(T) == 4 ? T(4 * 1.1920929e-07) : T(4 * 2.220446049250313e-16);
  const std::int64_t grain = 1 + 16384 / (cols + 1);
  torch::stable::parallel_for(0, rows, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      T* const row = s + i * ld;
      if (row_scale)
        for (std::int64_t j = 0; j < cols; ++j) row[j] *= row_scale[i] * col_scale[j];
      if (metric == Metric::product) continue;
      const T own = row_square[i];
      for (std::int64_t j = 0; j < cols; ++j) {
        const T total = own + col_square[j], d2 = total - T(2) * row[j];
        row[j] = (d2 < tiny * total ? T(0) : d2) + epsilon;
      }
      if (metric == Metric::distance)
        for (std::int64_t j = 0; j < cols; ++j) row[j] = std::sqrt(row[j]);
    }
  });
}

}  // namespace fastdml
