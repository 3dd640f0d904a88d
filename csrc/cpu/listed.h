// Pairs that somebody lists, in the order of their rows: what they are, and what their weights leave.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "block.h"
#include "differences.h"
#include "norms.h"

namespace fastdml {

// A list by rows: the pairs of row i stand at order[k], or at k itself, for k from start[i * every] to
// start[(i + 1) * every]; pair t has the column column[t].
template <class Index>
struct List {
  const std::int64_t* start;
  const std::int32_t* order;  // or null
  const Index* column;
  std::int64_t every;

  template <class F>
  void each(std::int64_t row, F f) const {
    const std::int64_t begin = start[row * every], end = start[(row + 1) * every];
    if (order)
      for (std::int64_t k = begin; k < end; ++k) f(std::int64_t{order[k]}, std::int64_t{column[order[k]]});
    else
      for (std::int64_t k = begin; k < end; ++k) f(k, std::int64_t{column[k]});
  }
  // Rows [first, first + count) by torch's threads, about 20 µs of work at least for each; `pair`: what one
  // takes, in additions.
  template <class F>
  void parallel(std::int64_t first, std::int64_t count, std::int64_t pair, F f) const {
    const std::int64_t pairs = start[(first + count) * every] - start[first * every];
    const std::int64_t work = 1 + pairs * pair / (count + 1);
    torch::stable::parallel_for(0, count, 1 + 16384 / work, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = first + begin; i < first + end; ++i) f(i);
    });
  }
};

template <Metric M>
struct Of {};

// f with the metric as a type, so that no loop asks for it.
template <class F>
void by_metric(Metric metric, F f) {
  if (metric == Metric::product)
    f(Of<Metric::product>{});
  else if (metric == Metric::squared_distance)
    f(Of<Metric::squared_distance>{});
  else
    f(Of<Metric::distance>{});
}

// What the pair of row i and column j is, from its product: Metric.apply_ of fastdml/engine/similarity.py.
template <Metric M, class T>
T number_of(const Block<T>& b, std::int64_t i, std::int64_t j, T product) {
  if (b.row_scale) product *= b.row_scale[i] * b.col_scale[j];
  if constexpr (M == Metric::product) return product;
  const T total = b.row_square[i] + b.col_square[j];
  T d2 = total - T(2) * product;
  if (d2 < T(kNear) * total) d2 = near_distance(b, i, j, d2, total);
  d2 += b.epsilon;
  return M == Metric::distance ? std::sqrt(d2) : d2;
}

// The weight of a pair's product, from the derivative g by what the pair is, d: Metric.weigh_ there.
template <Metric M, class T>
T weight_of(const Block<T>& b, std::int64_t i, std::int64_t j, T g, T d) {
  const T w = b.row_scale ? g * (b.row_scale[i] * b.col_scale[j]) : g;
  if constexpr (M == Metric::product) return w;
  if constexpr (M == Metric::squared_distance) return T(-2) * w;
  const bool apart = d > std::sqrt(b.epsilon);  // see rows/apart.h
  const T quotient = -w / (apart ? d : T(1));
  return apart ? quotient : T(0);
}

// What the pairs of rows [first, first + count) are, into out; s [count, cols]: their products, or null, and
// they are made one by one of the embeddings.
template <class T, class Index>
void listed_values(const Block<T>& b, const List<Index>& list, const T* s, std::int64_t ld,
                   std::int64_t first, std::int64_t count, T* out) {
  by_metric(b.metric, [&]<Metric M>(Of<M>) {
    list.parallel(first, count, s ? 4 : b.dim + 8, [&](std::int64_t i) {
      if (s) {
        const T* const row = s + (i - first) * ld;
        list.each(i, [&](std::int64_t t, std::int64_t j) { out[t] = number_of<M>(b, i, j, row[j]); });
        return;
      }
      const T* const x = b.anchors.x + i * b.anchors.row;
      list.each(i, [&](std::int64_t t, std::int64_t j) {
        const T* const y = b.candidates.x + j * b.candidates.row;
        const T product = partial_sums<T>(b.dim, [=](std::int64_t k) { return x[k] * y[k]; });
        out[t] = number_of<M>(b, i, j, product);
      });
    });
  });
}

// The weights of products of rows [first, first + count) added to g [count, cols].
template <class T, class Index>
void listed_weights(const Block<T>& b, const List<Index>& list, T* g, std::int64_t ld, std::int64_t first,
                    std::int64_t count, const T* derivative, const T* d) {
  by_metric(b.metric, [&]<Metric M>(Of<M>) {
    list.parallel(first, count, 4, [&](std::int64_t i) {
      T* const row = g + (i - first) * ld;
      list.each(i, [&](std::int64_t t, std::int64_t j) {
        row[j] += weight_of<M>(b, i, j, derivative[t], M == Metric::distance ? d[t] : T(0));
      });
    });
  });
}

// out[i] += the sum over the row's pairs of the weights of their products times the candidates; total[i]: of
// the weights, each over the candidate's scale, or null. Products are not made.
template <class T, class Index>
void listed_gradient(const Block<T>& b, const List<Index>& list, const T* derivative, const T* d, T* out,
                     T* total) {
  by_metric(b.metric, [&]<Metric M>(Of<M>) {
    list.parallel(0, b.rows, b.dim + 8, [&](std::int64_t i) {
      T* const to = out + i * b.dim;
      T sum = T(0);
      list.each(i, [&](std::int64_t t, std::int64_t j) {
        if (derivative[t] == T(0)) return;
        const T w = weight_of<M>(b, i, j, derivative[t], M == Metric::distance ? d[t] : T(0));
        const T* const y = b.candidates.x + j * b.candidates.row;
        for (std::int64_t k = 0; k < b.dim; ++k) to[k] += w * y[k];
        sum += b.col_scale ? w / b.col_scale[j] : w;
      });
      if (total) total[i] += sum;
    });
  });
}

}  // namespace fastdml
