// Torch operators, through the stable ABI: one library serves every torch from 2.10 on.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <tuple>

#include "cpu/block.h"
#include "cpu/class_index.h"
#include "row_arguments.h"

namespace {

using fastdml::RowArguments;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
void rows_typed(const fastdml::Functor& f, const RowArguments& a) {
  const fastdml::Block<T> b = fastdml::block_of<T>(a, f.weights());
  const fastdml::Kernel& kernel = *f.kernels[fastdml::active_isa()];
  const int64_t arena =
      fastdml::arena_size(a.longest, b.cols) + fastdml::sorting_size(a.longest, b.cols);
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

void rows_cpu(const fastdml::Functor& f, const RowArguments& a) {
  STD_TORCH_CHECK(!a.weights.has_value(), "fastdml: weights go into s on the CPU");
  if (a.s.scalar_type() == ScalarType::Float)
    rows_typed<float>(f, a);
  else
    rows_typed<double>(f, a);
}

// Dense class numbers for arbitrary labels, and the columns of every class. Returns the number of
// classes among the columns and the size of the largest.
std::tuple<int64_t, int64_t, int64_t> class_index_(Tensor row_labels, Tensor col_labels, Tensor row_class,
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
  return {c.classes, c.longest, c.matched};
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
  STD_TORCH_CHECK(out.is_contiguous() && x.dim() == 2 && out.numel() == x.size(0) &&
                      (x.size(1) <= 1 || x.stride(1) == 1) &&
                      out.scalar_type() == x.scalar_type(),
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
  m.def((std::string("rows_") + fastdml::kRowsSchema).c_str());
  m.def(
      "class_index_(Tensor row_labels, Tensor col_labels, Tensor(a!) row_class, "
      "Tensor(b!) col_class, Tensor(c!) start, Tensor(d!) order) -> (int, int, int)");
  m.def("inverse_norm_(Tensor(a!) out, Tensor x, float epsilon) -> ()");
  m.def("remove_radial_(Tensor(a!) g, Tensor x, Tensor inverse_norm) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastdml_native, CPU, m) {
  m.impl("rows_", TORCH_BOX(&fastdml::rows_<rows_cpu>));
  m.impl("class_index_", TORCH_BOX(&class_index_));
  m.impl("inverse_norm_", TORCH_BOX(&inverse_norm_));
  m.impl("remove_radial_", TORCH_BOX(&remove_radial_));
}
