// What is not a tensor operator: build and processor information, the registry of compiled losses,
// and a numpy entry point for arrays from any framework.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cpu/block.h"
#include "cpu/class_index.h"
#include "cpu/further.h"
#include "cpu/stream.h"
#include "metrics/python.h"
#ifdef FASTDML_WITH_CUDA
#include "cuda/launch.h"
#endif

namespace py = pybind11;

namespace {

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (int i = 0; i < fastdml::isa_count(); ++i) names.push_back(fastdml::isa_name(i));
  return names;
}

py::dict functors() {
  py::dict out;
  for (int i = 0; i < fastdml::functor_count(); ++i)
    out[fastdml::functor(i).name] =
        py::make_tuple(i, fastdml::functor(i).parameters(), fastdml::functor(i).outputs(),
                       fastdml::functor(i).gathered());
  return out;
}

py::dict streams() {
  py::dict out;
  for (int i = 0; i < fastdml::built_stream_count(); ++i)
    if (fastdml::stream_of(i)) out[fastdml::built_stream(i).key] = i;
  return out;
}

template <class T>
using Optional = std::optional<py::array_t<T, py::array::c_style | py::array::forcecast>>;

template <class T>
void expect_shape(const char* what, const Optional<T>& found, std::int64_t rows, std::int64_t cols) {
  if (found && (found->ndim() != 2 || (rows >= 0 && found->shape(0) != rows) ||
                (cols >= 0 && found->shape(1) != cols)))
    throw py::value_error(std::string(what) + ": expected a matrix [" +
                          (rows < 0 ? "k" : std::to_string(rows)) + ", " +
                          (cols < 0 ? "k" : std::to_string(cols)) + "]");
}

template <class T>
py::array_t<T> apply(const std::string& name, const std::vector<double>& parameters,
                     py::array_t<T, py::array::c_style> s,
                     py::array_t<std::int64_t, py::array::c_style | py::array::forcecast> row_labels,
                     py::array_t<std::int64_t, py::array::c_style | py::array::forcecast> col_labels,
                     std::int64_t own_offset, const std::vector<T>& scalars,
                     const Optional<T>& row_values, const Optional<T>& col_values,
                     const Optional<T>& teacher) {
  const fastdml::Functor* found = nullptr;
  for (int i = 0; i < fastdml::functor_count(); ++i)
    if (name == fastdml::functor(i).name) found = &fastdml::functor(i);
  if (!found) throw py::value_error("name: no compiled loss is called '" + name + "'");
  if (static_cast<int>(parameters.size()) != found->parameters())
    throw py::value_error("parameters: '" + name + "' takes " + std::to_string(found->parameters()));
  if (s.ndim() != 2) throw py::value_error("s: expected a matrix of similarities");
  if (row_labels.ndim() != 1 || row_labels.size() != s.shape(0))
    throw py::value_error("row_labels: expected one label per row of s");
  if (col_labels.ndim() != 1 || col_labels.size() != s.shape(1))
    throw py::value_error("col_labels: expected one label per column of s");
  expect_shape<T>("row_values", row_values, s.shape(0), -1);
  expect_shape<T>("col_values", col_values, -1, s.shape(1));
  expect_shape<T>("teacher", teacher, s.shape(0), s.shape(1));
  std::vector<std::int32_t> row_class(s.shape(0)), col_class(s.shape(1)), start(s.shape(1) + 1),
      order(s.shape(1));
  const auto index = fastdml::class_index(row_labels.data(), s.shape(0), col_labels.data(), s.shape(1),
                                          row_class.data(), col_class.data(), start.data(), order.data());
  py::array_t<T> loss(s.shape(0) * found->outputs());
  fastdml::Block<T> b;
  b.s = s.mutable_data();
  b.rows = s.shape(0);
  b.cols = b.ld = s.shape(1);
  b.row_class = row_class.data();
  b.col_class = col_class.data();
  b.class_start = start.data();
  b.class_order = order.data();
  b.own_offset = own_offset;
  // Whatever a functor reads that was not given is NaN: row and column values, a teacher, scalars.
  constexpr std::int64_t kMost = 16;
  const T nan = std::numeric_limits<T>::quiet_NaN();
  std::vector<T> given(scalars), row_missing(kMost, nan), col_missing(kMost * b.cols, nan);
  given.resize(std::max<std::size_t>(kMost, scalars.size()), nan);
  b.scalars = given.data();
  b.row_values = row_values ? row_values->data() : row_missing.data();
  b.row_count = row_values ? row_values->shape(1) : 0;
  b.col_values = col_values ? col_values->data() : col_missing.data();
  b.teacher = teacher ? teacher->data() : col_missing.data();
  b.teacher_ld = teacher ? b.cols : 0;
  b.loss = loss.mutable_data();
  b.parameters = parameters.data();
  const bool was_nan = std::any_of(b.s, b.s + s.size(), [](T v) { return std::isnan(v); });
  // Rows that are taken together, a parameter says how many, keep a number of each of their pairs.
  double together = 0;
  for (const double p : parameters) together = std::max(together, std::min(p, static_cast<double>(b.rows)));
  const std::int64_t stacked = static_cast<std::int64_t>(together) * (b.cols + 16);
  std::unique_ptr<T[]> arena(new T[fastdml::arena_size(index.longest, b.cols) +
                                   fastdml::sorting_size(index.longest, b.cols) + stacked]);
  {
    py::gil_scoped_release release;
    const fastdml::Kernel& kernel = *found->kernels[fastdml::active_isa()];
    if constexpr (sizeof(T) == 4)
      kernel.f32(b, 0, b.rows, arena.get());
    else
      kernel.f64(b, 0, b.rows, arena.get());
  }
  if (!was_nan && std::any_of(b.loss, b.loss + loss.size(), [](T v) { return std::isnan(v); }))
    throw py::value_error("scalars: '" + name + "' needs more than the " +
                          std::to_string(scalars.size()) +
                          " given; or it needs row_values, col_values or a teacher");
  return loss;
}

// Bytes per pair that CUDA takes for sorting rows, for a loss of these parameters and values of `size`.
std::int64_t cuda_sort_bytes(int id, const std::vector<double>& parameters, std::int64_t size) {
  if (id < 0 || id >= fastdml::functor_count() ||
      static_cast<int>(parameters.size()) != fastdml::functor(id).parameters())
    throw py::value_error("parameters: not those of a compiled loss");
#ifdef FASTDML_WITH_CUDA
  const fastdml::CudaKernel& kernel = *fastdml::cuda_kernel(&fastdml::functor(id));
  return fastdml::sort_bytes(kernel.sorts(parameters.data()), kernel.columns, size);
#else
  static_cast<void>(size);
  return 0;
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled row functors of fastdml.";
  m.def("functors", &functors,
        "Compiled losses: name -> (id, number of parameters, outputs of a row, values per column of the\n"
        "state in which it gathers statistics of columns, 0 where it cannot).");
  m.def("streams", &streams, "Streamed forms for this instruction set: what a text is called -> id.");
  m.def(
      "add_stream",
      [](std::uintptr_t stream) {
        const int id = fastdml::add_stream(reinterpret_cast<const fastdml::Stream*>(stream));
        if (id < 0) throw py::value_error("stream: too many losses were compiled in this process");
        return id;
      },
      "Adds the streamed form of a loss, by its address; returns its id.", py::arg("stream"));
  m.def(
      "add_functor",
      [](const std::string& name, std::uintptr_t kernel) {
        const int id = fastdml::add_functor(name.c_str(), reinterpret_cast<const fastdml::Kernel*>(kernel));
        if (id < 0) throw py::value_error("name: too many losses were compiled in this process");
        return id;
      },
      "Adds a kernel, by its address, that was compiled for this processor; returns its id.",
      py::arg("name"), py::arg("kernel"));
  m.def("cuda_sort_bytes", &cuda_sort_bytes, "Bytes per pair that CUDA takes for sorting rows.",
        py::arg("functor"), py::arg("parameters"), py::arg("size"));
  m.def("isas", &isas, "Instruction sets this library was compiled for, plainest first.");
  m.def("active_isa", [] { return std::string(fastdml::isa_name(fastdml::active_isa())); });
  m.def("force_isa", [](const std::string& name) {
    if (!fastdml::force_isa(name.c_str()))
      throw py::value_error("name: '" + name + "' is not compiled in, or this processor lacks it");
  });
  m.def("compiler", [] { return std::string(__VERSION__); });
#ifdef FASTDML_WITH_CUDA
  m.attr("cuda") = true;
#else
  m.attr("cuda") = false;
#endif
  const char* doc =
      "Runs a loss on a C-contiguous matrix of similarities, in place: s becomes the derivative of\n"
      "every row's loss, and the losses of the rows are returned (row-major, if they have several\n"
      "values). row_values [rows, k], col_values [k, columns] and teacher [rows, columns] are what the\n"
      "loss's spec calls so. Single-threaded.";
  m.def("apply_rows", &apply<float>, doc, py::arg("name"), py::arg("parameters"),
        py::arg("s").noconvert(), py::arg("row_labels"), py::arg("col_labels"),
        py::arg("own_offset") = -1, py::arg("scalars") = std::vector<float>(),
        py::arg("row_values") = py::none(), py::arg("col_values") = py::none(),
        py::arg("teacher") = py::none());
  m.def("apply_rows", &apply<double>, doc, py::arg("name"), py::arg("parameters"),
        py::arg("s").noconvert(), py::arg("row_labels"), py::arg("col_labels"),
        py::arg("own_offset") = -1, py::arg("scalars") = std::vector<double>(),
        py::arg("row_values") = py::none(), py::arg("col_values") = py::none(),
        py::arg("teacher") = py::none());
  fastdml::bind_metrics(m);
}
