// Operators of listed pairs and triplets (fastdml/engine/listed.py): O(list) time and memory beside products.
#include "cpu/listed.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <tuple>
#include <vector>

#include "cpu/own_candidates.h"
#include "cpu/run_rows.h"
#include "row_arguments.h"

namespace {

using fastdml::Block;
using fastdml::List;
using fastdml::OptionalTensor;
using fastdml::pointer;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

template <class T>
const T* data_or_null(const OptionalTensor& t) {
  return t.has_value() ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

const int64_t* indices(const Tensor& t) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Long && t.is_contiguous(),
                  "fastdml: indices must be contiguous int64");
  return static_cast<const int64_t*>(t.const_data_ptr());
}

void expect(const Tensor& t, ScalarType type, int64_t count) {
  STD_TORCH_CHECK(t.is_contiguous() && t.scalar_type() == type && t.numel() >= count,
                  "fastdml: a list's tensor has another type or is too short");
}

// Whether some indices are outside of [0, limit), in one pass that the compiler makes of vectors: a number
// below 0, or above what it is taken from, has the highest bit.
bool indices_outside(Tensor t, int64_t limit) {
  const auto* const x = reinterpret_cast<const uint64_t*>(indices(t));
  uint64_t found = 0;
  for (int64_t k = 0; k < t.numel(); ++k) found |= x[k] | (static_cast<uint64_t>(limit) - 1 - x[k]);
  return found >> 63;
}

// Pairs of rows [T] in the order of their rows: (order int32 [T], or nothing where they stand so, and start
// int64 [rows + 1]).
std::tuple<Tensor, Tensor> list_order(Tensor row, int64_t rows) {
  const int64_t* const x = indices(row);
  const int64_t count = row.numel();
  STD_TORCH_CHECK(count < std::numeric_limits<int32_t>::max(), "fastdml: a list has fewer than 2^31 pairs");
  Tensor start = torch::stable::new_empty(row, {rows + 1}, ScalarType::Long);
  int64_t* const from = data<int64_t>(start);
  std::fill_n(from, rows + 1, int64_t{0});
  bool sorted = true;
  for (int64_t k = 0; k < count; ++k) {
    STD_TORCH_CHECK(x[k] >= 0 && x[k] < rows, "fastdml: a pair of no row");
    ++from[x[k] + 1];
    sorted &= k == 0 || x[k - 1] <= x[k];
  }
  for (int64_t i = 0; i < rows; ++i) from[i + 1] += from[i];
  Tensor order = torch::stable::new_empty(row, {sorted ? 0 : count}, ScalarType::Int);
  if (!sorted) {
    std::vector<int64_t> next(from, from + rows);
    int32_t* const to = data<int32_t>(order);
    for (int64_t k = 0; k < count; ++k) to[next[x[k]]++] = static_cast<int32_t>(k);
  }
  return {order, start};
}

// The distinct columns of every row's negatives (a2, n), then of its positives (a1, p), ascending, in one
// list: (start int64 [2 rows + 1], columns int32). own [rows], a row's own copy or -1: taken out of both, or,
// with keep, a positive and no negative.
std::tuple<Tensor, Tensor> list_rows(Tensor a1, Tensor p, Tensor a2, Tensor n, int64_t rows,
                                     int64_t cols, OptionalTensor own, bool keep) {
  const int64_t* const row[2] = {indices(a2), indices(a1)};
  const int64_t* const column[2] = {indices(n), indices(p)};
  const int64_t count[2] = {a2.numel(), a1.numel()};
  STD_TORCH_CHECK(n.numel() == count[0] && p.numel() == count[1], "fastdml: pairs of two columns");
  STD_TORCH_CHECK(!own.has_value() || own->numel() == rows, "fastdml: an own copy for each row");
  const int64_t* const copy = own.has_value() ? indices(*own) : nullptr;
  std::vector<int64_t> start(2 * rows + 1, 0);
  for (int k = 0; k < 2; ++k)
    for (int64_t t = 0; t < count[k]; ++t) {
      STD_TORCH_CHECK(row[k][t] >= 0 && row[k][t] < rows && column[k][t] >= 0 && column[k][t] < cols,
                      "fastdml: a pair outside of the matrix");
      ++start[2 * row[k][t] + k + 1];
    }
  for (int64_t i = 0; copy && keep && i < rows; ++i) start[2 * i + 2] += copy[i] >= 0;
  for (int64_t i = 0; i < 2 * rows; ++i) start[i + 1] += start[i];
  std::vector<int32_t> found(start[2 * rows]);
  std::vector<int64_t> next(start.begin(), start.end() - 1);
  for (int k = 0; k < 2; ++k)
    for (int64_t t = 0; t < count[k]; ++t)
      found[next[2 * row[k][t] + k]++] = static_cast<int32_t>(column[k][t]);
  // Sorted, without what comes twice and the own copy; next: how many are left.
  torch::stable::parallel_for(0, 2 * rows, 64, [&](int64_t begin, int64_t end) {
    std::vector<char> listed(cols, 0);
    for (int64_t bin = begin; bin < end; ++bin) {
      const auto first = found.begin() + start[bin];
      auto last = found.begin() + next[bin];
      if (copy && copy[bin / 2] >= 0) {
        last = std::remove(first, last, static_cast<int32_t>(copy[bin / 2]));
        if (keep && bin % 2) *last++ = static_cast<int32_t>(copy[bin / 2]);
      }
      if (16 * (last - first) > cols) {  // cheaper than to sort them
        for (auto at = first; at != last; ++at) listed[*at] = 1;
        last = first;
        for (int64_t j = 0; j < cols; ++j)
          if (listed[j]) *last++ = static_cast<int32_t>(j);
        std::fill(listed.begin(), listed.end(), 0);
      } else if (!std::is_sorted(first, last)) {
        std::sort(first, last);
      }
      next[bin] = std::unique(first, last) - first;
    }
  });
  int64_t total = 0;
  for (const int64_t left : next) total += left;
  Tensor bounds = torch::stable::new_empty(a1, {2 * rows + 1}, ScalarType::Long);
  Tensor columns = torch::stable::new_empty(a1, {total}, ScalarType::Int);
  int64_t* const to = data<int64_t>(bounds);
  to[0] = 0;
  for (int64_t bin = 0; bin < 2 * rows; ++bin) {
    std::copy_n(found.begin() + start[bin], next[bin], data<int32_t>(columns) + to[bin]);
    to[bin + 1] = to[bin] + next[bin];
  }
  return {bounds, columns};
}

// The sets that a list's pairs are of.
struct Sets {
  OptionalTensor row_scale, col_scale;
  int64_t metric;
  OptionalTensor row_square, col_square;
  double epsilon;
  Tensor anchors, candidates;

  template <class T>
  Block<T> block() const {
    Block<T> b;
    b.rows = anchors.size(0);
    b.cols = candidates.size(0);
    b.dim = anchors.size(1);
    STD_TORCH_CHECK(anchors.stride(1) == 1 || b.dim <= 1, "fastdml: anchors are stored by rows");
    STD_TORCH_CHECK(candidates.size(1) == b.dim, "fastdml: embeddings must have one dimension");
    b.anchors = {static_cast<const T*>(anchors.const_data_ptr()), anchors.stride(0), anchors.stride(1)};
    b.candidates = {static_cast<const T*>(candidates.const_data_ptr()), candidates.stride(0),
                    candidates.stride(1)};
    b.row_scale = pointer<T>(row_scale, b.rows);
    b.col_scale = pointer<T>(col_scale, b.cols);
    b.metric = static_cast<fastdml::Metric>(metric);
    b.row_square = pointer<T>(row_square, b.rows);
    b.col_square = pointer<T>(col_square, b.cols);
    STD_TORCH_CHECK(metric == 0 || (b.row_square && b.col_square), "fastdml: distances need squared norms");
    b.epsilon = static_cast<T>(epsilon);
    return b;
  }
};

// f of the list, by the type of its columns.
template <class F>
void with_list(const OptionalTensor& order, const Tensor& start, const Tensor& column, int64_t every,
               int64_t rows, F f) {
  STD_TORCH_CHECK(start.numel() >= rows * every + 1, "fastdml: a list has a start for every row");
  const int64_t* const from = indices(start);
  const int32_t* const at = data_or_null<int32_t>(order);
  STD_TORCH_CHECK(column.is_contiguous() && column.numel() >= from[rows * every],
                  "fastdml: a list has a column for every pair");
  if (column.scalar_type() == ScalarType::Int)
    f(List<int32_t>{from, at, static_cast<const int32_t*>(column.const_data_ptr()), every});
  else
    f(List<int64_t>{from, at, indices(column), every});
}

template <class F>
void by_type(const Tensor& x, F f) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double,
                  "fastdml: embeddings must be float32 or float64");
  if (x.scalar_type() == ScalarType::Float)
    f(0.0f);
  else
    f(0.0);
}

// The matrix of a block of rows.
void expect_block(const Tensor& s, const Sets& of, int64_t first) {
  STD_TORCH_CHECK(s.dim() == 2 && s.size(1) == of.candidates.size(0) && (s.size(1) <= 1 || s.stride(1) == 1) &&
                      first >= 0 && first + s.size(0) <= of.anchors.size(0) &&
                      s.scalar_type() == of.anchors.scalar_type(),
                  "fastdml: a block has the columns of the candidates");
}

// What listed pairs are, into out [T]: those of the rows of s, products from row `first` on; or of all rows.
void listed_values_(Tensor out, OptionalTensor s, int64_t first, OptionalTensor order, Tensor start,
                    Tensor column, int64_t every, OptionalTensor row_scale, OptionalTensor col_scale,
                    int64_t metric, OptionalTensor row_square, OptionalTensor col_square, double epsilon,
                    Tensor anchors, Tensor candidates) {
  const Sets of{row_scale, col_scale, metric, row_square, col_square, epsilon, anchors, candidates};
  if (s.has_value()) expect_block(*s, of, first);
  STD_TORCH_CHECK(s.has_value() || candidates.size(1) <= 1 || candidates.stride(1) == 1,
                  "fastdml: candidates are stored by rows");
  by_type(anchors, [&]<class T>(T) {
    const Block<T> b = of.block<T>();
    with_list(order, start, column, every, b.rows, [&](const auto& list) {
      expect(out, anchors.scalar_type(), list.start[b.rows * every]);
      fastdml::listed_values(b, list, s.has_value() ? static_cast<const T*>(s->const_data_ptr()) : nullptr,
                             s.has_value() ? s->stride(0) : 0, first, s.has_value() ? s->size(0) : b.rows,
                             data<T>(out));
    });
  });
}

// Adds the weights of products to a block g of rows from `first` on. derivative [T]: by what pairs are, d.
void listed_weights_(Tensor g, int64_t first, OptionalTensor order, Tensor start, Tensor column,
                     int64_t every, Tensor derivative, OptionalTensor d, OptionalTensor row_scale,
                     OptionalTensor col_scale, int64_t metric, OptionalTensor row_square,
                     OptionalTensor col_square, double epsilon, Tensor anchors, Tensor candidates) {
  const Sets of{row_scale, col_scale, metric, row_square, col_square, epsilon, anchors, candidates};
  expect_block(g, of, first);
  by_type(anchors, [&]<class T>(T) {
    const Block<T> b = of.block<T>();
    with_list(order, start, column, every, b.rows, [&](const auto& list) {
      expect(derivative, anchors.scalar_type(), list.start[b.rows * every]);
      STD_TORCH_CHECK(metric != 2 || d.has_value(), "fastdml: a distance's weight needs the distance");
      fastdml::listed_weights(b, list, data<T>(g), g.stride(0), first, g.size(0),
                              static_cast<const T*>(derivative.const_data_ptr()),
                              pointer<T>(d, list.start[b.rows * every]));
    });
  });
}

// Adds to out [rows, D] the gradient's products of rows, pair by pair, and to total [rows] their weights.
void listed_gradient_(Tensor out, OptionalTensor total, OptionalTensor order, Tensor start,
                      Tensor column, int64_t every, Tensor derivative, OptionalTensor d,
                      OptionalTensor row_scale, OptionalTensor col_scale, int64_t metric,
                      OptionalTensor row_square, OptionalTensor col_square, double epsilon, Tensor anchors,
                      Tensor candidates) {
  const Sets of{row_scale, col_scale, metric, row_square, col_square, epsilon, anchors, candidates};
  STD_TORCH_CHECK(candidates.size(1) <= 1 || candidates.stride(1) == 1,
                  "fastdml: candidates are stored by rows");
  by_type(anchors, [&]<class T>(T) {
    const Block<T> b = of.block<T>();
    expect(out, anchors.scalar_type(), b.rows * b.dim);
    with_list(order, start, column, every, b.rows, [&](const auto& list) {
      expect(derivative, anchors.scalar_type(), list.start[b.rows * every]);
      STD_TORCH_CHECK(metric != 2 || d.has_value(), "fastdml: a distance's weight needs the distance");
      fastdml::listed_gradient(b, list, static_cast<const T*>(derivative.const_data_ptr()),
                               pointer<T>(d, list.start[b.rows * every]), data<T>(out),
                               const_cast<T*>(pointer<T>(total, b.rows)));
    });
  });
}

// One loss over rows of listed pairs: of what they are, in place, to derivatives by it. start, as list_rows
// made it: a row's negatives, then its positives.
template <class T>
void ragged(const fastdml::Functor& f, Block<T> of, const int64_t* start, T* values, int64_t rows) {
  int64_t longest = 0, positives = 0;
  for (int64_t i = 0; i < rows; ++i) {
    longest = std::max(longest, start[2 * i + 2] - start[2 * i]);
    positives = std::max(positives, start[2 * i + 2] - start[2 * i + 1]);
  }
  const auto most = std::max<int64_t>(longest, 1);
  std::vector<int32_t> order(most);
  for (int64_t k = 0; k < most; ++k) order[k] = static_cast<int32_t>(k);
  const fastdml::Kernel& kernel = *f.kernels[fastdml::active_isa()];
  const int64_t size = fastdml::arena_size(most, most) + fastdml::sorting_size(most, most);
  const int64_t grain = 1 + 16384 / (start[2 * rows] / (rows + 1) + 1);
  const int outputs = f.outputs(), weights = f.weights();
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    std::unique_ptr<T[]> arena(new T[size]);  // untouched where a loss needs none of it
    std::vector<int32_t> classes(most);
    const int32_t own = 1;
    for (int64_t i = begin; i < end; ++i) {
      Block<T> b = of;
      b.s = values + start[2 * i];
      b.rows = 1;
      b.cols = b.ld = start[2 * i + 2] - start[2 * i];
      const int64_t negatives = start[2 * i + 1] - start[2 * i];
      std::fill_n(classes.begin(), negatives, 0);
      std::fill_n(classes.begin() + negatives, b.cols - negatives, 1);
      const int32_t bounds[3] = {0, static_cast<int32_t>(negatives), static_cast<int32_t>(b.cols)};
      b.row_class = &own;
      b.col_class = classes.data();
      b.class_start = bounds;
      b.class_order = order.data();
      if (b.row_weight) b.row_weight += i * weights;
      if (b.row_values) b.row_values += i * b.row_count;
      b.loss += i * outputs;
      if (b.d_scalars) b.d_scalars += i * b.scalar_count;
      if (b.d_row_values) b.d_row_values += i * b.row_count;
      if constexpr (sizeof(T) == 4)
        kernel.f32(b, 0, 1, arena.get());
      else
        kernel.f64(b, 0, 1, arena.get());
    }
  });
}

void listed_rows_(Tensor values, Tensor start, int64_t id, std::vector<double> parameters,
                  OptionalTensor row_weight, double weight, OptionalTensor scalars,
                  OptionalTensor row_values, Tensor loss, OptionalTensor d_scalars,
                  OptionalTensor d_row_values, bool gradient) {
  const fastdml::Functor& f = fastdml::checked_functor(id, parameters);
  const int64_t rows = (start.numel() - 1) / 2;
  const int64_t* const from = indices(start);
  expect(values, values.scalar_type(), from[2 * rows]);
  expect(loss, values.scalar_type(), rows * f.outputs());
  by_type(values, [&]<class T>(T) {
    Block<T> b;
    b.row_weight = pointer<T>(row_weight, rows * f.weights());
    b.weight = static_cast<T>(weight);
    b.scalars = pointer<T>(scalars, 0);
    b.scalar_count = scalars.has_value() ? scalars->numel() : 0;
    b.row_values = pointer<T>(row_values, 0);
    b.row_count = row_values.has_value() ? row_values->size(1) : 0;
    b.loss = data<T>(loss);
    b.d_scalars = fastdml::writable<T>(d_scalars, rows * b.scalar_count);
    b.d_row_values = fastdml::writable<T>(d_row_values, rows * b.row_count);
    b.gradient = gradient;
    b.parameters = parameters.data();
    ragged<T>(f, b, from, data<T>(values), rows);
  });
}

template <class T>
fastdml::OwnCandidates<T> own_candidates(const Tensor& a, const Tensor& c) {
  STD_TORCH_CHECK(a.dim() == 2 && c.dim() == 3 && c.size(0) == a.size(0) && c.size(2) == a.size(1) &&
                      (a.size(1) <= 1 || (a.stride(1) == 1 && c.stride(2) == 1)) &&
                      a.scalar_type() == c.scalar_type(),
                  "fastdml: rows [M, D] and their candidates [M, K, D], of one type, dimensions together");
  return {static_cast<const T*>(a.const_data_ptr()), static_cast<const T*>(c.const_data_ptr()),
          a.size(0), c.size(1), a.size(1), a.stride(0), c.stride(0), c.stride(1)};
}

// What rows and the candidates of their own are, into s [M, K]: products, of both sets over their lengths
// where the inverses of these are asked for: of candidates [M, K], of rows [M].
void own_values_(Tensor s, OptionalTensor inverse, OptionalTensor row_inverse, Tensor a, Tensor c,
                 double epsilon) {
  by_type(a, [&]<class T>(T) {
    const auto of = own_candidates<T>(a, c);
    const int64_t count = of.rows * of.each;
    expect(s, a.scalar_type(), count);
    fastdml::own_values(of, static_cast<T>(epsilon), data<T>(s), const_cast<T*>(pointer<T>(inverse, count)),
                        const_cast<T*>(pointer<T>(row_inverse, of.rows)));
  });
}

// Their gradients from derivatives g [M, K]; s and the inverses as they were found.
void own_gradients_(OptionalTensor d_a, OptionalTensor d_c, Tensor g, Tensor s, OptionalTensor inverse,
                    OptionalTensor row_inverse, Tensor a, Tensor c) {
  by_type(a, [&]<class T>(T) {
    const auto of = own_candidates<T>(a, c);
    const int64_t count = of.rows * of.each;
    for (const Tensor& t : {g, s}) expect(t, a.scalar_type(), count);
    fastdml::own_gradients(of, static_cast<const T*>(g.const_data_ptr()), static_cast<const T*>(s.const_data_ptr()),
                           pointer<T>(inverse, count), pointer<T>(row_inverse, of.rows),
                           const_cast<T*>(pointer<T>(d_a, of.rows * of.dim)),
                           const_cast<T*>(pointer<T>(d_c, count * of.dim)));
  });
}

}  // namespace

#define FASTDML_SETS                                                                                  \
  "Tensor? row_scale, Tensor? col_scale, int metric, Tensor? row_square, Tensor? col_square, "        \
  "float epsilon, Tensor anchors, Tensor candidates) -> ()"

STABLE_TORCH_LIBRARY_FRAGMENT(fastdml_native, m) {
  m.def("indices_outside(Tensor t, int limit) -> bool");
  m.def("list_order(Tensor row, int rows) -> (Tensor, Tensor)");
  m.def(
      "list_rows(Tensor a1, Tensor p, Tensor a2, Tensor n, int rows, int cols, Tensor? own, bool keep) "
      "-> (Tensor, Tensor)");
  m.def(
      "listed_values_(Tensor(a!) out, Tensor? s, int first, Tensor? order, Tensor start, Tensor column, "
      "int every, " FASTDML_SETS);
  m.def(
      "listed_weights_(Tensor(a!) g, int first, Tensor? order, Tensor start, Tensor column, int every, "
      "Tensor derivative, Tensor? d, " FASTDML_SETS);
  m.def(
      "listed_gradient_(Tensor(a!) out, Tensor(b!)? total, Tensor? order, Tensor start, Tensor column, "
      "int every, Tensor derivative, Tensor? d, " FASTDML_SETS);
  m.def(
      "listed_rows_(Tensor(a!) values, Tensor start, int functor, float[] parameters, Tensor? row_weight, "
      "float weight, Tensor? scalars, Tensor? row_values, Tensor(b!) loss, Tensor(c!)? d_scalars, "
      "Tensor(d!)? d_row_values, bool gradient) -> ()");
  m.def(
      "own_values_(Tensor(a!) s, Tensor(b!)? inverse, Tensor(c!)? row_inverse, Tensor a, Tensor c, "
      "float epsilon) -> ()");
  m.def(
      "own_gradients_(Tensor(a!)? d_a, Tensor(b!)? d_c, Tensor g, Tensor s, Tensor? inverse, "
      "Tensor? row_inverse, Tensor a, Tensor c) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastdml_native, CPU, m) {
  m.impl("indices_outside", TORCH_BOX(&indices_outside));
  m.impl("list_order", TORCH_BOX(&list_order));
  m.impl("list_rows", TORCH_BOX(&list_rows));
  m.impl("listed_values_", TORCH_BOX(&listed_values_));
  m.impl("listed_weights_", TORCH_BOX(&listed_weights_));
  m.impl("listed_gradient_", TORCH_BOX(&listed_gradient_));
  m.impl("listed_rows_", TORCH_BOX(&listed_rows_));
  m.impl("own_values_", TORCH_BOX(&own_values_));
  m.impl("own_gradients_", TORCH_BOX(&own_gradients_));
}
