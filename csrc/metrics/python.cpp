#include "python.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "state.h"

namespace py = pybind11;

namespace fastdml {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

// A matrix of numbers as it lies in memory; bfloat16 comes as the uint16 it is stored as.
Rows rows_of(const py::array& x) {
  Rows rows;
  const py::ssize_t size = x.itemsize();
  const std::string type(1, x.dtype().kind());
  if (x.ndim() != 2 || (x.shape(1) > 1 && x.strides(1) != size) || x.strides(0) % size ||
      (type != "f" && !(type == "u" && size == 2)) || size > 8)
    throw py::value_error("x: expected a matrix of floats stored by rows");
  rows.data = x.data();
  rows.count = x.shape(0);
  rows.dim = x.shape(1);
  rows.ld = x.strides(0) / size;
  rows.storage = type == "u"  ? Storage::bf16
                 : size == 2 ? Storage::f16
                 : size == 4 ? Storage::f32
                             : Storage::f64;
  return rows;
}

template <class T>
const T* scale_of(const std::optional<Array<T>>& scale, std::int64_t rows) {
  if (!scale) return nullptr;
  if (scale->size() != rows) throw py::value_error("scale: expected one number per row");
  return scale->data();
}

template <class T>
std::vector<T> vector_of(const Array<T>& x) {
  return {x.data(), x.data() + x.size()};
}

template <class T>
Array<T> array_of(const std::vector<T>& x) {
  return Array<T>(static_cast<py::ssize_t>(x.size()), x.data());
}

template <class T>
Sweep<T> make_sweep(const py::array& queries, const std::optional<Array<T>>& scale, bool difference,
                    const Array<std::int64_t>& own, bool half) {
  const Rows rows = rows_of(queries);
  const T* by = scale_of<T>(scale, rows.count);
  if (own.size() != rows.count) throw py::value_error("own: expected one index per query");
  return Sweep<T>(rows, by, difference, vector_of(own), half);
}

template <class T>
void bind_sweep(py::module_& m, const char* name, const char* counts_name) {
  using Scale = std::optional<Array<T>>;
  py::class_<PairCounts<T>>(m, counts_name)
      .def(py::init([](const Array<T>& thresholds) {
             if (thresholds.size() == 0) throw py::value_error("thresholds: expected at least one");
             return PairCounts<T>(vector_of(thresholds));
           }),
           py::arg("thresholds"))
      .def_property_readonly("cells", [](const PairCounts<T>& c) { return array_of(c.cells()); });
  py::class_<Sweep<T>>(m, name)
      .def(py::init(&make_sweep<T>), py::arg("queries"), py::arg("scale"), py::arg("difference"),
           py::arg("own"), py::arg("half"))
      .def(
          "find_right",
          [](Sweep<T>& s, const py::array& gallery, const Scale& scale, const Array<std::int64_t>& ids,
             const Array<std::int64_t>& jobs, const Array<std::int64_t>& start) {
            const Rows rows = rows_of(gallery);
            const T* by = scale_of<T>(scale, rows.count);
            if (start.size() != s.rows() + 1) throw py::value_error("start: expected one more than queries");
            if (jobs.size() % 4) throw py::value_error("jobs: expected four numbers each");
            std::vector<PairJob> list;
            for (py::ssize_t j = 0; j < jobs.size(); j += 4)
              list.push_back({jobs.data()[j], jobs.data()[j + 1], jobs.data()[j + 2], jobs.data()[j + 3]});
            std::vector<std::int64_t> begin = vector_of(start);
            py::gil_scoped_release release;
            s.find_right(rows, by, ids.data(), list, std::move(begin));
          },
          py::arg("gallery"), py::arg("scale"), py::arg("ids"), py::arg("jobs"), py::arg("start"))
      .def(
          "want_ranks",
          [](Sweep<T>& s, const std::optional<Array<float>>& gains) {
            if (gains && gains->size() != s.right_count())
              throw py::value_error("gains: expected one per right candidate");
            py::gil_scoped_release release;
            s.want_ranks(gains ? gains->data() : nullptr);
          },
          py::arg("gains") = py::none())
      .def("want_neighbours", &Sweep<T>::want_neighbours, py::arg("k"))
      .def("want_pairs", &Sweep<T>::want_pairs, py::keep_alive<1, 2>(), py::arg("counts"))
      .def("want_spread", &Sweep<T>::want_spread, py::arg("by"), py::arg("shift"))
      .def(
          "fold",
          [](Sweep<T>& s, const py::array& gallery, const Scale& scale, std::int64_t from, std::int64_t to) {
            const Rows rows = rows_of(gallery);
            const T* by = scale_of<T>(scale, rows.count);
            if (from < 0 || to > rows.count || from >= to) throw py::value_error("from, to: no such rows");
            py::gil_scoped_release release;
            s.fold(rows, by, from, to);
          },
          py::arg("gallery"), py::arg("scale"), py::arg("start"), py::arg("stop"))
      .def_property_readonly("right", [](const Sweep<T>& s) { return Array<T>(s.right_count(), s.right()); })
      .def_property_readonly("gains", [](const Sweep<T>& s) { return array_of(s.gains()); })
      .def_property_readonly("spread", [](const Sweep<T>& s) { return array_of(s.spread()); })
      .def("ranks",
           [](const Sweep<T>& s) {
             Array<std::int32_t> out(s.right_count());
             s.ranks(out.mutable_data());
             return out;
           })
      .def("neighbours", [](Sweep<T>& s) {
        const py::ssize_t rows = s.rows(), k = s.neighbours_of_a_row();
        Array<std::int64_t> index({rows, k});
        Array<T> score({rows, k});
        s.neighbours(index.mutable_data(), score.mutable_data());
        return py::make_tuple(index, score);
      });
}

}  // namespace

void bind_metrics(py::module_& m) {
  bind_sweep<float>(m, "Sweep32", "PairCounts32");
  bind_sweep<double>(m, "Sweep64", "PairCounts64");
  m.def(
      "row_norms",
      [](const py::array& x) {
        const Rows rows = rows_of(x);
        Array<double> norms(rows.count);
        double* to = norms.mutable_data();
        py::gil_scoped_release release;
        row_norms(rows, to);
        return norms;
      },
      "Length of every row in double precision; NaN or infinite where a value is.", py::arg("x"));
}

}  // namespace fastdml
