// Lengths of embeddings, and what normalising them leaves of their gradients.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace fastdml {

// The sum of term(0 ... count - 1), in sixteen partial sums: fixed order, small rounding, and the compiler
// may use vectors.
template <class T, class Term>
T partial_sums(int64_t count, Term term) {
  T part[16] = {};
  int64_t k = 0;
  for (; k + 16 <= count; k += 16)
    for (int l = 0; l < 16; ++l) part[l] += term(k + l);
  for (; k < count; ++k) part[0] += term(k);
  T sum = 0;
  for (int l = 0; l < 16; ++l) sum += part[l];
  return sum;
}

// 1/|x| of every row, 0 where |x| is at most epsilon. Five torch operators in one: a small batch
// spends its time on the way into operators.
template <class T>
void inverse_norm(const T* x, T* out, int64_t rows, int64_t dim, int64_t ldx, T epsilon) {
  torch::stable::parallel_for(0, rows, 1 + 16384 / (dim + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* xi = x + i * ldx;
      const T norm = std::sqrt(partial_sums<T>(dim, [=](int64_t d) { return xi[d] * xi[d]; }));
      out[i] = norm > epsilon ? T(1) / norm : T(0);
    }
  });
}

// Whether products of rows with these inverse norms, squares of norms and what gradients are made of stay
// within the type: fastdml/engine/conditioning.py.
template <class T>
bool in_range(const T* x, int64_t dim, const std::vector<T>& inverse_norm) {
  constexpr T far = sizeof(T) == 4 ? T(1099511627776.0) : T(1.157920892373162e77);  // 2^40, 2^256
  for (const T v : inverse_norm) {
    if (v < 1 / far ? std::any_of(x, x + dim, [](T w) { return w != T(0); }) : v > far) return false;
    x += dim;
  }
  return true;
}

// Adds every step-th row of x to sum [dim], and returns the sum of their squared lengths.
template <class T>
double add_rows(const T* x, int64_t rows, int64_t dim, int64_t ldx, int64_t step, double* sum) {
  double square = 0;
  for (int64_t i = 0; i < rows; i += step) {
    const T* xi = x + i * ldx;
    for (int64_t d = 0; d < dim; ++d) sum[d] += xi[d];
    square += partial_sums<double>(dim, [=](int64_t d) { return static_cast<double>(xi[d]) * xi[d]; });
  }
  return square;
}

// 0, or NaN where a value is NaN or infinite.
template <class T>
T poison(const T* x, int64_t count) {
  return partial_sums<T>(count, [=](int64_t k) { return x[k] * T(0); });
}

// Takes out of g the part along x: what normalising x leaves of a gradient that already carries 1/|x|.
template <class T>
void remove_radial(T* g, const T* x, const T* inverse_norm, int64_t rows, int64_t dim, int64_t ldx) {
  torch::stable::parallel_for(0, rows, 1 + 16384 / (dim + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* gi = g + i * dim;
      const T* xi = x + i * ldx;
      const T dot = partial_sums<T>(dim, [=](int64_t d) { return gi[d] * xi[d]; });
      const T along = dot * inverse_norm[i] * inverse_norm[i];
      for (int64_t d = 0; d < dim; ++d) gi[d] -= along * xi[d];
    }
  });
}

// The same for matrices stored by columns: [dim, rows] in memory.
template <class T>
void remove_radial_by_columns(T* g, const T* x, const T* inverse_norm, int64_t rows, int64_t dim) {
  constexpr int64_t tile = 256;
  torch::stable::parallel_for(0, (rows + tile - 1) / tile, 1 + 64 / (dim + 1),
                              [&](int64_t begin, int64_t end) {
    T along[tile];
    for (int64_t first = begin * tile; first < std::min(rows, end * tile); first += tile) {
      const int64_t n = std::min(tile, rows - first);
      std::fill(along, along + n, T(0));
      for (int64_t d = 0; d < dim; ++d)
        for (int64_t i = 0; i < n; ++i) along[i] += g[d * rows + first + i] * x[d * rows + first + i];
      for (int64_t i = 0; i < n; ++i) along[i] *= inverse_norm[first + i] * inverse_norm[first + i];
      for (int64_t d = 0; d < dim; ++d)
        for (int64_t i = 0; i < n; ++i) g[d * rows + first + i] -= along[i] * x[d * rows + first + i];
    }
  });
}

}  // namespace fastdml
