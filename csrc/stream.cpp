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

template <class T>
Trapezoid<T> trapezoid(const Tensor& s, const std::vector<double>& parameters, int64_t first,
                       const OptionalTensor& scale, int64_t metric, const OptionalTensor& square,
                       double epsilon, const Tensor& classes, const OptionalTensor& known,
                       const OptionalTensor& scalars) {
  Trapezoid<T> b;
  b.s = data<T>(s);
  b.rows = s.size(0);
  b.cols = s.size(1);
  b.ld = s.stride(0);
  b.first = first;
  b.samples = classes.numel();
  STD_TORCH_CHECK(first >= 0 && first + b.cols == b.samples && b.rows <= b.cols && s.stride(1) == 1,
                  "fastdml: a trapezoid has all columns from its first row on");
  b.scale = pointer<T>(scale, b.samples);
  b.square = pointer<T>(square, b.samples);
  b.metric = static_cast<fastdml::Metric>(metric);
  STD_TORCH_CHECK(metric == 0 || (b.scale && b.square), "fastdml: distances need squared norms");
  b.epsilon = static_cast<T>(epsilon);
  b.classes = static_cast<const int32_t*>(classes.const_data_ptr());
  b.known = pointer<T>(known, 0);
  b.scalars = pointer<T>(scalars, 0);
  b.parameters = parameters.data();
  return b;
}

template <class T>
void fold(Tensor& s, const Stream& stream, const std::vector<double>& parameters, int64_t pass,
          int64_t first, const OptionalTensor& scale, int64_t metric, const OptionalTensor& square,
          double epsilon, const Tensor& classes, const OptionalTensor& known,
          const OptionalTensor& scalars, Tensor& partial) {
  Trapezoid<T> b =
      trapezoid<T>(s, parameters, first, scale, metric, square, epsilon, classes, known, scalars);
  b.partial = data<T>(partial);
  b.pieces = partial.size(0);
  STD_TORCH_CHECK(partial.is_contiguous() && partial.size(1) == stream.statistics[pass] &&
                      partial.size(2) == b.samples,
                  "fastdml: partial is [pieces, statistics, samples]");
  torch::stable::parallel_for(0, b.pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece)
      functions<T>(stream).fold(b, static_cast<int>(pass), piece);
  });
}

void stream_fold_(Tensor s, int64_t id, std::vector<double> parameters, int64_t pass, int64_t first,
                  OptionalTensor scale, int64_t metric, OptionalTensor square, double epsilon,
                  Tensor classes, OptionalTensor known, OptionalTensor scalars, Tensor partial) {
  const Stream& stream = checked(id, parameters);
  STD_TORCH_CHECK(pass >= 0 && pass < stream.passes, "fastdml: it has no such pass");
  if (s.scalar_type() == ScalarType::Float)
    fold<float>(s, stream, parameters, pass, first, scale, metric, square, epsilon, classes, known,
                scalars, partial);
  else
    fold<double>(s, stream, parameters, pass, first, scale, metric, square, epsilon, classes, known,
                 scalars, partial);
}

template <class T>
void weigh(Tensor& s, const Stream& stream, const std::vector<double>& parameters, int64_t first,
           const OptionalTensor& scale, int64_t metric, const OptionalTensor& square, double epsilon,
           const Tensor& classes, const OptionalTensor& known, const OptionalTensor& scalars,
           const OptionalTensor& row_weight, double weight, int64_t pieces) {
  Trapezoid<T> b =
      trapezoid<T>(s, parameters, first, scale, metric, square, epsilon, classes, known, scalars);
  // Of several outputs the weights are in what is known of the rows.
  if (stream.outputs == 1) {
    b.row_weight = pointer<T>(row_weight, b.samples);
    b.weight = static_cast<T>(weight);
  }
  b.pieces = pieces;
  torch::stable::parallel_for(0, b.pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) functions<T>(stream).weigh(b, piece);
  });
}

void stream_weigh_(Tensor s, int64_t id, std::vector<double> parameters, int64_t first,
                   OptionalTensor scale, int64_t metric, OptionalTensor square, double epsilon,
                   Tensor classes, OptionalTensor known, OptionalTensor scalars,
                   OptionalTensor row_weight, double weight, int64_t pieces) {
  const Stream& stream = checked(id, parameters);
  if (s.scalar_type() == ScalarType::Float)
    weigh<float>(s, stream, parameters, first, scale, metric, square, epsilon, classes, known, scalars,
                 row_weight, weight, pieces);
  else
    weigh<double>(s, stream, parameters, first, scale, metric, square, epsilon, classes, known, scalars,
                  row_weight, weight, pieces);
}

// partial [pieces, statistics, samples]: as before any pair; or merged into statistics [all, samples].
void stream_gather_(int64_t id, int64_t pass, Tensor partial, OptionalTensor statistics) {
  const Stream* stream = fastdml::stream_of(id);
  STD_TORCH_CHECK(stream && pass >= 0 && pass < stream->passes, "fastdml: no such pass");
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
                  double weight, double candidates, OptionalTensor known, OptionalTensor loss,
                  OptionalTensor d_scalars, OptionalTensor d_row_values) {
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
    of.parameters = parameters.data();
    if (known.has_value()) of.known = data<T>(*known);
    if (loss.has_value()) of.loss = data<T>(*loss);
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
      "stream_fold_(Tensor s, int stream, float[] parameters, int sweep, int first, Tensor? scale, "
      "int metric, Tensor? square, float epsilon, Tensor classes, Tensor? known, Tensor? scalars, "
      "Tensor(a!) partial) -> ()");
  m.def(
      "stream_weigh_(Tensor(a!) s, int stream, float[] parameters, int first, Tensor? scale, int metric, "
      "Tensor? square, float epsilon, Tensor classes, Tensor? known, Tensor? scalars, "
      "Tensor? row_weight, float weight, int pieces) -> ()");
  m.def("stream_gather_(int stream, int sweep, Tensor(a!) partial, Tensor(b!)? statistics) -> ()");
  m.def(
      "stream_rows_(int stream, float[] parameters, int sweep, Tensor statistics, Tensor? scalars, "
      "Tensor? row_values, Tensor? weights, float weight, float candidates, Tensor(a!)? known, "
      "Tensor(b!)? loss, Tensor(c!)? d_scalars, Tensor(d!)? d_row_values) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastdml_native, CPU, m) {
  m.impl("stream_fold_", TORCH_BOX(&stream_fold_));
  m.impl("stream_weigh_", TORCH_BOX(&stream_weigh_));
  m.impl("stream_gather_", TORCH_BOX(&stream_gather_));
  m.impl("stream_rows_", TORCH_BOX(&stream_rows_));
}
