// Compiles one loss for one instruction set. A generated source file per pair defines FASTDML_ISA and
// FASTDML_VECTOR_BYTES, includes this file, then the loss's header, which ends in FASTDML_ROW_LOSS.
#pragma once
#include "columns.h"
#include "differences.h"
#include "row.h"

namespace fastdml {
inline namespace FASTDML_ISA {

// How many values a functor returns, a plain T, Values<T, N> or Counted<T>, and how many of them the
// result weights.
template <class T>
struct OutputsOf {
  static constexpr int count = 1, weights = 1;
  FASTDML_FN static void put(T* out, T v) { *out = v; }
};
template <class T, int N>
struct OutputsOf<Values<T, N>> {
  static constexpr int count = N, weights = N;
  FASTDML_FN static void put(T* out, const Values<T, N>& v) {
    for (int k = 0; k < N; ++k) out[k] = v[k];
  }
};
template <class T>
struct OutputsOf<Counted<T>> {
  static constexpr int count = 2, weights = 1;
  FASTDML_FN static void put(T* out, Counted<T> v) {
    out[0] = v.loss;
    out[1] = v.count;
  }
};
template <class T, template <class> class Loss>
using Outputs = OutputsOf<decltype(std::declval<const Loss<T>&>()(std::declval<Row<T>&>()))>;

// Squared distances that are small beside what they are differences of, made again from the embeddings. Rare, and
// not inlined: it would take the registers of what is not.
template <class T>
__attribute__((noinline, cold)) Vector<T> near_ones(const Block<T>& b, std::int64_t i, std::int64_t j, int count,
                                                    Vector<T> d2, Vector<T> total) {
  T found[kWidth<T>], totals[kWidth<T>];
  store(found, d2);
  store(totals, total);
  near_distances(b, i, j, count, found, totals);
  return load(found);
}

// Distances of row i and the columns from j on, of their products v times `scale` and the sums of their squared
// norms.
template <class T>
FASTDML_FN Vector<T> distances(const Block<T>& b, std::int64_t i, std::int64_t j, int count, Vector<T> v,
                               Vector<T> scale, Vector<T> total) {
  Vector<T> d2 = total - T(2) * v * scale;
  if (any(d2 < T(kNear) * total)) d2 = near_ones(b, i, j, count, d2, total);
  d2 += b.epsilon;
  return b.metric == Metric::distance ? sqrt(d2) : d2;
}

// And derivatives g by them to weights of the products: d(d2)/d(product) = -2; d(d)/d(d2) = 1/(2d), and 0 where
// two embeddings coincide.
template <class T>
FASTDML_FN Vector<T> weights_of_products(Metric metric, Vector<T> g, Vector<T> distance, Vector<T> scale) {
  if (metric == Metric::squared_distance) return g * (scale * T(-2));
  return select(distance > T(0), -g * scale / distance, T(0));
}

// In place over one row: products to what the functor sees, and its weights back to those of products.
// `by` is the row's scale, on the way out times the row's weight.
template <class T>
struct Prologue {
  const Block<T>& b;
  std::int64_t i;

  template <class F>
  FASTDML_FN void each(T* s, F f) const {
    constexpr int W = kWidth<T>;
    std::int64_t j = 0;
    for (; j + W <= b.cols; j += W) store(s + j, f(load(s + j), j, W));
    if (j < b.cols) {
      const int count = static_cast<int>(b.cols - j);
      store(s + j, f(load(s + j, count), j, count), count);
    }
  }
  FASTDML_FN Vector<T> scale(std::int64_t j, int count, T by) const {
    return b.col_scale ? load(b.col_scale + j, count) * by : broadcast<T>(by);
  }
  FASTDML_FN void in(T* s) const {
    const T by = b.row_scale ? b.row_scale[i] : T(1);
    if (b.metric == Metric::product) {
      if (b.col_scale)
        each(s, [&](Vector<T> v, std::int64_t j, int n) { return v * scale(j, n, by); });
      return;
    }
    const T own = b.row_square[i];
    each(s, [&](Vector<T> v, std::int64_t j, int n) {
      return distances(b, i, j, n, v, scale(j, n, by), own + load(b.col_square + j, n));
    });
  }
  // d: what in() produced, for distances; the functor has overwritten s. weight: of the row.
  FASTDML_FN void out(T* s, const T* d, T weight) const {
    const T by = (b.row_scale ? b.row_scale[i] : T(1)) * weight;
    if (b.metric == Metric::product) {
      if (b.col_scale || by != T(1))
        each(s, [&](Vector<T> v, std::int64_t j, int n) { return v * scale(j, n, by); });
      return;
    }
    each(s, [&](Vector<T> v, std::int64_t j, int n) {
      const bool root = b.metric == Metric::distance;
      return weights_of_products<T>(b.metric, v, root ? load(d + j, n) : v, scale(j, n, by));
    });
  }
};

// The functor with a call's parameters.
template <class Loss, class T>
Loss described(const Block<T>& b) {
  Loss loss;
  constexpr std::size_t count = sizeof(Loss) / sizeof(T);
  T parameters[count];
  for (std::size_t k = 0; k < count; ++k) parameters[k] = static_cast<T>(b.parameters[k]);
  std::memcpy(&loss, parameters, sizeof loss);
  return loss;
}

template <class Loss>
constexpr int gathered() {
  if constexpr (requires { Loss::gathered; })
    return Loss::gathered;
  else
    return 0;
}

template <class T, template <class> class Loss>
void run_columns(const Block<T>& b, std::int64_t begin, std::int64_t end, T* state, bool first) {
  if constexpr (gathered<Loss<T>>() > 0)
    gather_columns(described<Loss<T>>(b), b, begin, end, state, first);
}

template <class T, template <class> class Loss>
void run(const Block<T>& b, std::int64_t begin, std::int64_t end, T* arena) {
  const Loss<T> loss = described<Loss<T>>(b);
  using Out = Outputs<T, Loss>;
  const bool keep = b.gradient && b.metric == Metric::distance;
  T* kept = arena;
  if (keep) arena += b.cols;
  const std::int64_t together = rows_together(loss);
  // Not a std::vector: code for an instruction set must share no templates with others'. Nothing throws.
  T* const kept_rows = keep && together > 1 ? new T[together * b.cols] : nullptr;
  if (kept_rows) kept = kept_rows;
  // A thread takes the stacks that begin among its rows, to their ends.
  for (std::int64_t i = (begin + together - 1) / together * together; i < end; i += together) {
    const std::int64_t rows = together < b.rows - i ? together : b.rows - i;
    T* s = b.s + i * b.ld;
    for (std::int64_t r = 0; r < rows; ++r) {
      if (!b.seen) Prologue<T>{b, i + r}.in(s + r * b.ld);
      if (keep) std::memcpy(kept + r * b.cols, s + r * b.ld, b.cols * sizeof(T));
    }
    Row<T> row(b, i, arena);
    Out::put(b.loss + i * Out::count, loss(row));
    for (std::int64_t k = Out::count; k < rows * Out::count; ++k) b.loss[i * Out::count + k] = T(0);
    if (!b.gradient) continue;
    // A functor with several weights has applied them itself.
    const T weight =
        Out::weights == 1 ? b.weight * (b.row_weight ? b.row_weight[i] : T(1)) : T(1);
    for (std::int64_t r = 0; r < rows; ++r)
      Prologue<T>{b, i + r}.out(s + r * b.ld, kept + r * b.cols, weight);
    if (Out::weights == 1 && weight != T(1)) {
      for (std::int64_t k = 0; b.d_scalars && k < b.scalar_count; ++k)
        b.d_scalars[i * b.scalar_count + k] *= weight;
      for (std::int64_t k = 0; b.d_row_values && k < b.row_count; ++k)
        b.d_row_values[i * b.row_count + k] *= weight;
    }
  }
  delete[] kept_rows;
}

}  // namespace FASTDML_ISA
}  // namespace fastdml

#define FASTDML_JOIN_(a, b, c) a##_##b##_##c
#define FASTDML_JOIN(a, b, c) FASTDML_JOIN_(a, b, c)

#define FASTDML_ROW_LOSS(name, Loss)                                         \
  namespace fastdml {                                                        \
  extern const Kernel FASTDML_JOIN(kernel, name, FASTDML_ISA);               \
  const Kernel FASTDML_JOIN(kernel, name, FASTDML_ISA) = {                   \
      run<float, Loss>, run<double, Loss>, sizeof(Loss<double>) / sizeof(double), \
      Outputs<double, Loss>::count, Outputs<double, Loss>::weights, run_columns<float, Loss>, \
      run_columns<double, Loss>, gathered<Loss<double>>()};                    \
  }
