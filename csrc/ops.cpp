// Torch operators, through the stable ABI: one library serves every torch from 2.10 on.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/block.h"
#include "cpu/class_index.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <class P>
const P* pointer(const OptionalTensor& t, int64_t count) {
  if (!t.has_value()) return nullptr;
  STD_TORCH_CHECK(t->is_contiguous() && t->numel() >= count, "fastdml: vector argument too short");
  return static_cast<const P*>(t->const_data_ptr());
}

// The tensors of one call of rows_, in the order of its schema.
struct RowArguments {
  Tensor s;
  std::vector<double> parameters;
  OptionalTensor teacher, row_scale, col_scale, row_square, col_square;
  int64_t metric;
  double epsilon;
  OptionalTensor row_class, col_class, class_start, class_order;
  int64_t longest, self_offset;
  OptionalTensor row_weight;
  double weight;
  OptionalTensor scalars, row_values, col_values;
  Tensor loss;
  OptionalTensor d_scalars, d_row_values;
  bool gradient;
};

template <class T>
T* writable(const OptionalTensor& t, int64_t count) {
  return const_cast<T*>(pointer<T>(t, count));
}

template <class T>
fastdml::Block<T> block_of(const RowArguments& a, int outputs) {
  fastdml::Block<T> b;
  b.s = static_cast<T*>(a.s.mutable_data_ptr());
  b.rows = a.s.size(0);
  b.cols = a.s.size(1);
  b.ld = a.s.stride(0);
  STD_TORCH_CHECK(b.cols <= 1 || a.s.stride(1) == 1, "fastdml: s must have contiguous rows");
  if (a.teacher.has_value()) {
    STD_TORCH_CHECK(a.teacher->size(0) == b.rows && a.teacher->size(1) == b.cols,
                    "fastdml: teacher must have the shape of s");
    b.teacher = static_cast<const T*>(a.teacher->const_data_ptr());
    b.teacher_ld = a.teacher->stride(0);
  }
  b.row_scale = pointer<T>(a.row_scale, b.rows);
  b.col_scale = pointer<T>(a.col_scale, b.cols);
  b.metric = static_cast<fastdml::Metric>(a.metric);
  b.row_square = pointer<T>(a.row_square, b.rows);
  b.col_square = pointer<T>(a.col_square, b.cols);
  STD_TORCH_CHECK(b.metric == fastdml::Metric::product || (b.row_square && b.col_square),
                  "fastdml: distances need squared norms");
  b.epsilon = static_cast<T>(a.epsilon);
  b.row_class = pointer<int32_t>(a.row_class, b.rows);
  b.col_class = pointer<int32_t>(a.col_class, b.cols);
  b.class_start = pointer<int32_t>(a.class_start, 0);
  b.class_order = pointer<int32_t>(a.class_order, 0);
  b.self_offset = a.self_offset;
  b.row_weight = pointer<T>(a.row_weight, b.rows * outputs);
  b.weight = static_cast<T>(a.weight);
  b.scalars = pointer<T>(a.scalars, 0);
  b.scalar_count = a.scalars.has_value() ? a.scalars->numel() : 0;
  b.row_values = pointer<T>(a.row_values, 0);
  b.row_count = a.row_values.has_value() ? a.row_values->size(1) : 0;
  b.col_values = pointer<T>(a.col_values, 0);
  b.loss = static_cast<T*>(a.loss.mutable_data_ptr());
  b.d_scalars = writable<T>(a.d_scalars, b.rows * b.scalar_count);
  b.d_row_values = writable<T>(a.d_row_values, b.rows * b.row_count);
  b.gradient = a.gradient;
  b.parameters = a.parameters.data();
  return b;
}

template <class T>
void rows_cpu(const fastdml::Functor& f, const RowArguments& a) {
  const fastdml::Block<T> b = block_of<T>(a, f.outputs());
  const fastdml::Kernel& kernel = *f.kernels[fastdml::active_isa()];
  const int64_t arena = fastdml::arena_size(a.longest, b.cols);
  // About 20 µs of work at least for every thread that is woken.
  const int64_t grain = 1 + 16384 / (b.cols + 1);
  torch::stable::parallel_for(0, b.rows, grain, [&](int64_t begin, int64_t end) {
    std::unique_ptr<T[]> scratch(new T[arena]);
    if constexpr (sizeof(T) == 4)
      kernel.f32(b, begin, end, scratch.get());
    else
      kernel.f64(b, begin, end, scratch.get());
  });
}

// Similarities in, weights out: one loss over a block of rows.
void rows_(Tensor s, int64_t id, std::vector<double> parameters, OptionalTensor teacher,
           OptionalTensor row_scale, OptionalTensor col_scale, OptionalTensor row_square,
           OptionalTensor col_square, int64_t metric, double epsilon, OptionalTensor row_class,
           OptionalTensor col_class, OptionalTensor class_start, OptionalTensor class_order,
           int64_t longest, int64_t self_offset, OptionalTensor row_weight, double weight,
           OptionalTensor scalars, OptionalTensor row_values, OptionalTensor col_values, Tensor loss,
           OptionalTensor d_scalars, OptionalTensor d_row_values, bool gradient) {
  STD_TORCH_CHECK(id >= 0 && id < fastdml::functor_count(), "fastdml: unknown functor");
  const fastdml::Functor& f = fastdml::functor(static_cast<int>(id));
  STD_TORCH_CHECK(static_cast<int>(parameters.size()) == f.parameters(), "fastdml: ", f.name,
                  " takes ", f.parameters(), " parameters, not ", parameters.size());
  STD_TORCH_CHECK(s.dim() == 2, "fastdml: s must be a matrix");
  STD_TORCH_CHECK(loss.numel() >= s.size(0) * f.outputs(), "fastdml: loss is too short");
  STD_TORCH_CHECK(loss.scalar_type() == s.scalar_type(), "fastdml: loss must have the type of s");
  STD_TORCH_CHECK(metric >= 0 && metric <= 2, "fastdml: unknown metric");
  const RowArguments a{s,           parameters,  teacher,    row_scale,   col_scale,  row_square,
                       col_square,  metric,      epsilon,    row_class,   col_class,  class_start,
                       class_order, longest,     self_offset, row_weight, weight,     scalars,
                       row_values,  col_values,  loss,       d_scalars,   d_row_values, gradient};
  if (s.scalar_type() == ScalarType::Float) {
    rows_cpu<float>(f, a);
  } else {
    STD_TORCH_CHECK(s.scalar_type() == ScalarType::Double, "fastdml: s must be float32 or float64");
    rows_cpu<double>(f, a);
  }
}

// Dense class numbers for arbitrary labels, and the columns of every class. Returns the number of
// classes among the columns and the size of the largest.
std::tuple<int64_t, int64_t> class_index_(Tensor row_labels, Tensor col_labels, Tensor row_class,
                                          Tensor col_class, Tensor start, Tensor order) {
  const auto i64 = [](const Tensor& t) { return static_cast<const int64_t*>(t.const_data_ptr()); };
  const auto i32 = [](const Tensor& t) { return static_cast<int32_t*>(t.mutable_data_ptr()); };
  STD_TORCH_CHECK(row_labels.is_contiguous() && col_labels.is_contiguous() &&
                      row_labels.scalar_type() == ScalarType::Long &&
                      col_labels.scalar_type() == ScalarType::Long,
                  "fastdml: labels must be contiguous int64");
  const fastdml::ClassIndex c = fastdml::class_index(
      i64(row_labels), row_labels.numel(), i64(col_labels), col_labels.numel(), i32(row_class),
      i32(col_class), i32(start), i32(order));
  return {c.classes, c.longest};
}

// 1/|x| of every row, 0 where |x| is at most epsilon. Five torch operators in one: a small batch
// spends its time on the way into operators.
template <class T>
void inverse_norm(const T* x, T* out, int64_t rows, int64_t dim, int64_t ldx, T epsilon) {
  torch::stable::parallel_for(0, rows, 1 + 16384 / (dim + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* xi = x + i * ldx;
      T part[16] = {};
      int64_t d = 0;
      for (; d + 16 <= dim; d += 16)
        for (int l = 0; l < 16; ++l) part[l] += xi[d + l] * xi[d + l];
      for (; d < dim; ++d) part[0] += xi[d] * xi[d];
      T sum = 0;
      for (int l = 0; l < 16; ++l) sum += part[l];
      const T norm = std::sqrt(sum);
      out[i] = norm > epsilon ? T(1) / norm : T(0);
    }
  });
}

void inverse_norm_(Tensor out, Tensor x, double epsilon) {
  STD_TORCH_CHECK(out.is_contiguous() && x.dim() == 2 &&
                      (x.size(1) <= 1 || x.stride(1) == 1) && out.scalar_type() == x.scalar_type() && out.numel() == x.size(0),
                  "fastdml: inverse_norm_ takes a matrix and a vector of its rows");
  if (x.scalar_type() == ScalarType::Float) {
    inverse_norm(static_cast<const float*>(x.const_data_ptr()),
                 static_cast<float*>(out.mutable_data_ptr()), x.size(0), x.size(1), x.stride(0),
                 static_cast<float>(epsilon));
  } else {
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Double, "fastdml: x must be float32 or float64");
    inverse_norm(static_cast<const double*>(x.const_data_ptr()),
                 static_cast<double*>(out.mutable_data_ptr()), x.size(0), x.size(1), x.stride(0),
                 epsilon);
  }
}

// Takes out of g the part along x: what normalising x leaves of a gradient that already carries 1/|x|.
template <class T>
void remove_radial(T* g, const T* x, const T* inverse_norm, int64_t rows, int64_t dim, int64_t ldx) {
  torch::stable::parallel_for(0, rows, 1 + 16384 / (dim + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* gi = g + i * dim;
      const T* xi = x + i * ldx;
      // Sixteen partial sums: fixed order, small rounding, and the compiler may use vectors.
      T part[16] = {};
      int64_t d = 0;
      for (; d + 16 <= dim; d += 16)
        for (int l = 0; l < 16; ++l) part[l] += gi[d + l] * xi[d + l];
      for (; d < dim; ++d) part[0] += gi[d] * xi[d];
      T dot = 0;
      for (int l = 0; l < 16; ++l) dot += part[l];
      const T along = dot * inverse_norm[i] * inverse_norm[i];
      for (d = 0; d < dim; ++d) gi[d] -= along * xi[d];
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

template <class T>
void remove_radial(Tensor& g, const Tensor& x, const Tensor& inverse_norm) {
  T* to = static_cast<T*>(g.mutable_data_ptr());
  const T* from = static_cast<const T*>(x.const_data_ptr());
  const T* scale = static_cast<const T*>(inverse_norm.const_data_ptr());
  if (g.is_contiguous())
    remove_radial(to, from, scale, g.size(0), g.size(1), x.stride(0));
  else
    remove_radial_by_columns(to, from, scale, g.size(0), g.size(1));
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
  m.def(
      "rows_(Tensor(a!) s, int functor, float[] parameters, Tensor? teacher, Tensor? row_scale, "
      "Tensor? col_scale, Tensor? row_square, Tensor? col_square, int metric, float epsilon, "
      "Tensor? row_class, Tensor? col_class, Tensor? class_start, Tensor? class_order, int longest, "
      "int self_offset, Tensor? row_weight, float weight, Tensor? scalars, Tensor? row_values, "
      "Tensor? col_values, Tensor(b!) loss, Tensor(c!)? d_scalars, Tensor(d!)? d_row_values, "
      "bool gradient) -> ()");
  m.def(
      "class_index_(Tensor row_labels, Tensor col_labels, Tensor(a!) row_class, "
      "Tensor(b!) col_class, Tensor(c!) start, Tensor(d!) order) -> (int, int)");
  m.def("inverse_norm_(Tensor(a!) out, Tensor x, float epsilon) -> ()");
  m.def("remove_radial_(Tensor(a!) g, Tensor x, Tensor inverse_norm) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastdml_native, CPU, m) {
  m.impl("rows_", TORCH_BOX(&rows_));
  m.impl("class_index_", TORCH_BOX(&class_index_));
  m.impl("inverse_norm_", TORCH_BOX(&inverse_norm_));
  m.impl("remove_radial_", TORCH_BOX(&remove_radial_));
}
