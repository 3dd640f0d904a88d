#pragma once
#include <pybind11/pybind11.h>

namespace fastdml {

// The retrieval sweep on numpy arrays.
void bind_metrics(pybind11::module_& m);

}  // namespace fastdml
