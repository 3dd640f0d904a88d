// A problem whose whole matrix fits the workspace, in one call. What fastdml/engine/schedule.py does in
// twenty: a small batch spends its time on the way into operators.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "cpu/class_index.h"
#include "cpu/norms.h"
#include "cpu/run_rows.h"
#include "row_arguments.h"
#include "total.h"

namespace {

using fastdml::OptionalTensor;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Below this norm an embedding has no direction: fastdml/engine/similarity.py.
constexpr double kEpsilon = std::numeric_limits<float>::min();

struct Call {
  Tensor anchors;
  OptionalTensor candidates;  // none: the anchors
  Tensor s;                   // [M, N] scratch, its own or the caller's
  const fastdml::Functor& functor;
  std::vector<double> parameters;
  int64_t metric;
  bool normalized;
  double epsilon;
  Tensor classes;  // what class_index returned
  int64_t longest;
  int64_t own_offset;
  OptionalTensor own;
  OptionalTensor row_weight;
  double weight;
  OptionalTensor scalars, row_values, col_values;
  bool total, d_anchors, d_candidates, d_scalars, d_row_values;
};

// Outputs, their weighted sum, and the derivatives by anchors, candidates, scalars and row values: what of
// them was asked for. Outputs [0, 0] and nothing else where rows are too long or too short for products: the
// caller brings them into range, or refuses them.
using Results =
    std::tuple<Tensor, OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor>;

void multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
  // Torch's newer macro of this kind is not in the headers of the oldest torch that is supported.
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
}

template <class T>
T* data(const Tensor& t) {
  if constexpr (std::is_const_v<T>)
    return static_cast<T*>(t.const_data_ptr());
  else
    return static_cast<T*>(t.mutable_data_ptr());
}

// s + its transpose, in place, tile by tile: with one set of embeddings, rows and columns of the weights
// meet the same operand, and one product does for two.
template <class T>
void symmetrize(T* s, int64_t n) {
  constexpr int64_t tile = 32;
  const int64_t tiles = (n + tile - 1) / tile;
  torch::stable::parallel_for(0, tiles, 1 + (1 << 15) / (n * tile), [&](int64_t begin, int64_t end) {
    for (int64_t above = begin; above < end; ++above)
      for (int64_t left = 0; left <= above; ++left)
        for (int64_t i = above * tile; i < std::min(n, (above + 1) * tile); ++i)
          for (int64_t j = left * tile; j < std::min(i + 1, (left + 1) * tile); ++j)
            s[i * n + j] = s[j * n + i] = s[i * n + j] + s[j * n + i];
  });
}

template <class T>
std::vector<T> inverse_norms(const Tensor& x) {
  std::vector<T> out(x.size(0));
  fastdml::inverse_norm(data<const T>(x), out.data(), x.size(0), x.size(1), x.stride(0),
                        static_cast<T>(kEpsilon));
  return out;
}

// Squared lengths of what was normalised: exactly 1, or 0 without a direction.
template <class T>
std::vector<T> squares(const std::vector<T>& scale) {
  std::vector<T> out(scale.size());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = scale[i] > T(0) ? T(1) : T(0);
  return out;
}

template <class T>
Results run(const Call& c) {
  const Tensor& columns = c.candidates.has_value() ? *c.candidates : c.anchors;
  const bool one_set = !c.candidates.has_value();
  const int64_t m = c.anchors.size(0), n = columns.size(0), dim = c.anchors.size(1);
  const bool gradient = c.d_anchors || c.d_candidates || c.d_scalars || c.d_row_values;

  const auto empty = [&](std::vector<int64_t> shape) {
    return torch::stable::new_empty(c.anchors, shape);
  };
  const auto declined = [&]() -> Results {
    return {empty({0, 0}), std::nullopt, std::nullopt, std::nullopt, std::nullopt, std::nullopt};
  };
  // [M, values of a row]: what a functor leaves alone is 0.
  const auto zeros = [&](const OptionalTensor& like, bool wanted) -> OptionalTensor {
    if (!wanted || !like.has_value()) return std::nullopt;
    Tensor t = empty({m, like->dim() == 1 ? like->numel() : like->size(1)});
    std::fill_n(data<T>(t), t.numel(), T(0));
    return t;
  };
  Tensor outputs = empty({m, c.functor.outputs()});
  const OptionalTensor d_scalars = zeros(c.scalars, c.d_scalars);
  const OptionalTensor d_row_values = zeros(c.row_values, c.d_row_values);

  std::vector<T> row_scale, col_scale, row_square, col_square;
  if (c.normalized) {
    row_scale = inverse_norms<T>(c.anchors);
    if (!one_set) col_scale = inverse_norms<T>(columns);
    if (!fastdml::in_range(data<const T>(c.anchors), dim, row_scale) ||
        !fastdml::in_range(data<const T>(columns), dim, col_scale))
      return declined();
  }
  const std::vector<T>& of_columns = one_set ? row_scale : col_scale;

  fastdml::Block<T> b;
  b.s = data<T>(c.s);
  b.rows = m;
  b.cols = b.ld = n;
  if (c.normalized) {
    b.row_scale = row_scale.data();
    b.col_scale = of_columns.data();
  }
  b.metric = static_cast<fastdml::Metric>(c.metric);
  if (b.metric != fastdml::Metric::product) {
    row_square = squares(row_scale);
    col_square = squares(of_columns);
    b.row_square = row_square.data();
    b.col_square = col_square.data();
    fastdml::embeddings_of(b, c.anchors, columns);
  }
  b.epsilon = static_cast<T>(c.epsilon);
  const fastdml::PackedClasses at(m, n);
  const int32_t* classes = data<const int32_t>(c.classes);
  b.row_class = classes + at.row_class;
  b.col_class = classes + at.col_class;
  b.class_start = classes + at.start;
  b.class_order = classes + at.order;
  b.own_offset = c.own_offset;
  b.own = fastdml::pointer<int32_t>(c.own, m);
  b.row_weight = fastdml::pointer<T>(c.row_weight, m * c.functor.weights());
  b.weight = static_cast<T>(c.weight);
  b.scalars = fastdml::pointer<T>(c.scalars, 0);
  b.scalar_count = c.scalars.has_value() ? c.scalars->numel() : 0;
  b.row_values = fastdml::pointer<T>(c.row_values, 0);
  b.row_count = c.row_values.has_value() ? c.row_values->size(1) : 0;
  b.col_values = fastdml::pointer<T>(c.col_values, 0);
  b.loss = data<T>(outputs);
  if (d_scalars.has_value()) b.d_scalars = data<T>(*d_scalars);
  if (d_row_values.has_value()) b.d_row_values = data<T>(*d_row_values);
  b.gradient = gradient;
  b.parameters = c.parameters.data();

  multiply(c.s, c.anchors, torch::stable::transpose(columns, 0, 1));
  // Of normalised rows in range no product overflows.
  if (!c.normalized && fastdml::poison(b.s, m * n) != T(0)) return declined();
  fastdml::run_rows(c.functor, b, c.longest);
  T poison = fastdml::poison(data<const T>(c.anchors), m * dim);
  if (!one_set) poison += fastdml::poison(data<const T>(columns), n * dim);
  if (poison != T(0)) std::fill_n(b.loss, outputs.numel(), poison);  // see Problem.poison

  OptionalTensor d_anchors, d_candidates;
  const auto product = [&](const Tensor& g, const Tensor& other, const Tensor& x,
                           const std::vector<T>& scale) {
    Tensor d = empty({x.size(0), dim});
    multiply(d, g, other);
    if (c.normalized)
      fastdml::remove_radial(data<T>(d), data<const T>(x), scale.data(), x.size(0), dim, dim);
    return d;
  };
  if (c.d_candidates && !one_set)
    d_candidates = product(torch::stable::transpose(c.s, 0, 1), c.anchors, columns, of_columns);
  if (c.d_anchors) {
    if (one_set) symmetrize(b.s, m);
    d_anchors = product(c.s, columns, c.anchors, row_scale);
  }
  OptionalTensor total;
  if (c.total) total = fastdml::total(outputs, c.row_weight, c.weight);
  return {outputs, total, d_anchors, d_candidates, d_scalars, d_row_values};
}

Results one_block(Tensor anchors, OptionalTensor candidates, OptionalTensor scratch, int64_t id,
                  std::vector<double> parameters, int64_t metric, bool normalized, double epsilon,
                  Tensor classes, int64_t longest, int64_t own_offset, OptionalTensor own,
                  OptionalTensor row_weight,
                  double weight, OptionalTensor scalars, OptionalTensor row_values,
                  OptionalTensor col_values, bool total, bool d_anchors, bool d_candidates,
                  bool d_scalars, bool d_row_values) {
  const fastdml::Functor& f = fastdml::checked_functor(id, parameters);
  const Tensor& columns = candidates.has_value() ? *candidates : anchors;
  const ScalarType type = anchors.scalar_type();
  const Tensor s = scratch.has_value()
                       ? *scratch
                       : torch::stable::new_empty(anchors, {anchors.size(0), columns.size(0)});
  STD_TORCH_CHECK(anchors.dim() == 2 && columns.dim() == 2 && anchors.size(1) == columns.size(1) &&
                      anchors.is_contiguous() && columns.is_contiguous() && s.is_contiguous() &&
                      s.dim() == 2 && s.size(0) == anchors.size(0) && s.size(1) == columns.size(0) &&
                      columns.scalar_type() == type && s.scalar_type() == type,
                  "fastdml: one_block takes contiguous matrices of one type");
  STD_TORCH_CHECK(metric == 0 || (normalized && metric > 0 && metric <= 2),
                  "fastdml: one_block takes products, or distances of normalised embeddings");
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                  "fastdml: embeddings must be float32 or float64");
  STD_TORCH_CHECK(classes.scalar_type() == ScalarType::Int && classes.is_contiguous() &&
                      classes.numel() ==
                          fastdml::PackedClasses(anchors.size(0), columns.size(0)).size,
                  "fastdml: classes must be what class_index returned");
  const Call c{anchors,    candidates, s,         f,            parameters, metric,
               normalized, epsilon,    classes,   longest,      own_offset, own,        row_weight,
               weight,     scalars,    row_values, col_values,  total,      d_anchors,
               d_candidates, d_scalars, d_row_values};
  return type == ScalarType::Float ? run<float>(c) : run<double>(c);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastdml_native, m) {
  m.def(
      "one_block(Tensor anchors, Tensor? candidates, Tensor(a!)? scratch, int functor, float[] parameters, "
      "int metric, bool normalized, float epsilon, Tensor classes, int longest, int own_offset, "
      "Tensor? own, Tensor? row_weight, float weight, Tensor? scalars, Tensor? row_values, Tensor? col_values, "
      "bool total, bool d_anchors, bool d_candidates, bool d_scalars, bool d_row_values) "
      "-> (Tensor, Tensor?, Tensor?, Tensor?, Tensor?, Tensor?)");
}

STABLE_TORCH_LIBRARY_IMPL(fastdml_native, CPU, m) { m.impl("one_block", TORCH_BOX(&one_block)); }
