// Compiles the streamed form of one loss, which the language prints, for one instruction set.
#pragma once
#include "instantiate.h"
#include "stream.h"

namespace fastdml {
inline namespace FASTDML_ISA {

template <int K>
struct Pass {};

// The numbers of a row, as pairs read them: of the row's own, or of columns as rows.
template <class X>
struct Numbers {
  const X* v;
  FASTDML_FN X operator()(int k) const { return v[k]; }
};

// What the numbers of one row are made from: in double precision, as there are few.
template <class T>
struct Known {
  const RowNumbers<T>& of;
  std::int64_t i;
  FASTDML_FN double scalar(int k) const { return of.scalars[k]; }
  FASTDML_FN double value(int k) const { return of.row_values[i * of.row_count + k]; }
  FASTDML_FN double weight(int k, int outputs) const {
    return of.weight * (of.weights ? of.weights[i * outputs + k] : T(1));
  }
  FASTDML_FN double candidates() const { return of.candidates; }
  FASTDML_FN void d_scalar(int k, double v) const {
    if (of.d_scalars) of.d_scalars[i * of.scalar_count + k] = static_cast<T>(v);
  }
  FASTDML_FN void d_value(int k, double v) const {
    if (of.d_row_values) of.d_row_values[i * of.row_count + k] = static_cast<T>(v);
  }
  template <int N>
  FASTDML_FN void read(double (&to)[N], int count) const {
    for (int k = 0; k < count; ++k) {
      const T x = of.statistics[k * of.samples + i];
      // The least and the largest number of the type say that there was no pair.
      to[k] = x <= lowest<T>() ? lowest<double>() : x >= highest<T>() ? highest<double>() : double(x);
    }
  }
};

// What pairs read of the call.
template <class T>
struct Asked {
  const T* scalars;
  FASTDML_FN T scalar(int k) const { return scalars[k]; }
};

template <class Loss, class T>
Loss streamed(const double* given) {
  Loss loss;
  constexpr std::size_t count = sizeof(Loss) / sizeof(T);
  T parameters[count];
  for (std::size_t k = 0; k < count; ++k) parameters[k] = static_cast<T>(given[k]);
  std::memcpy(&loss, parameters, sizeof loss);
  return loss;
}

template <class... Ops>
struct Operations {
  static constexpr int count = sizeof...(Ops);
  template <class T>
  static void identities(T* to) {
    int k = 0;
    ((to[k++] = identity<T>(Ops{})), ...);
  }
  template <class X>
  FASTDML_FN static void fold(X* into, const X* x) {
    int k = 0;
    ((into[k] = combine_two(Ops{}, into[k], x[k]), ++k), ...);
  }
  template <class T>
  FASTDML_FN static void across_lanes(T* to, const Vector<T>* x) {
    int k = 0;
    ((to[k] = across<Ops, T>(Ops{}, x[k]), ++k), ...);
  }
  template <class X>
  FASTDML_FN static X combine_two(Sum, X a, X b) { return a + b; }
  template <class X>
  FASTDML_FN static X combine_two(Min, X a, X b) { return min(a, b); }
  template <class X>
  FASTDML_FN static X combine_two(Max, X a, X b) { return max(a, b); }
};

constexpr int kStrip = 4;  // rows at a time: a column's numbers are read and gathered once for all

// Products of one vector of a row's pairs to what the loss sees, and weights back.
template <class T>
struct PairNumbers {
  const Trapezoid<T>& b;
  using V = Vector<T>;
  FASTDML_FN V scale(V of_columns, T own) const { return of_columns * own; }
  FASTDML_FN V in(V v, V scale, V square, T own_square) const {
    if (b.metric == Metric::product) return b.scale ? v * scale : v;
    const T tiny = sizeof(T) == 4 ? T(4 * 1.1920929e-07) : T(4 * 2.220446049250313e-16);
    const V total = own_square + square;
    V d2 = total - T(2) * v * scale;
    d2 = select(d2 < tiny * total, T(0), d2) + b.epsilon;
    return b.metric == Metric::distance ? sqrt(d2) : d2;
  }
  FASTDML_FN V out(V g, V scale, V number) const {
    if (b.metric == Metric::product) return b.scale ? g * scale : g;
    if (b.metric == Metric::squared_distance) return g * (scale * T(-2));
    return select(number > T(0), -g * scale / number, T(0));
  }
};

// Calls f.template operator()<masked>(i, rows, j, count) for strips of rows and vectors of columns of one
// piece of a trapezoid. masked: some pair of these is none.
template <class T, class Before, class F, class After>
void strips(const Trapezoid<T>& b, std::int64_t piece, Before before, F f, After after) {
  constexpr int W = kWidth<T>;
  const std::int64_t count = (b.rows + kStrip - 1) / kStrip;
  const std::int64_t begin = count * piece / b.pieces, end = count * (piece + 1) / b.pieces;
  for (std::int64_t strip = begin; strip < end; ++strip) {
    const std::int64_t i = strip * kStrip;
    const int rows = b.rows - i < kStrip ? static_cast<int>(b.rows - i) : kStrip;
    before(i, rows);
    const std::int64_t whole = b.cols / W * W;
    std::int64_t j = i / W * W;
    // The vectors that hold a row's own pair.
    for (; j < b.cols && (j <= i + kStrip - 1 || rows < kStrip || j >= whole); j += W)
      f.template operator()<true>(i, rows, j, b.cols - j < W ? static_cast<int>(b.cols - j) : W);
    for (; j < whole; j += W) f.template operator()<false>(i, rows, j, W);
    if (j < b.cols) f.template operator()<true>(i, rows, j, static_cast<int>(b.cols - j));
    after(i, rows);
  }
}

template <class T>
FASTDML_FN Mask<T> counting(std::int64_t i, std::int64_t j, int count) {
  using I = typename Lane<T>::I;
  const Mask<T> lane = iota<T>();
  return (lane > static_cast<I>(i - j)) & (lane < static_cast<I>(count));
}

template <class T>
FASTDML_FN Mask<T> same_class(const std::int32_t* classes, std::int64_t j, int count, std::int32_t own) {
  typedef std::int32_t C __attribute__((vector_size(kWidth<T> * 4)));
  C c{};
  std::memcpy(&c, classes + j, count * 4);
  return __builtin_convertvector(c == own, Mask<T>);
}

template <class T>
FASTDML_FN Pairs<T> pairs_of(Vector<T> s, Mask<T> same, std::int64_t j, int count) {
  return {s, same, ~same, nullptr, nullptr, j, count};
}

template <class T, template <class> class Loss, int K>
void fold_pass(const Trapezoid<T>& b, std::int64_t piece) {
  using V = Vector<T>;
  using L = Loss<T>;
  using Ops = decltype(L::operations(Pass<K>{}));
  constexpr int W = kWidth<T>, N = Ops::count, R = L::reads(Pass<K>{});
  const L loss = streamed<L, T>(b.parameters);
  const auto fold = loss.fold(Pass<K>{}, Asked<T>{b.scalars});
  const PairNumbers<T> numbers{b};
  T nothing[N];
  Ops::identities(nothing);
  // What the columns gather from this block: added to the rest once, which keeps rounding small.
  const std::int64_t padded = (b.cols + W - 1) / W * W;
  T* const columns = new T[N * padded];
  for (int k = 0; k < N; ++k)
    for (std::int64_t j = 0; j < padded; ++j) columns[k * padded + j] = nothing[k];
  T* const partial = b.partial + piece * N * b.samples;
  const std::int32_t* const classes = b.classes + b.first;
  V rows_total[kStrip][N];
  T own[kStrip][R + 1], own_scale[kStrip], own_square[kStrip];
  strips(
      b, piece,
      [&](std::int64_t i, int rows) {
        for (int r = 0; r < kStrip; ++r) {
          const std::int64_t at = b.first + i + (r < rows ? r : 0);
          own_scale[r] = b.scale ? b.scale[at] : T(1);
          own_square[r] = b.square ? b.square[at] : T(0);
          for (int h = 0; h < R; ++h) own[r][h] = b.known[h * b.samples + at];
          for (int k = 0; k < N; ++k) rows_total[r][k] = broadcast<T>(nothing[k]);
        }
      },
      [&]<bool masked>(std::int64_t i, int rows, std::int64_t j, int count) __attribute__((always_inline)) {
        const V scale = b.scale ? load(b.scale + b.first + j, count) : broadcast<T>(T(1));
        const V square = b.square ? load(b.square + b.first + j, count) : V{};
        V of_column[R + 1], gathered[N];
        for (int h = 0; h < R; ++h) of_column[h] = load(b.known + h * b.samples + b.first + j, count);
        for (int k = 0; k < N; ++k) gathered[k] = load(columns + k * padded + j);
        const int most = masked ? rows : kStrip;
#pragma GCC unroll 4
        for (int r = 0; r < most; ++r) {
          const V s = numbers.in(load(b.s + (i + r) * b.ld + j, count), scale * own_scale[r], square,
                                 own_square[r]);
          const auto p = pairs_of<T>(s, same_class<T>(classes, j, count, classes[i + r]), j, count);
          auto x = fold(p, Numbers<T>{own[r]});
          auto y = x;
          if constexpr (R > 0) y = fold(p, Numbers<V>{of_column});
          if constexpr (masked) {
            const auto counts = counting<T>(i + r, j, count);
            for (int k = 0; k < N; ++k) {
              x[k] = counts ? x[k] : broadcast<T>(nothing[k]);
              y[k] = counts ? y[k] : broadcast<T>(nothing[k]);
            }
          }
          Ops::fold(rows_total[r], x.v);
          Ops::fold(gathered, y.v);
        }
        for (int k = 0; k < N; ++k) store(columns + k * padded + j, gathered[k]);
      },
      [&](std::int64_t i, int rows) {
        for (int r = 0; r < rows; ++r) {
          T x[N], before[N];
          Ops::across_lanes(x, rows_total[r]);
          for (int k = 0; k < N; ++k) before[k] = partial[k * b.samples + b.first + i + r];
          Ops::fold(before, x);
          for (int k = 0; k < N; ++k) partial[k * b.samples + b.first + i + r] = before[k];
        }
      });
  for (std::int64_t j = 0; j < b.cols; ++j) {
    T x[N], before[N];
    for (int k = 0; k < N; ++k) x[k] = columns[k * padded + j];
    for (int k = 0; k < N; ++k) before[k] = partial[k * b.samples + b.first + j];
    Ops::fold(before, x);
    for (int k = 0; k < N; ++k) partial[k * b.samples + b.first + j] = before[k];
  }
  delete[] columns;
}

template <class T, template <class> class Loss>
void weigh(const Trapezoid<T>& b, std::int64_t piece) {
  using V = Vector<T>;
  using L = Loss<T>;
  using Last = Pass<L::passes>;
  constexpr int R = L::reads(Last{});
  const L loss = streamed<L, T>(b.parameters);
  const auto weight = loss.weight(Asked<T>{b.scalars});
  const PairNumbers<T> numbers{b};
  const std::int32_t* const classes = b.classes + b.first;
  T own[kStrip][R + 1], own_scale[kStrip], own_square[kStrip], own_weight[kStrip];
  strips(
      b, piece,
      [&](std::int64_t i, int rows) {
        for (int r = 0; r < kStrip; ++r) {
          const std::int64_t at = b.first + i + (r < rows ? r : 0);
          own_scale[r] = b.scale ? b.scale[at] : T(1);
          own_square[r] = b.square ? b.square[at] : T(0);
          own_weight[r] = b.weight * (b.row_weight ? b.row_weight[at] : T(1));
          for (int h = 0; h < R; ++h) own[r][h] = b.known[h * b.samples + at];
        }
        for (int r = 0; r < rows; ++r)
          std::memset(b.s + (i + r) * b.ld, 0, i / kWidth<T> * kWidth<T> * sizeof(T));
      },
      [&]<bool masked>(std::int64_t i, int rows, std::int64_t j, int count) __attribute__((always_inline)) {
        const V scale = b.scale ? load(b.scale + b.first + j, count) : broadcast<T>(T(1));
        const V square = b.square ? load(b.square + b.first + j, count) : V{};
        const V by = b.row_weight ? load(b.row_weight + b.first + j, count) * b.weight : broadcast<T>(b.weight);
        V of_column[R + 1];
        for (int h = 0; h < R; ++h) of_column[h] = load(b.known + h * b.samples + b.first + j, count);
        const int most = masked ? rows : kStrip;
#pragma GCC unroll 4
        for (int r = 0; r < most; ++r) {
          T* const at = b.s + (i + r) * b.ld + j;
          const V both = scale * own_scale[r];
          const V s = numbers.in(load(at, count), both, square, own_square[r]);
          const auto p = pairs_of<T>(s, same_class<T>(classes, j, count, classes[i + r]), j, count);
          V g = weight(p, Numbers<T>{own[r]}) * own_weight[r];
          g += weight(p, Numbers<V>{of_column}) * by;
          g = numbers.out(g, both, s);
          if constexpr (masked) g = counting<T>(i + r, j, count) ? g : V{};
          store(at, g, count);
        }
      },
      [](std::int64_t, int) {});
}

template <class T, template <class> class Loss, int K = 0>
void fold(const Trapezoid<T>& b, int pass, std::int64_t piece) {
  if constexpr (K < Loss<T>::passes) {
    if (pass == K) return fold_pass<T, Loss, K>(b, piece);
    return fold<T, Loss, K + 1>(b, pass, piece);
  }
}

template <class T, template <class> class Loss>
constexpr int statistics_before(int pass) {
  int all = 0;
  for (int k = 0; k < pass; ++k) all += Loss<T>::statistics[k];
  return all;
}

template <class T, template <class> class Loss, int K = 0>
void begin(T* partial, std::int64_t pieces, std::int64_t samples, int pass) {
  if constexpr (K < Loss<T>::passes) {
    if (pass != K) return begin<T, Loss, K + 1>(partial, pieces, samples, pass);
    using Ops = decltype(Loss<T>::operations(Pass<K>{}));
    T nothing[Ops::count];
    Ops::identities(nothing);
    for (std::int64_t piece = 0; piece < pieces; ++piece)
      for (int k = 0; k < Ops::count; ++k)
        for (std::int64_t i = 0; i < samples; ++i) *partial++ = nothing[k];
  }
}

template <class T, template <class> class Loss, int K = 0>
void merge(const T* partial, std::int64_t pieces, std::int64_t samples, int pass, T* statistics) {
  if constexpr (K < Loss<T>::passes) {
    if (pass != K) return merge<T, Loss, K + 1>(partial, pieces, samples, pass, statistics);
    using Ops = decltype(Loss<T>::operations(Pass<K>{}));
    constexpr int N = Ops::count;
    T* const to = statistics + statistics_before<T, Loss>(K) * samples;
    for (std::int64_t i = 0; i < samples; ++i) {
      T total[N], x[N];
      for (int k = 0; k < N; ++k) total[k] = partial[k * samples + i];
      for (std::int64_t piece = 1; piece < pieces; ++piece) {
        for (int k = 0; k < N; ++k) x[k] = partial[(piece * N + k) * samples + i];
        Ops::fold(total, x);
      }
      for (int k = 0; k < N; ++k) to[k * samples + i] = total[k];
    }
  }
}

template <class T, template <class> class Loss, int K = 0>
void next(const RowNumbers<T>& of, int pass, std::int64_t from, std::int64_t to) {
  if constexpr (K <= Loss<T>::passes) {
    if (pass != K) return next<T, Loss, K + 1>(of, pass, from, to);
    using L = Loss<double>;
    constexpr int R = L::reads(Pass<K>{}), N = statistics_before<T, Loss>(K);
    const L loss = streamed<L, double>(of.parameters);
    for (std::int64_t i = from; i < to; ++i) {
      const Known<T> row{of, i};
      double statistic[N + 1], known[R + 1];
      row.read(statistic, N);
      loss.before(Pass<K>{}, statistic, row, known);
      for (int k = 0; k < R; ++k) of.known[k * of.samples + i] = static_cast<T>(known[k]);
    }
  }
}

template <class T, template <class> class Loss>
void result(const RowNumbers<T>& of, std::int64_t from, std::int64_t to) {
  using L = Loss<double>;
  constexpr int N = statistics_before<T, Loss>(L::passes);
  const L loss = streamed<L, double>(of.parameters);
  for (std::int64_t i = from; i < to; ++i) {
    const Known<T> row{of, i};
    double statistic[N + 1], found[L::outputs];
    row.read(statistic, N);
    loss.result(statistic, row, found);
    for (int k = 0; k < L::outputs; ++k) of.loss[i * L::outputs + k] = static_cast<T>(found[k]);
  }
}

template <class T, template <class> class Loss>
constexpr StreamOf<T> stream_functions() {
  return {fold<T, Loss>, merge<T, Loss>, begin<T, Loss>, next<T, Loss>, result<T, Loss>, weigh<T, Loss>};
}

}  // namespace FASTDML_ISA
}  // namespace fastdml
