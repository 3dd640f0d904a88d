// What two matrices have in common, by rows and by columns: of weights and products of embeddings it is the
// part of the gradients along the embeddings (fastdml/engine/prefixes.py).
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace fastdml {

// rows[i] = sum_j g_ij s_ij, and columns[j] += sum_i g_ij s_ij, in one pass over both; either may be null.
// Columns are shared out in pieces of one size, and added up in one order: bits do not depend on threads.
template <class T>
void common(const T* g, const T* s, int64_t count, int64_t width, int64_t ldg, int64_t lds, T* rows,
            T* columns) {
  constexpr int64_t piece = 512, lanes = 16;
  const int64_t pieces = (width + piece - 1) / piece;
  std::vector<T> partial(rows != nullptr ? pieces * count : 0);
  torch::stable::parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t first = p * piece, size = std::min(piece, width - first);
      T down[piece] = {};
      for (int64_t i = 0; i < count; ++i) {
        const T *gi = g + i * ldg + first, *si = s + i * lds + first;
        T part[lanes] = {};
        int64_t j = 0;
        for (; j + lanes <= size; j += lanes)
          for (int l = 0; l < lanes; ++l) {
            const T v = gi[j + l] * si[j + l];
            down[j + l] += v;
            part[l] += v;
          }
        for (; j < size; ++j) {
          const T v = gi[j] * si[j];
          down[j] += v;
          part[0] += v;
        }
        if (rows == nullptr) continue;
        T sum = 0;
        for (int l = 0; l < lanes; ++l) sum += part[l];
        partial[p * count + i] = sum;
      }
      if (columns != nullptr)
        for (int64_t j = 0; j < size; ++j) columns[first + j] += down[j];
    }
  });
  if (rows == nullptr) return;
  for (int64_t i = 0; i < count; ++i) {
    T sum = 0;
    for (int64_t p = 0; p < pieces; ++p) sum += partial[p * count + i];
    rows[i] = sum;
  }
}

}  // namespace fastdml
