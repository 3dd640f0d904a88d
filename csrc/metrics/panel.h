// Products of queries and gallery rows, a panel of each at a time.
//
// Every number is one chain of multiply-adds over the dimensions in ascending order, whatever tile, lane or
// thread computes it. So equal rows have equal scores, bit for bit, s(i, j) is s(j, i), and the score that is
// computed of a right pair alone is the one the sweep meets again: ties are ties.
#pragma once
#include "../cpu/lanes.h"

namespace fastdml {
inline namespace FASTDML_ISA {

// Rows of a panel of queries and vectors of a panel of the gallery: as many accumulators as registers hold.
#if FASTDML_VECTOR_BYTES == 64
constexpr int kQueryRows = 8, kVectors = 3;
#elif FASTDML_VECTOR_BYTES == 32
constexpr int kQueryRows = 4, kVectors = 3;
#else
constexpr int kQueryRows = 4, kVectors = 2;
#endif
template <class T>
constexpr int kPanel = kVectors * kWidth<T>;  // gallery rows of a panel

// a b + c, rounded once wherever the instruction set can: the compiler has no choice between two results.
template <class T>
FASTDML_FN Vector<T> multiply_add(Vector<T> a, Vector<T> b, Vector<T> c) {
#if defined(__AVX512F__) && FASTDML_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4)
    return (Vector<T>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  else
    return (Vector<T>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__) && FASTDML_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4)
    return (Vector<T>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  else
    return (Vector<T>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;
#endif
}

// out[r][c]: score of query r and gallery row c of a panel. queries [dim][stride], gallery [dim][kPanel].
// kDifference: minus the squared distance, from differences; nothing cancels. Else the product.
template <class T, bool kDifference, int kRows>
__attribute__((noinline)) void panel_scores(const T* queries, int stride, const T* gallery,
                                            std::int64_t dim, T* out, std::int64_t ld) {
  Vector<T> sum[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) sum[r][v] = Vector<T>{};
  for (std::int64_t d = 0; d < dim; ++d) {
    Vector<T> g[kVectors];
    for (int v = 0; v < kVectors; ++v) g[v] = load(gallery + d * kPanel<T> + v * kWidth<T>);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vector<T> q = broadcast(queries[d * stride + r]);
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) {
        if constexpr (kDifference) {
          const Vector<T> apart = q - g[v];
          sum[r][v] = multiply_add<T>(apart, apart, sum[r][v]);
        } else {
          sum[r][v] = multiply_add<T>(q, g[v], sum[r][v]);
        }
      }
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v)
      store(out + r * ld + v * kWidth<T>, kDifference ? -sum[r][v] : sum[r][v]);
}

// Rows [rows][dim], scaled, to a panel [dim][width]; missing rows are 0. index: which rows, or null.
template <class T, class From, class Read>
FASTDML_FN void pack_panel(const From* x, std::int64_t ld, const std::int64_t* index, const T* scale,
                           std::int64_t rows, std::int64_t dim, int width, T* to, Read read) {
  for (int r = 0; r < width; ++r) {
    if (r >= rows) {
      for (std::int64_t d = 0; d < dim; ++d) to[d * width + r] = T(0);
      continue;
    }
    const std::int64_t at = index ? index[r] : r;
    const From* from = x + at * ld;
    if (scale)
      for (std::int64_t d = 0; d < dim; ++d) to[d * width + r] = read(from[d]) * scale[at];
    else
      for (std::int64_t d = 0; d < dim; ++d) to[d * width + r] = read(from[d]);
  }
}

}  // namespace FASTDML_ISA
}  // namespace fastdml
