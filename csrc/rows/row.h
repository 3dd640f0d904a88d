// The row language.
//
// A loss is a functor over one row of the similarity matrix: one anchor against all its candidates.
// It is templated on the value type T (float or double) and on the Row an executor hands it, and is
// written once for every processor:
//
//     template <class T> struct MyLoss {
//       T margin;                                     // parameters, in the order of the Python fields
//       template <class Row> FASTDML_FN T operator()(Row& row) const {
//         auto [hardest] = row.reduce([=](auto p) { return values(select(p.negative, p.s, lowest<T>())); }, Max{});
//         row.map([=](auto p) { return ...; });       // overwrites similarities by dLoss/ds, last
//         return loss;
//       }
//     };
//     FASTDML_ROW_LOSS(my_loss, MyLoss)
//
// `p` is a lane of pairs: p.s, p.positive, p.negative (see cpu/row.h). Lambdas must be generic over
// the lane type: a SIMD vector on the CPU, a scalar on CUDA. The pair of a sample with itself is
// taken out by the executor (or kept, where the loss's Python description says so).
//
// A functor returns its loss, or values(a, b, ...) where the result is a function of the sums of several
// quantities over all rows (RowLoss.combine): its map then multiplies the derivative of output k by
// row.weight(k, outputs), and what it reports by d_scalar and d_value likewise.
//
// Where the result is a mean over things that a row counts (its active triplets, say; no derivative), it
// returns Counted<T>{loss, count} and weights nothing (RowLoss.counted).
//
// Where several consecutive rows are one thing (the proxies of a class), the functor says how many by
// `int together() const` (RowLoss.rows_together); it is called with the first of them, and row.stack()
// has them all. The others have a loss of 0. One that uses row.first or row.order sets
// `static constexpr bool whole_rows = true`: its arrays are as long as the row.
//
// Where the statistics of a row serve another loss as those of its columns (RowLoss.presweep), the functor
// may also say how columns gather them while blocks of rows pass, so that no matrix is computed for that
// alone: `gathered` values per column, which begin as nothing<V>(); gather(call) makes the function
// (values, p[R]) -> values that folds in R pairs of every column, lanes being columns and call.scalar(k) as
// of a row; gathered_outputs(values) are the outputs. Pairs that are neither positive nor negative are none.
// Executors without this (CUDA, distances) visit the columns as rows instead.
//
// On CUDA rows are sorted before the functor sees them. So a functor that wants that says it beforehand:
// `FASTDML_HOST_FN Sorts sorts() const`, which rows, for its parameters, and
// `FASTDML_FN Values<T, 1> sort_keys(p) const`, the key of a pair; pairs whose key is highest() are left
// out. What then reads the sorted row: comparisons with a Tail (key p.s, and where the tail counts
// negatives only, of those only), row.first (its key), row.order (two: its key, then p.s), nearest() of
// mining.h. The CPU sorts when it is asked to.
//
// Words of the language
//   p.s, p.positive, p.negative      similarity (or distance) and kind of the pair
//   p.index()                        number of its column (exact below 2^24; see mining.h)
//   p.teacher(), p.column(k)         the same pair in the teacher's matrix; value k of its column
//   row.scalar(k), row.value(k)      values of the call and of the row
//   row.d_scalar(k, v), row.d_value(k, v)   derivative of the row's loss by them (learnable ones)
//   row.wants_weights()              false where only the loss is asked for: what serves map may be left out
//   row.candidates()                 number of pairs of the row
//   row.reduce(f, Op...)             fold f(p) = values(...) over all pairs, one Op each: Sum, Min, Max
//   row.map(f)                       s := f(p)
//   row.d_column(k, f)               f(p): derivative of the row's loss by value k of the pair's column; before map
//   row.group(size, pool)            groups of `size` consecutive columns as a row of their own, with
//                                    reduce, map, candidates, scalar and value. pool(member, size) makes
//                                    values(pooled, ...) of a group's lanes member(0 ... size - 1);
//                                    pool.slope(s, k, values) is the derivative of pooled by member k
//   row.stack(size, pool)            the same of `size` consecutive rows: a row of their pooled pairs
//   row.positives()                  the row's positives as a short list of thresholds
//   row.compare(list, f)             for each threshold k: sums of f(s_j - theta_k, p_j) over all pairs j
//   row.map_compare(list, c, f)      s_j := sum_k c_k f(s_j - theta_k, p_j)
//   list.compare(f)                  the same sums over the list itself
//   list.add_compare(c, f)           adds sum_k c_k f(theta_m - theta_k) to the result of pair m
//   list.add(v)                      adds v_k to the result of pair k
//   list.sum(f), list.each(f)        sum over k of f(k); calls f(k) for every k
//   row.list(n, f)                   a list of thresholds f(k) that are no pairs: bin centres, a table
//   row.first(n, key)                the n pairs (at most) of the smallest key(p) as a list in ascending
//                                    order; of equal keys the first column's comes first. A key is what
//                                    is stored of a pair, or that negated: it may be read more than once
//   list.set(v)                      v_k is the result of pair k, after map
//   row.order(key, margin)           all (j, k) with key(j) < key(k): order.pairs() how many there are,
//                                    order.active() those with s_j - s_k > -margin, and order.slope(p)
//                                    how many of these p leads (as j) less how many it ends (as k)
//   list.compare(other, f)           sums over the values of list, for each threshold of other
//   list.add_compare(other, c, f)    adds sum_k c_k f(theta_m - other_k) to the result of pair m
//   row.compare(list, f, tail), row.map_compare(list, c, f, tail), list.compare(f, tail),
//   list.add_compare(c, f, tail)     the same, for an f that is linear but for a window around 0 (Tail), and
//                                    with the tail that the list was compared with
//   of_sigmoid(sharpness, f)         such an f made of a sigmoid (smooth_step.h), which may be factorised
//   row.shares(n, f), list.shares(n, f)   soft histograms: sums over the pairs, each value f(p) shared out
//                                    between the two nearest of n + 1 centres from -1 to 1, beyond which
//                                    it is the outermost's; lowest() leaves the pair out
//   row.map_by_bin(n, by, f)         s_j := by_b, b the bin of f(p_j) between two centres; 0 outside
//   list.add_by_bin(n, by, f)        adds the same to the results of the list's pairs
//   row.draw(n, weight, at)          n pairs as a list, drawn with replacement, each as often as weight(p) is
//                                    to the sum of all, which is above 0; at(k): two numbers in (0, 1)
//   row.map_at(list, v)              s_j := sum of v_k over the list's pairs k that are j: of draws
//   row.array(n)                     room for n values, shared by everything in the row
//   row.has_own(), row.own()         whether there is a pair of the sample with itself that was taken
//                                    out, and its similarity
//   row.add_own(g)                   gives that pair a weight, after map
//   any(mask), select(mask, a, b), min, max, abs, exp, log, sqrt, sigmoid, softplus    on lanes and on values
#pragma once
#include <cstddef>
#include <type_traits>
#include <utility>

#if defined(__CUDACC__)
#define FASTDML_FN __device__ __forceinline__
#define FASTDML_HOST_FN __host__ __device__ __forceinline__
#else
#define FASTDML_FN inline __attribute__((always_inline))
#define FASTDML_HOST_FN inline
#endif

// Every instruction set gets its own copy of all templates, so that the linker can never hand code
// compiled for one to a processor that lacks it.
#ifndef FASTDML_ISA
#define FASTDML_ISA generic
#endif

namespace fastdml {
inline namespace FASTDML_ISA {

// A fixed number of results of one lane or one row; supports structured bindings.
template <class T, int N>
struct Values {
  T v[N];
  template <std::size_t I>
  FASTDML_FN const T& get() const {
    return v[I];
  }
  FASTDML_FN T& operator[](int i) { return v[i]; }
  FASTDML_FN const T& operator[](int i) const { return v[i]; }
};

// Columns of a run: row.draw chooses one of at most kDrawRuns runs, then a column of it. (Where every draw
// fell between sums of all columns, their rounding would move more of them.)
constexpr int kDrawRuns = 256;
FASTDML_FN long draw_run(long columns) { return 16 * (1 + (columns - 1) / (16 * kDrawRuns)); }

// The column that is row i's own copy, or -1 (cpu/block.h: Block::own).
template <class B>
FASTDML_FN long own_column(const B& block, long i) {
  if (block.own) return block.own[i];
  const long j = block.own_offset < 0 ? -1 : i + block.own_offset;
  return j < block.cols ? j : -1;
}

template <class First, class... Rest>
FASTDML_FN auto values(First first, Rest... rest) {
  return Values<First, 1 + static_cast<int>(sizeof...(Rest))>{{first, rest...}};
}

// A loss and how many things it is the sum over.
template <class T>
struct Counted {
  T loss, count;
};

// What f(t) = values(height, slope) of a comparison is outside a window: low_height + low_rise t for t
// below the window, high_height + high_rise t above it. An executor may then sort the values once and
// evaluate f inside the windows only: for many thresholds, that is most of the work saved.
template <class T>
struct Tail {
  T from, to;  // the window
  T low_height, low_rise, high_height, high_rise;
  bool negatives;  // f counts negatives only (it is not asked about others), else every pair
  int least;       // thresholds from which on sorting pays
  T smooth = T(0); // f is a smooth function of a sigmoid of t / smooth, and may be interpolated; 0: it has edges
};

// Where a sigmoid of x is 0 or 1 to rounding: within 1e-13 (float), 3e-20 (double).
template <class T>
FASTDML_FN constexpr T flat() {
  return sizeof(T) == 8 ? T(45) : T(30);
}

// `sort` of a loss: 0: rows are sorted where a list has `usual` thresholds or more, 1: never, 2: always.
template <class T>
FASTDML_FN int sort_from(T sort, int usual) {
  return sort == T(0) ? usual : sort == T(1) ? 0x7fffffff : 0;
}

// Rows that CUDA sorts before a functor sees them: none, those whose lists are long, all.
enum class Sorts : int { none, long_lists, all };

// The same of the loss's `sort`.
template <class T>
FASTDML_HOST_FN Sorts sorts_by(T sort) {
  return sort == T(0) ? Sorts::long_lists : sort == T(1) ? Sorts::none : Sorts::all;
}

// Consecutive rows that a functor takes at once.
template <class Loss>
FASTDML_FN int rows_together(const Loss& loss) {
  if constexpr (requires { loss.together(); })
    return loss.together() < 1 ? 1 : loss.together();
  else
    return 1;
}

// The tail of a smooth step from 0 to 1 of the given width.
template <class T>
FASTDML_FN Tail<T> step_tail(T width, bool negatives, int least) {
  return {-flat<T>() * width, flat<T>() * width, T(0), T(0), T(1), T(0), negatives, least, width};
}

// The monoids a row can be folded with.
struct Sum {};
struct Min {};
struct Max {};

template <class T>
FASTDML_FN constexpr T highest() {
  return sizeof(T) == 8 ? T(1.7976931348623157e308) : T(3.4028234663852886e38f);
}
template <class T>
FASTDML_FN constexpr T lowest() {
  return -highest<T>();
}
// The distance from 1 to the next number.
template <class T>
FASTDML_FN constexpr T epsilon() {
  return sizeof(T) == 8 ? T(2.220446049250313e-16) : T(1.1920929e-07f);
}

template <class T>
FASTDML_FN constexpr T identity(Sum) {
  return T(0);
}
template <class T>
FASTDML_FN constexpr T identity(Min) {
  return highest<T>();
}
template <class T>
FASTDML_FN constexpr T identity(Max) {
  return lowest<T>();
}

}  // namespace FASTDML_ISA
}  // namespace fastdml

template <class T, int N>
struct std::tuple_size<fastdml::Values<T, N>> : std::integral_constant<std::size_t, N> {};
template <std::size_t I, class T, int N>
struct std::tuple_element<I, fastdml::Values<T, N>> {
  using type = T;
};
