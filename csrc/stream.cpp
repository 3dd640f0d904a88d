// Operators of the symmetric schedule: losses over one set in their streamed form (cpu/stream.h).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "cpu/stream.h"
#include "row_arguments.h"

namespace {

using fastdml::OptionalTensor;
using fastdml::pointer;
using fastdml::RowNumbers;
using fastdml::Stream;
using fastdml::StreamOf;
using fastdml::Trapezoid;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
const StreamOf<T>& functions(const Stream& stream) {
  if constexpr (sizeof(T) == 4)
    return stream.f32;
  else
    return stream.f64;
}

const Stream& checked(int64_t id, const std::vector<double>& parameters) {
  const Stream* found = fastdml::stream_of(id);
  STD_TORCH_CHECK(found, "fastdml: no streamed loss has this number");
  STD_TORCH_CHECK(static_cast<int>(parameters.size()) == found->parameters, "fastdml: it takes ",
                  found->parameters, " parameters");
  return *found;
}

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// The tensors of a visit of a trapezoid, in the order of its schema.
struct Visit {
  Tensor s;
  std::vector<double> parameters;
  int64_t first;
  OptionalTensor teacher, scale;
  int64_t metric;
  OptionalTensor square;
  double epsilon;
  OptionalTensor embeddings, classes, codes;
  bool own;
  OptionalTensor known, scalars, col_values, row_weight;
  double weight;
};

// How many trapezoids of one shape, each as many rows further down the diagonal as it has.
int64_t blocks(const Visit& v) { return v.s.dim() == 3 ? v.s.size(0) : 1; }

// The k-th of several.
template <class T>
Trapezoid<T> further(Trapezoid<T> t, int64_t k, int64_t stride) {
  fastdml::Block<T>& b = t.block;
  const int64_t rows = k * b.rows;
  b.s += k * stride;
  t.first += rows;
  t.classes += rows;
  for (const T** x : {&b.row_scale, &b.col_scale, &b.row_square, &b.col_square})
    if (*x) *x += rows;
  for (auto* x : {&b.anchors, &b.candidates})
    if (x->x) x->x += rows * x->row;
  return t;
}

// samples: of the set, of which the trapezoid has the columns from its first row on, or the first of these.
template <class T>
Trapezoid<T> trapezoid(const Visit& v, int64_t samples) {
  Trapezoid<T> t;
  fastdml::Block<T>& b = t.block;
  const int64_t row = v.s.dim() - 2;
  b.s = data<T>(v.s);
  b.rows = v.s.size(row);
  b.cols = v.s.size(row + 1);
  b.ld = v.s.stride(row);
  t.first = v.first;
  t.samples = samples;
  STD_TORCH_CHECK(v.first >= 0 && b.rows <= b.cols && v.s.stride(row + 1) == 1 &&
                      v.first + (blocks(v) - 1) * b.rows + b.cols <= samples,
                  "fastdml: a trapezoid has columns from its first row on");
  const auto from_first = [&](const OptionalTensor& x) {
    const T* all = pointer<T>(x, t.samples);
    return all ? all + v.first : nullptr;
  };
  b.row_scale = b.col_scale = from_first(v.scale);
  b.row_square = b.col_square = from_first(v.square);
  b.metric = static_cast<fastdml::Metric>(v.metric);
  STD_TORCH_CHECK(v.metric == 0 || b.row_square, "fastdml: distances need squared norms");
  b.epsilon = static_cast<T>(v.epsilon);
  if (v.embeddings.has_value()) {
    const Tensor& x = *v.embeddings;
    STD_TORCH_CHECK(x.dim() == 2 && x.size(0) == t.samples &&
                        x.element_size() == static_cast<int64_t>(sizeof(T)),
                    "fastdml: embeddings must have a row a sample, in the type of the block");
    const T* const from = static_cast<const T*>(x.const_data_ptr()) + v.first * x.stride(0);
    b.anchors = b.candidates = {from, x.stride(0), x.stride(1)};
    b.dim = x.size(1);
  }
  if (v.teacher.has_value()) {
    STD_TORCH_CHECK(v.teacher->size(0) == b.rows && v.teacher->size(1) == b.cols,
                    "fastdml: teacher must have the shape of s");
    b.teacher = static_cast<const T*>(v.teacher->const_data_ptr());
    b.teacher_ld = v.teacher->stride(0);
  }
  b.scalars = pointer<T>(v.scalars, 0);
  b.parameters = v.parameters.data();
  STD_TORCH_CHECK(v.classes.has_value() || v.codes.has_value(), "fastdml: pairs of classes or of codes");
  if (v.classes.has_value()) t.classes = pointer<int32_t>(v.classes, t.samples) + v.first;
  t.codes = pointer<uint8_t>(v.codes, b.rows * b.cols);
  t.own = v.own;
  t.known = pointer<T>(v.known, 0);
  t.col_values = pointer<T>(v.col_values, 0);
  t.row_weight = pointer<T>(v.row_weight, t.samples);
  t.weight = static_cast<T>(v.weight);
  return t;
}

template <class T>
void visit(const Visit& v, const Stream& stream, int64_t pass, int64_t pieces,
           const OptionalTensor& partial) {
  const int64_t count = blocks(v);
  STD_TORCH_CHECK(count == 1 || (partial.has_value() && v.classes.has_value() && !v.teacher.has_value()),
                  "fastdml: several trapezoids fold pairs of classes");
  // Weights are of all pairs.
  Trapezoid<T> t = trapezoid<T>(v, partial.has_value() ? partial->size(2) : v.first + v.s.size(1));
  t.pieces = pieces;
  if (stream.outputs > 1) {  // their weights are in what is known of the rows
    t.row_weight = nullptr;
    t.weight = T(1);
  }
  if (partial.has_value()) {
    STD_TORCH_CHECK(pass >= 0 && pass <= stream.passes && partial->is_contiguous() &&
                        partial->size(0) == pieces && partial->size(1) == stream.statistics[pass],
                    "fastdml: partial is [pieces, statistics, samples] of a pass");
    t.partial = data<T>(*partial);
  }
  torch::stable::parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece)
      if (count > 1) {  // whole ones to each piece
        Trapezoid<T> own = t;
        own.pieces = 1;
        own.partial += piece * stream.statistics[pass] * t.samples;
        for (int64_t k = count * piece / pieces; k < count * (piece + 1) / pieces; ++k)
          functions<T>(stream).fold(further(own, k, v.s.stride(0)), static_cast<int>(pass), 0);
      } else if (partial.has_value())
        functions<T>(stream).fold(t, static_cast<int>(pass), piece);
      else
        functions<T>(stream).weigh(t, piece);
  });
}

// Pass `pass` over a trapezoid s [rows, cols], or over several [., rows, cols], folded into partial; without
// it, the weights of one.
void stream_visit_(Tensor s, int64_t id, std::vector<double> parameters, int64_t pass, int64_t pieces,
                   OptionalTensor partial, int64_t first, OptionalTensor teacher, OptionalTensor scale,
                   int64_t metric, OptionalTensor square, double epsilon, OptionalTensor embeddings,
                   OptionalTensor classes, OptionalTensor codes, bool own, OptionalTensor known,
                   OptionalTensor scalars, OptionalTensor col_values, OptionalTensor row_weight,
                   double weight) {
  const Stream& stream = checked(id, parameters);
  const Visit v{s,       parameters, first, teacher, scale,   metric,     square,     epsilon, embeddings,
                classes, codes,      own,   known,   scalars, col_values, row_weight, weight};
  if (s.scalar_type() == ScalarType::Float)
    visit<float>(v, stream, pass, pieces, partial);
  else
    visit<double>(v, stream, pass, pieces, partial);
}

// partial [pieces, statistics, samples]: as before any pair; or merged into statistics [statistics, samples].
void stream_gather_(int64_t id, int64_t pass, Tensor partial, OptionalTensor statistics) {
  const Stream* stream = fastdml::stream_of(id);
  STD_TORCH_CHECK(stream && pass >= 0 && pass <= stream->passes, "fastdml: no such pass");
  const auto run = [&]<class T>(T) {
    const StreamOf<T>& f = functions<T>(*stream);
    if (statistics.has_value())
      f.merge(data<T>(partial), partial.size(0), partial.size(2), static_cast<int>(pass),
              data<T>(*statistics));
    else
      f.begin(data<T>(partial), partial.size(0), partial.size(2), static_cast<int>(pass));
  };
  partial.scalar_type() == ScalarType::Float ? run(0.0f) : run(0.0);
}

// What pass `pass` (or the weight) reads of the rows, into known; pass -1: the results, into loss.
void stream_rows_(int64_t id, std::vector<double> parameters, int64_t pass, Tensor statistics,
                  OptionalTensor scalars, OptionalTensor row_values, OptionalTensor weights,
                  double weight, double candidates, OptionalTensor counts, OptionalTensor known,
                  OptionalTensor loss, OptionalTensor d_scalars, OptionalTensor d_row_values) {
  const Stream& stream = checked(id, parameters);
  const auto run = [&]<class T>(T) {
    RowNumbers<T> of;
    of.samples = statistics.size(1);
    of.statistics = data<T>(statistics);
    of.scalars = pointer<T>(scalars, 0);
    of.row_values = pointer<T>(row_values, 0);
    of.row_count = row_values.has_value() ? row_values->size(1) : 0;
    of.weights = pointer<T>(weights, 0);
    of.weight = static_cast<T>(weight);
    of.candidates = static_cast<T>(candidates);
    of.counts = pointer<T>(counts, of.samples);
    of.parameters = parameters.data();
    if (known.has_value()) of.known = data<T>(*known);
    if (loss.has_value()) {
      STD_TORCH_CHECK(loss->numel() >= of.samples * stream.outputs, "fastdml: loss is too short");
      of.loss = data<T>(*loss);
    }
    if (d_scalars.has_value()) {
      of.d_scalars = data<T>(*d_scalars);
      of.scalar_count = d_scalars->size(1);
    }
    if (d_row_values.has_value()) of.d_row_values = data<T>(*d_row_values);
    const StreamOf<T>& f = functions<T>(stream);
    torch::stable::parallel_for(0, of.samples, 256, [&](int64_t begin, int64_t end) {
      if (pass < 0)
        f.result(of, begin, end);
      else
        f.next(of, static_cast<int>(pass), begin, end);
    });
  };
  statistics.scalar_type() == ScalarType::Float ? run(0.0f) : run(0.0);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastdml_native, m) {
  m.def(
      "stream_visit_(Tensor(a!) s, int stream, float[] parameters, int sweep, int pieces, "
      "Tensor(b!)? partial, int first, Tensor? teacher, Tensor? scale, int metric, Tensor? square, "
      "float epsilon, Tensor? embeddings, Tensor? classes, Tensor? codes, bool own, Tensor? known, "
      "Tensor? scalars, Tensor? col_values, Tensor? row_weight, float weight) -> ()");
  m.def("stream_gather_(int stream, int sweep, Tensor(a!) partial, Tensor(b!)? statistics) -> ()");
  m.def(
      "stream_rows_(int stream, float[] parameters, int sweep, Tensor statistics, Tensor? scalars, "
      "Tensor? row_values, Tensor? weights, float weight, float candidates, Tensor? counts, "
      "Tensor(a!)? known, Tensor(b!)? loss, Tensor(c!)? d_scalars, Tensor(d!)? d_row_values) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastdml_native, CPU, m) {
  m.impl("stream_visit_", TORCH_BOX(&stream_visit_));
  m.impl("stream_gather_", TORCH_BOX(&stream_gather_));
  m.impl("stream_rows_", TORCH_BOX(&stream_rows_));
}
