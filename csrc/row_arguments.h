// The arguments of rows_, one operator with an implementation per device: its schema, its checks, and
// the tensors as plain pointers.
#pragma once
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <type_traits>
#include <vector>

#include "cpu/block.h"

namespace fastdml {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Torch's own of these is not in the headers of the oldest torch that is supported.
template <class P>
inline constexpr ScalarType kTypeOf = std::is_same_v<P, float>          ? ScalarType::Float
                                      : std::is_same_v<P, double>       ? ScalarType::Double
                                      : std::is_same_v<P, std::int32_t> ? ScalarType::Int
                                                                        : ScalarType::Byte;

template <class P>
const P* pointer(const OptionalTensor& t, int64_t count) {
  if (!t.has_value()) return nullptr;
  STD_TORCH_CHECK(t->is_contiguous() && t->numel() >= count, "fastdml: vector argument too short");
  STD_TORCH_CHECK(t->scalar_type() == kTypeOf<P>, "fastdml: vector argument of another type than the block's");
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
  int64_t longest, own_offset;
  OptionalTensor own;
  OptionalTensor row_weight;
  double weight;
  OptionalTensor scalars, row_values, col_values;
  Tensor loss;
  OptionalTensor d_scalars, d_row_values;
  bool gradient;
  OptionalTensor weights;  // where weights go, if not into s
  bool seen;               // s holds what an earlier call without a gradient has left there
  OptionalTensor anchors, candidates;  // for distances of near pairs, on the CPU
  OptionalTensor d_columns;
};

template <class T>
T* writable(const OptionalTensor& t, int64_t count) {
  return const_cast<T*>(pointer<T>(t, count));
}

// The embeddings that a block of distances is of.
template <class T>
void embeddings_of(Block<T>& b, const OptionalTensor& anchors, const OptionalTensor& candidates) {
  if (!anchors.has_value() || b.metric == Metric::product) return;
  const auto stored = [&](const Tensor& x, int64_t rows) {
    STD_TORCH_CHECK(x.dim() == 2 && x.size(0) == rows &&
                        x.element_size() == static_cast<int64_t>(sizeof(T)),
                    "fastdml: embeddings must have the rows and the type of the block");
    return Embeddings<T>{static_cast<const T*>(x.const_data_ptr()), x.stride(0), x.stride(1)};
  };
  STD_TORCH_CHECK(candidates.has_value() && anchors->size(1) == candidates->size(1),
                  "fastdml: embeddings must have one dimension");
  b.anchors = stored(*anchors, b.rows);
  b.candidates = stored(*candidates, b.cols);
  b.dim = anchors->size(1);
}

template <class T>
Block<T> block_of(const RowArguments& a, int weights) {
  Block<T> b;
  b.s = static_cast<T*>(a.s.mutable_data_ptr());
  b.rows = a.s.size(0);
  b.cols = a.s.size(1);
  b.ld = a.s.stride(0);
  STD_TORCH_CHECK(b.cols <= 1 || a.s.stride(1) == 1, "fastdml: s must have contiguous rows");
  if (a.teacher.has_value()) {
    STD_TORCH_CHECK(a.teacher->size(0) == b.rows && a.teacher->size(1) == b.cols &&
                        a.teacher->scalar_type() == a.s.scalar_type(),
                    "fastdml: teacher must have the shape and the type of s");
    b.teacher = static_cast<const T*>(a.teacher->const_data_ptr());
    b.teacher_ld = a.teacher->stride(0);
  }
  b.row_scale = pointer<T>(a.row_scale, b.rows);
  b.col_scale = pointer<T>(a.col_scale, b.cols);
  b.metric = static_cast<Metric>(a.metric);
  b.row_square = pointer<T>(a.row_square, b.rows);
  b.col_square = pointer<T>(a.col_square, b.cols);
  STD_TORCH_CHECK(b.metric == Metric::product || (b.row_square && b.col_square),
                  "fastdml: distances need squared norms");
  b.epsilon = static_cast<T>(a.epsilon);
  b.row_class = pointer<int32_t>(a.row_class, b.rows);
  b.col_class = pointer<int32_t>(a.col_class, b.cols);
  b.class_start = pointer<int32_t>(a.class_start, 0);
  b.class_order = pointer<int32_t>(a.class_order, 0);
  b.own_offset = a.own_offset;
  b.own = pointer<int32_t>(a.own, b.rows);
  b.row_weight = pointer<T>(a.row_weight, b.rows * weights);
  b.weight = static_cast<T>(a.weight);
  b.scalars = pointer<T>(a.scalars, 0);
  b.scalar_count = a.scalars.has_value() ? a.scalars->numel() : 0;
  b.row_values = pointer<T>(a.row_values, 0);
  b.row_count = a.row_values.has_value() ? a.row_values->size(1) : 0;
  b.col_values = pointer<T>(a.col_values, 0);
  b.loss = static_cast<T*>(a.loss.mutable_data_ptr());
  b.d_scalars = writable<T>(a.d_scalars, b.rows * b.scalar_count);
  b.d_row_values = writable<T>(a.d_row_values, b.rows * b.row_count);
  b.d_columns = writable<T>(a.d_columns, b.rows * b.cols);
  b.gradient = a.gradient;
  b.seen = a.seen;
  b.parameters = a.parameters.data();
  return b;
}

inline const Functor& checked_functor(int64_t id, const std::vector<double>& parameters) {
  STD_TORCH_CHECK(id >= 0 && id < functor_count(), "fastdml: unknown functor");
  const Functor& f = functor(static_cast<int>(id));
  STD_TORCH_CHECK(static_cast<int>(parameters.size()) == f.parameters(), "fastdml: ", f.name,
                  " takes ", f.parameters(), " parameters, not ", parameters.size());
  return f;
}

// Similarities in, weights out: one loss over a block of rows, by `run` of a device.
template <void (*run)(const Functor&, const RowArguments&)>
void rows_(Tensor s, int64_t id, std::vector<double> parameters, OptionalTensor teacher,
           OptionalTensor row_scale, OptionalTensor col_scale, OptionalTensor row_square,
           OptionalTensor col_square, int64_t metric, double epsilon, OptionalTensor row_class,
           OptionalTensor col_class, OptionalTensor class_start, OptionalTensor class_order,
           int64_t longest, int64_t own_offset, OptionalTensor own, OptionalTensor row_weight, double weight,
           OptionalTensor scalars, OptionalTensor row_values, OptionalTensor col_values, Tensor loss,
           OptionalTensor d_scalars, OptionalTensor d_row_values, bool gradient,
           OptionalTensor weights, bool seen, OptionalTensor anchors, OptionalTensor candidates,
           OptionalTensor d_columns) {
  const Functor& f = checked_functor(id, parameters);
  STD_TORCH_CHECK(s.dim() == 2, "fastdml: s must be a matrix");
  STD_TORCH_CHECK(loss.numel() >= s.size(0) * f.outputs(), "fastdml: loss is too short");
  STD_TORCH_CHECK(loss.scalar_type() == s.scalar_type(), "fastdml: loss must have the type of s");
  STD_TORCH_CHECK(metric >= 0 && metric <= 2, "fastdml: unknown metric");
  const RowArguments a{s,           parameters,  teacher,    row_scale,   col_scale,  row_square,
                       col_square,  metric,      epsilon,    row_class,   col_class,  class_start,
                       class_order, longest,     own_offset, own,         row_weight, weight,     scalars,
                       row_values,  col_values,  loss,       d_scalars,   d_row_values, gradient,
                       weights,     seen,        anchors,    candidates,  d_columns};
  STD_TORCH_CHECK(s.scalar_type() == ScalarType::Float || s.scalar_type() == ScalarType::Double,
                  "fastdml: s must be float32 or float64");
  run(f, a);
}

inline constexpr char kRowsSchema[] =
    "(Tensor(a!) s, int functor, float[] parameters, Tensor? teacher, Tensor? row_scale, "
    "Tensor? col_scale, Tensor? row_square, Tensor? col_square, int metric, float epsilon, "
    "Tensor? row_class, Tensor? col_class, Tensor? class_start, Tensor? class_order, int longest, "
    "int own_offset, Tensor? own, Tensor? row_weight, float weight, Tensor? scalars, Tensor? row_values, "
    "Tensor? col_values, Tensor(b!) loss, Tensor(c!)? d_scalars, Tensor(d!)? d_row_values, "
    "bool gradient, Tensor(e!)? weights=None, bool seen=False, Tensor? anchors=None, "
    "Tensor? candidates=None, Tensor(f!)? d_columns=None) -> ()";

}  // namespace fastdml
