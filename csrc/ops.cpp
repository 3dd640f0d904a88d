// Torch operators, through the stable ABI: one library serves every torch from 2.10 on.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <initializer_list>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/class_index.h"
#include "cpu/common.h"
#include "cpu/norms.h"
#include "cpu/run_rows.h"
#include "cpu/similarities.h"
#include "row_arguments.h"
#include "total.h"

namespace {

using fastdml::OptionalTensor;
using fastdml::RowArguments;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
void rows_of(const fastdml::Functor& f, const RowArguments& a) {
  fastdml::Block<T> b = fastdml::block_of<T>(a, f.weights());
  fastdml::embeddings_of(b, a.anchors, a.candidates);
  fastdml::run_rows(f, b, a.longest);
}

void rows_cpu(const fastdml::Functor& f, const RowArguments& a) {
  STD_TORCH_CHECK(!a.weights.has_value(), "fastdml: weights go into s on the CPU");
  if (a.s.scalar_type() == ScalarType::Float)
    rows_of<float>(f, a);
  else
    rows_of<double>(f, a);
}

// Dense class numbers for arbitrary labels, and the columns of every class: (col_class, row_class, start
// and order in one tensor, size of the largest class, rows whose label some column has). row_labels may
// be col_labels.
std::tuple<Tensor, int64_t, int64_t> class_index(Tensor row_labels, Tensor col_labels) {
  const auto i64 = [](const Tensor& t) { return static_cast<const int64_t*>(t.const_data_ptr()); };
  STD_TORCH_CHECK(row_labels.is_contiguous() && col_labels.is_contiguous() &&
                      row_labels.scalar_type() == ScalarType::Long &&
                      col_labels.scalar_type() == ScalarType::Long,
                  "fastdml: labels must be contiguous int64");
  const int64_t rows = row_labels.numel(), cols = col_labels.numel();
  const fastdml::PackedClasses at(rows, cols);
  Tensor packed = torch::stable::new_empty(col_labels, {at.size}, ScalarType::Int);
  int32_t* to = static_cast<int32_t*>(packed.mutable_data_ptr());
  const fastdml::ClassIndex c =
      fastdml::class_index(i64(row_labels), rows, i64(col_labels), cols, to + at.row_class,
                           to + at.col_class, to + at.start, to + at.order);
  return {packed, c.longest, c.matched};
}

template <class T>
void columns(const fastdml::Functor& f, const RowArguments& a, Tensor& state, bool first) {
  fastdml::run_columns(f, fastdml::block_of<T>(a, f.weights()), static_cast<T*>(state.mutable_data_ptr()),
                       first);
}

// A block of products, which stays, folded into the state [gathered, cols] of a functor's columns; found
// [outputs, cols] is what the rows so far amount to.
void columns_(Tensor s, int64_t id, std::vector<double> parameters, OptionalTensor row_scale,
              OptionalTensor col_scale, Tensor row_class, Tensor col_class, OptionalTensor scalars,
              Tensor state, Tensor found, bool first) {
  const fastdml::Functor& f = fastdml::checked_functor(id, parameters);
  STD_TORCH_CHECK(f.gathered() > 0, "fastdml: ", f.name, " gathers no statistics of columns");
  STD_TORCH_CHECK(s.dim() == 2 && state.is_contiguous() && found.is_contiguous() &&
                      state.numel() == f.gathered() * s.size(1) &&
                      found.numel() == f.outputs() * s.size(1) &&
                      state.scalar_type() == s.scalar_type() && found.scalar_type() == s.scalar_type(),
                  "fastdml: columns_ takes a matrix, and a state and results of its columns");
  RowArguments a{};
  a.s = s;
  a.parameters = parameters;
  a.row_scale = row_scale;
  a.col_scale = col_scale;
  a.row_class = row_class;
  a.col_class = col_class;
  a.scalars = scalars;
  a.loss = found;
  a.weight = 1;
  if (s.scalar_type() == ScalarType::Float) {
    columns<float>(f, a, state, first);
  } else {
    STD_TORCH_CHECK(s.scalar_type() == ScalarType::Double, "fastdml: s must be float32 or float64");
    columns<double>(f, a, state, first);
  }
}

template <class T>
void similarities(Tensor& s, const OptionalTensor& row_scale, const OptionalTensor& col_scale,
                  int64_t metric, const OptionalTensor& row_square, const OptionalTensor& col_square,
                  double epsilon, const OptionalTensor& anchors, const OptionalTensor& candidates) {
  fastdml::Block<T> b;
  b.s = static_cast<T*>(s.mutable_data_ptr());
  b.rows = s.size(0);
  b.cols = s.size(1);
  b.ld = s.stride(0);
  b.row_scale = fastdml::pointer<T>(row_scale, b.rows);
  b.col_scale = fastdml::pointer<T>(col_scale, b.cols);
  b.metric = static_cast<fastdml::Metric>(metric);
  b.row_square = fastdml::pointer<T>(row_square, b.rows);
  b.col_square = fastdml::pointer<T>(col_square, b.cols);
  b.epsilon = static_cast<T>(epsilon);
  fastdml::embeddings_of(b, anchors, candidates);
  fastdml::similarities(b);
}

void similarities_(Tensor s, OptionalTensor row_scale, OptionalTensor col_scale, int64_t metric,
                   OptionalTensor row_square, OptionalTensor col_square, double epsilon,
                   OptionalTensor anchors, OptionalTensor candidates) {
  STD_TORCH_CHECK(s.dim() == 2 && (s.size(1) <= 1 || s.stride(1) == 1) && metric >= 0 && metric <= 2 &&
                      row_scale.has_value() == col_scale.has_value() &&
                      (metric == 0 || (row_square.has_value() && col_square.has_value())),
                  "fastdml: similarities_ takes a matrix stored by rows and vectors of both its sides");
  for (const OptionalTensor* t : {&row_scale, &col_scale, &row_square, &col_square})
    STD_TORCH_CHECK(!t->has_value() || (*t)->scalar_type() == s.scalar_type(),
                    "fastdml: similarities_ takes tensors of one type");
  if (s.scalar_type() == ScalarType::Float) {
    similarities<float>(s, row_scale, col_scale, metric, row_square, col_square, epsilon, anchors,
                        candidates);
  } else {
    STD_TORCH_CHECK(s.scalar_type() == ScalarType::Double, "fastdml: s must be float32 or float64");
    similarities<double>(s, row_scale, col_scale, metric, row_square, col_square, epsilon, anchors,
                         candidates);
  }
}

template <class T>
void common_of(const Tensor& g, const Tensor& s, T* rows, T* columns) {
  fastdml::common<T>(static_cast<const T*>(g.const_data_ptr()), static_cast<const T*>(s.const_data_ptr()),
                     g.size(0), g.size(1), g.stride(0), s.stride(0), rows, columns);
}

// rows [R] = the sums of the rows of g * s, columns [N] += those of its columns; g, s [R, N].
void common_(Tensor g, Tensor s, OptionalTensor rows, OptionalTensor columns) {
  const auto fits = [&](const OptionalTensor& v, int64_t size) {
    return !v.has_value() ||
           (v->is_contiguous() && v->numel() == size && v->scalar_type() == g.scalar_type());
  };
  STD_TORCH_CHECK(g.dim() == 2 && s.dim() == 2 && g.size(0) == s.size(0) && g.size(1) == s.size(1) &&
                      g.scalar_type() == s.scalar_type() &&
                      (g.size(1) <= 1 || (g.stride(1) == 1 && s.stride(1) == 1)) && fits(rows, g.size(0)) &&
                      fits(columns, g.size(1)),
                  "fastdml: common_ takes two matrices stored by rows and vectors of both their sides");
  const auto at = [](OptionalTensor& v) { return v.has_value() ? v->mutable_data_ptr() : nullptr; };
  if (g.scalar_type() == ScalarType::Float) {
    common_of<float>(g, s, static_cast<float*>(at(rows)), static_cast<float*>(at(columns)));
  } else {
    STD_TORCH_CHECK(g.scalar_type() == ScalarType::Double, "fastdml: g must be float32 or float64");
    common_of<double>(g, s, static_cast<double*>(at(rows)), static_cast<double*>(at(columns)));
  }
}

template <class T>
double mean_of(Tensor& out, std::initializer_list<const Tensor*> sets, int64_t sample) {
  const int64_t dim = out.numel();
  std::vector<double> sum(dim);
  double square = 0;
  int64_t count = 0;
  for (const Tensor* x : sets) {
    const int64_t rows = x->size(0), step = std::max<int64_t>(1, (rows + sample - 1) / sample);
    square += fastdml::add_rows(static_cast<const T*>(x->const_data_ptr()), rows, dim, x->stride(0), step,
                                sum.data());
    count += (rows + step - 1) / step;
  }
  T* to = static_cast<T*>(out.mutable_data_ptr());
  double own = 0;
  for (int64_t d = 0; d < dim; ++d) {
    const double mean = sum[d] / count;
    own += mean * mean;
    to[d] = static_cast<T>(mean);
  }
  return own * count / square;
}

// The mean of up to `sample` rows, evenly spaced, of each set, and the share that its squared length has of
// the mean of theirs. fastdml/engine/conditioning.py.
std::tuple<Tensor, double> common_mean(Tensor a, OptionalTensor c, int64_t sample) {
  const Tensor& other = c.has_value() ? *c : a;
  STD_TORCH_CHECK(a.dim() == 2 && other.dim() == 2 && a.size(1) == other.size(1) &&
                      (a.size(1) <= 1 || (a.stride(1) == 1 && other.stride(1) == 1)) &&
                      a.scalar_type() == other.scalar_type(),
                  "fastdml: common_mean takes matrices of one type stored by rows");
  Tensor out = torch::stable::new_empty(a, {a.size(1)});
  double share = 0;
  if (a.scalar_type() == ScalarType::Float) {
    share = c.has_value() ? mean_of<float>(out, {&a, &other}, sample) : mean_of<float>(out, {&a}, sample);
  } else {
    STD_TORCH_CHECK(a.scalar_type() == ScalarType::Double, "fastdml: x must be float32 or float64");
    share = c.has_value() ? mean_of<double>(out, {&a, &other}, sample) : mean_of<double>(out, {&a}, sample);
  }
  return {out, share};
}

void inverse_norm_(Tensor out, Tensor x, double epsilon) {
  STD_TORCH_CHECK(out.is_contiguous() && x.dim() == 2 && out.numel() == x.size(0) &&
                      (x.size(1) <= 1 || x.stride(1) == 1) &&
                      out.scalar_type() == x.scalar_type(),
                  "fastdml: inverse_norm_ takes a matrix and a vector of its rows");
  if (x.scalar_type() == ScalarType::Float) {
    fastdml::inverse_norm(static_cast<const float*>(x.const_data_ptr()),
                 static_cast<float*>(out.mutable_data_ptr()), x.size(0), x.size(1), x.stride(0),
                 static_cast<float>(epsilon));
  } else {
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Double, "fastdml: x must be float32 or float64");
    fastdml::inverse_norm(static_cast<const double*>(x.const_data_ptr()),
                 static_cast<double*>(out.mutable_data_ptr()), x.size(0), x.size(1), x.stride(0),
                 epsilon);
  }
}

template <class T>
void remove_radial(Tensor& g, const Tensor& x, const Tensor& inverse_norm) {
  T* to = static_cast<T*>(g.mutable_data_ptr());
  const T* from = static_cast<const T*>(x.const_data_ptr());
  const T* scale = static_cast<const T*>(inverse_norm.const_data_ptr());
  if (g.is_contiguous())
    fastdml::remove_radial(to, from, scale, g.size(0), g.size(1), x.stride(0));
  else
    fastdml::remove_radial_by_columns(to, from, scale, g.size(0), g.size(1));
}

void remove_radial_(Tensor g, Tensor x, Tensor inverse_norm) {
  const bool by_rows = g.is_contiguous() && (x.size(1) <= 1 || x.stride(1) == 1);
  const bool by_columns = g.stride(0) == 1 && g.stride(1) == g.size(0) && x.stride(0) == 1 &&
                          x.stride(1) == x.size(0);
  STD_TORCH_CHECK((by_rows || by_columns) && g.scalar_type() == x.scalar_type() &&
                      g.size(0) == x.size(0) && g.size(1) == x.size(1) &&
                      inverse_norm.numel() == x.size(0),
                  "fastdml: remove_radial_ takes matrices of one shape, type and layout");
  if (g.scalar_type() == ScalarType::Float)
    remove_radial<float>(g, x, inverse_norm);
  else
    remove_radial<double>(g, x, inverse_norm);
}

}  // namespace

STABLE_TORCH_LIBRARY(fastdml_native, m) {
  m.def((std::string("rows_") + fastdml::kRowsSchema).c_str());
  m.def("class_index(Tensor row_labels, Tensor col_labels) -> (Tensor, int, int)");
  m.def("total(Tensor outputs, Tensor? row_weight, float weight) -> Tensor");
  m.def(
      "columns_(Tensor s, int functor, float[] parameters, Tensor? row_scale, Tensor? col_scale, "
      "Tensor row_class, Tensor col_class, Tensor? scalars, Tensor(a!) state, Tensor(b!) found, "
      "bool first) -> ()");
  m.def(
      "similarities_(Tensor(a!) s, Tensor? row_scale, Tensor? col_scale, int metric, "
      "Tensor? row_square, Tensor? col_square, float epsilon, Tensor? anchors=None, "
      "Tensor? candidates=None) -> ()");
  m.def("common_(Tensor g, Tensor s, Tensor(a!)? rows, Tensor(b!)? columns) -> ()");
  m.def("common_mean(Tensor a, Tensor? c, int sample) -> (Tensor, float)");
  m.def("inverse_norm_(Tensor(a!) out, Tensor x, float epsilon) -> ()");
  m.def("remove_radial_(Tensor(a!) g, Tensor x, Tensor inverse_norm) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastdml_native, CPU, m) {
  m.impl("rows_", TORCH_BOX(&fastdml::rows_<rows_cpu>));
  m.impl("class_index", TORCH_BOX(&class_index));
  m.impl("total", TORCH_BOX(&fastdml::total));
  m.impl("columns_", TORCH_BOX(&columns_));
  m.impl("similarities_", TORCH_BOX(&similarities_));
  m.impl("common_", TORCH_BOX(&common_));
  m.impl("common_mean", TORCH_BOX(&common_mean));
  m.impl("inverse_norm_", TORCH_BOX(&inverse_norm_));
  m.impl("remove_radial_", TORCH_BOX(&remove_radial_));
}
