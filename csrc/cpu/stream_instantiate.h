// Compiles the streamed form of one loss, which the language prints, for one instruction set.
#pragma once
#include "instantiate.h"
#include "stream.h"

namespace fastdml {
inline namespace FASTDML_ISA {

template <int K>
struct Pass {};

// The numbers of a row, as pairs read them: of the row's own, or of columns as rows.
template <class T, class X>
struct Numbers {
  const X* v;
  FASTDML_FN X operator()(int k) const { return v[k]; }
  FASTDML_FN Mask<T> is(int k) const { return v[k] - Vector<T>{} != T(0); }  // of a mask
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
  FASTDML_FN double candidates() const { return of.counts ? of.counts[i] : of.candidates; }
  FASTDML_FN double columns() const { return of.samples; }  // whether or not they are pairs
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

// A number of a row in the type of pairs. The least and the largest number say so again, and what only this
// type cannot hold is nearer to them than to infinity.
template <class T>
FASTDML_FN T narrowed(double x) {
  if (x - x != 0) return static_cast<T>(x);  // infinite, or none
  return static_cast<T>(min(max(x, double(lowest<T>())), double(highest<T>())));
}

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

// A vector of pairs as one of their ends sees it, whose columns' values `other` the other ends have.
template <class T, class X>
struct Half {
  Vector<T> s;
  Mask<T> positive, negative;
  Vector<T> theirs;
  const X* other;
  FASTDML_FN Vector<T> teacher() const { return theirs; }
  FASTDML_FN Vector<T> column(int k) const { return other[k] - Vector<T>{}; }
};

// Products of one vector of a row's pairs to what the loss sees, and weights back.
template <class T>
struct PairNumbers {
  const Block<T>& b;
  using V = Vector<T>;
  FASTDML_FN V in(std::int64_t i, std::int64_t j, int count, V scale, V squares) const {
    const V v = load(b.s + i * b.ld + j, count);
    if (b.metric == Metric::product) return b.row_scale ? v * scale : v;
    return distances(b, i, j, count, v, scale, squares);
  }
  FASTDML_FN V out(V g, V scale, V number) const {
    if (b.metric == Metric::product) return b.row_scale ? g * scale : g;
    // Of two embeddings that coincide there is none (rows/apart.h).
    const T least = b.metric == Metric::distance ? std::sqrt(b.epsilon) : b.epsilon;
    if (b.epsilon > T(0)) g = select(number > least, g, T(0));
    return weights_of_products<T>(b.metric, g, number, scale);
  }
};

template <class T>
FASTDML_FN Mask<T> same_class(const std::int32_t* classes, std::int64_t j, int count, std::int32_t own) {
  typedef std::int32_t C __attribute__((vector_size(kWidth<T> * 4)));
  C c{};
  std::memcpy(&c, classes + j, count * 4);
  return __builtin_convertvector(c == own, Mask<T>);
}

// Whether a strip of rows has a positive among a vector of columns.
template <class T>
FASTDML_FN bool some_positive(const Trapezoid<T>& b, std::int64_t i, std::int64_t j) {
  Mask<T> some{};
  for (int r = 0; r < kStrip; ++r) some |= same_class<T>(b.classes, j, kWidth<T>, b.classes[i + r]);
  return any(some);
}

// What is known of the pairs of a strip of rows and a vector of columns: nothing, that all count, that all
// are negatives. As classes are small beside a batch, most are the latter.
enum class Vectors { any, whole, negatives };

// Calls f.template operator()<vectors>(i, rows, j, count) for strips of rows and vectors of columns of one
// piece of a trapezoid.
template <class T, class Before, class F, class After>
void strips(const Trapezoid<T>& b, std::int64_t piece, Before before, F f, After after) {
  constexpr int W = kWidth<T>;
  const std::int64_t all = b.block.rows, cols = b.block.cols, count = (all + kStrip - 1) / kStrip;
  const std::int64_t begin = count * piece / b.pieces, end = count * (piece + 1) / b.pieces;
  for (std::int64_t strip = begin; strip < end; ++strip) {
    const std::int64_t i = strip * kStrip;
    const int rows = all - i < kStrip ? static_cast<int>(all - i) : kStrip;
    before(i, rows);
    const std::int64_t whole = b.codes || rows < kStrip ? 0 : cols / W * W;
    std::int64_t j = i / W * W;
    // The vectors that hold a row's own pair.
    for (; j < cols && (j <= i + kStrip - 1 || j >= whole); j += W)
      f.template operator()<Vectors::any>(i, rows, j, cols - j < W ? static_cast<int>(cols - j) : W);
    for (; j < whole; j += W)
      if (some_positive(b, i, j))
        f.template operator()<Vectors::whole>(i, rows, j, W);
      else
        f.template operator()<Vectors::negatives>(i, rows, j, W);
    if (j < cols) f.template operator()<Vectors::any>(i, rows, j, static_cast<int>(cols - j));
    after(i, rows);
  }
}

// What a vector of pairs is in the rows of its two ends, 0 and 1, and whether it counts there.
template <class T>
struct Related {
  Mask<T> positive[2], negative[2], counts[2];
};

template <Vectors vectors, class T>
FASTDML_FN Related<T> related(const Trapezoid<T>& b, std::int64_t i, std::int64_t j, int count) {
  using I = typename Lane<T>::I;
  Related<T> r;
  if constexpr (vectors == Vectors::negatives) {  // constants, which make much of what follows one
    r.negative[0] = r.negative[1] = ~Mask<T>{};
    r.positive[0] = r.positive[1] = Mask<T>{};
  } else if (vectors == Vectors::any && b.codes) {
    typedef std::uint8_t C __attribute__((vector_size(kWidth<T>)));
    C c{};
    std::memcpy(&c, b.codes + i * b.block.cols + j, count);
    const Mask<T> code = __builtin_convertvector(c, Mask<T>);
    for (int end = 0; end < 2; ++end) {
      const I is_positive = end ? positive_of_column : positive;
      const I is_negative = end ? negative_of_column : negative;
      r.positive[end] = (code & is_positive) != 0;
      r.negative[end] = (code & is_negative) != 0;
      r.counts[end] = r.positive[end] | r.negative[end];
    }
  } else {
    const Mask<T> same = same_class<T>(b.classes, j, count, b.classes[i]);
    for (int end = 0; end < 2; ++end) {
      r.positive[end] = same;
      r.negative[end] = ~same;
      r.counts[end] = same | ~same;
    }
  }
  if constexpr (vectors == Vectors::any) {
    // A row's own pair has one end.
    const Mask<T> lane = iota<T>(), last = lane < static_cast<I>(count);
    r.counts[1] &= (lane > static_cast<I>(i - j)) & last;
    r.counts[0] &= (lane > static_cast<I>(i - j - b.own)) & last;
  }
  return r;
}

// A strip of rows, and a vector of columns, with what is known of them: R numbers and C values of candidates.
template <class T, int R, int C>
struct Strip {
  T known[kStrip][R + 1], value[kStrip][C + 1], scale[kStrip], square[kStrip], weight[kStrip];
  FASTDML_FN void read(const Trapezoid<T>& b, std::int64_t i, int rows) {
    for (int r = 0; r < kStrip; ++r) {
      const std::int64_t own = i + (r < rows ? r : 0), at = b.first + own;
      scale[r] = b.block.row_scale ? b.block.row_scale[own] : T(1);
      square[r] = b.block.row_square ? b.block.row_square[own] : T(0);
      weight[r] = b.weight * (b.row_weight ? b.row_weight[at] : T(1));
      for (int h = 0; h < R; ++h) known[r][h] = b.known[h * b.samples + at];
      for (int k = 0; k < C; ++k) value[r][k] = b.col_values[k * b.samples + at];
    }
  }
};

template <class T, int R, int C>
struct Columns {
  Vector<T> known[R + 1], value[C + 1], scale, square, weight;
  FASTDML_FN Columns(const Trapezoid<T>& b, std::int64_t j, int count) {
    const std::int64_t at = b.first + j;
    scale = b.block.row_scale ? load(b.block.row_scale + j, count) : broadcast<T>(T(1));
    square = b.block.row_square ? load(b.block.row_square + j, count) : Vector<T>{};
    weight = b.row_weight ? load(b.row_weight + at, count) * b.weight : broadcast<T>(b.weight);
    for (int h = 0; h < R; ++h) known[h] = load(b.known + h * b.samples + at, count);
    for (int k = 0; k < C; ++k) value[k] = load(b.col_values + k * b.samples + at, count);
  }
};

// f of both ends of the pairs of row r of a strip and a vector of columns: x of the row, y of the columns.
template <class T, int R, int C, class F>
struct Ends {
  const Trapezoid<T>& b;
  const F& f;
  template <class X>
  FASTDML_FN void operator()(const Strip<T, R, C>& strip, const Columns<T, R, C>& columns, int r,
                             std::int64_t i, std::int64_t j, int count, Vector<T> s, const Related<T>& is,
                             X& x, X& y) const {
    using V = Vector<T>;
    V theirs{};
    if (b.block.teacher) theirs = load(b.block.teacher + i * b.block.teacher_ld + j, count);
    x = f(Half<T, V>{s, is.positive[0], is.negative[0], theirs, columns.value},
          Numbers<T, T>{strip.known[r]});
    y = f(Half<T, T>{s, is.positive[1], is.negative[1], theirs, strip.value[r]},
          Numbers<T, V>{columns.known});
  }
};

// Folds pairs into what both their ends gather. Of the pass after the last, that is what their weights give
// the other end, as a candidate.
template <class T, template <class> class Loss, int K>
void fold_pass(const Trapezoid<T>& b, std::int64_t piece) {
  using V = Vector<T>;
  using L = Loss<T>;
  using Ops = decltype(L::operations(Pass<K>{}));
  constexpr int W = kWidth<T>, N = Ops::count, R = L::reads(Pass<K>{}), C = L::columns;
  constexpr bool crossed = K == L::passes;
  const L loss = streamed<L, T>(b.block.parameters);
  const auto fold = loss.fold(Pass<K>{}, Asked<T>{b.block.scalars});
  const PairNumbers<T> numbers{b.block};
  const Ends<T, R, C, decltype(fold)> ends{b, fold};
  const std::int64_t cols = b.block.cols;
  T nothing[N];
  Ops::identities(nothing);
  // What the columns gather from this block: added to the rest once, which keeps rounding small.
  const std::int64_t padded = (cols + W - 1) / W * W;
  T* const gathering = new T[N * padded];
  for (int k = 0; k < N; ++k)
    for (std::int64_t j = 0; j < padded; ++j) gathering[k * padded + j] = nothing[k];
  T* const partial = b.partial + piece * N * b.samples + b.first;
  const auto join = [&](std::int64_t at, const T* x) {
    T before[N];
    for (int k = 0; k < N; ++k) before[k] = partial[k * b.samples + at];
    Ops::fold(before, x);
    for (int k = 0; k < N; ++k) partial[k * b.samples + at] = before[k];
  };
  V rows_total[kStrip][N];
  Strip<T, R, C> strip;
  strips(
      b, piece,
      [&](std::int64_t i, int rows) {
        strip.read(b, i, rows);
        for (int r = 0; r < kStrip; ++r)
          for (int k = 0; k < N; ++k) rows_total[r][k] = broadcast<T>(nothing[k]);
      },
      [&]<Vectors vectors>(std::int64_t i, int rows, std::int64_t j, int count)
          __attribute__((always_inline)) {
        const Columns<T, R, C> columns(b, j, count);
        V gathered[N];
        for (int k = 0; k < N; ++k) gathered[k] = load(gathering + k * padded + j);
        const int most = vectors == Vectors::any ? rows : kStrip;
#pragma GCC unroll 4
        for (int r = 0; r < most; ++r) {
          const V s = numbers.in(i + r, j, count, columns.scale * strip.scale[r],
                                 columns.square + strip.square[r]);
          const auto is = related<vectors>(b, i + r, j, count);
          Values<V, N> x, y;
          ends(strip, columns, r, i + r, j, count, s, is, x, y);
          for (int k = 0; k < N; ++k) {
            if constexpr (crossed) {
              x[k] *= strip.weight[r];
              y[k] *= columns.weight;
            }
            if constexpr (vectors == Vectors::any) {
              x[k] = is.counts[0] ? x[k] : broadcast<T>(nothing[k]);
              y[k] = is.counts[1] ? y[k] : broadcast<T>(nothing[k]);
            }
          }
          Ops::fold(rows_total[r], crossed ? y.v : x.v);
          Ops::fold(gathered, crossed ? x.v : y.v);
        }
        for (int k = 0; k < N; ++k) store(gathering + k * padded + j, gathered[k]);
      },
      [&](std::int64_t i, int rows) {
        for (int r = 0; r < rows; ++r) {
          T x[N];
          Ops::across_lanes(x, rows_total[r]);
          join(i + r, x);
        }
      });
  for (std::int64_t j = 0; j < cols; ++j) {
    T x[N];
    for (int k = 0; k < N; ++k) x[k] = gathering[k * padded + j];
    join(j, x);
  }
  delete[] gathering;
}

template <class T, template <class> class Loss>
void weigh(const Trapezoid<T>& b, std::int64_t piece) {
  using V = Vector<T>;
  using L = Loss<T>;
  constexpr int R = L::reads(Pass<L::passes>{}), C = L::columns;
  const L loss = streamed<L, T>(b.block.parameters);
  const auto weight = loss.weight(Asked<T>{b.block.scalars});
  const PairNumbers<T> numbers{b.block};
  const Ends<T, R, C, decltype(weight)> ends{b, weight};
  Strip<T, R, C> strip;
  strips(
      b, piece,
      [&](std::int64_t i, int rows) {
        strip.read(b, i, rows);
        for (int r = 0; r < rows; ++r)
          std::memset(b.block.s + (i + r) * b.block.ld, 0, i / kWidth<T> * kWidth<T> * sizeof(T));
      },
      [&]<Vectors vectors>(std::int64_t i, int rows, std::int64_t j, int count)
          __attribute__((always_inline)) {
        const Columns<T, R, C> columns(b, j, count);
        const int most = vectors == Vectors::any ? rows : kStrip;
#pragma GCC unroll 4
        for (int r = 0; r < most; ++r) {
          const V scale = columns.scale * strip.scale[r];
          const V s = numbers.in(i + r, j, count, scale, columns.square + strip.square[r]);
          const auto is = related<vectors>(b, i + r, j, count);
          V x, y;
          ends(strip, columns, r, i + r, j, count, s, is, x, y);
          x *= strip.weight[r];
          y *= columns.weight;
          if constexpr (vectors == Vectors::any) {
            x = is.counts[0] ? x : V{};
            y = is.counts[1] ? y : V{};
          }
          store(b.block.s + (i + r) * b.block.ld + j, numbers.out(x + y, scale, s), count);
        }
      },
      [](std::int64_t, int) {});
}

// Whether there is a pass k that gathers anything: the last one, of candidates' values, may not.
template <class L>
constexpr bool gathers(int k) {
  return k < L::passes || (k == L::passes && L::statistics[k] > 0);
}

template <class T, template <class> class Loss, int K = 0>
void fold(const Trapezoid<T>& b, int pass, std::int64_t piece) {
  if constexpr (gathers<Loss<T>>(K)) {
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
  if constexpr (gathers<Loss<T>>(K)) {
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
  if constexpr (gathers<Loss<T>>(K)) {
    if (pass != K) return merge<T, Loss, K + 1>(partial, pieces, samples, pass, statistics);
    using Ops = decltype(Loss<T>::operations(Pass<K>{}));
    constexpr int N = Ops::count;
    for (std::int64_t i = 0; i < samples; ++i) {
      T total[N], x[N];
      for (int k = 0; k < N; ++k) total[k] = partial[k * samples + i];
      for (std::int64_t piece = 1; piece < pieces; ++piece) {
        for (int k = 0; k < N; ++k) x[k] = partial[(piece * N + k) * samples + i];
        Ops::fold(total, x);
      }
      for (int k = 0; k < N; ++k) statistics[k * samples + i] = total[k];
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
      for (int k = 0; k < R; ++k) of.known[k * of.samples + i] = narrowed<T>(known[k]);
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
    for (int k = 0; k < L::outputs; ++k) of.loss[i * L::outputs + k] = narrowed<T>(found[k]);
  }
}

template <class T, template <class> class Loss>
constexpr StreamOf<T> stream_functions() {
  return {fold<T, Loss>, merge<T, Loss>, begin<T, Loss>, next<T, Loss>, result<T, Loss>, weigh<T, Loss>};
}

}  // namespace FASTDML_ISA
}  // namespace fastdml
