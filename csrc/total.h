// The sum of a loss over its rows.
#pragma once
#include <torch/csrc/stable/ops.h>

#include "row_arguments.h"

namespace fastdml {

template <class T>
void total_typed(Tensor& out, const Tensor& outputs, const OptionalTensor& row_weight, double weight) {
  const T* loss = static_cast<const T*>(outputs.const_data_ptr());
  const int64_t rows = outputs.size(0), stride = outputs.size(1);
  const T* of_row = pointer<T>(row_weight, rows);
  double sum = 0;
  for (int64_t i = 0; i < rows; ++i) sum += loss[i * stride] * (of_row ? of_row[i] : T(1));
  *static_cast<T*>(out.mutable_data_ptr()) = static_cast<T>(sum * weight);
}

// The weighted sum of the first outputs [M, outputs] of all rows, in double precision and in order.
inline Tensor total(Tensor outputs, OptionalTensor row_weight, double weight) {
  STD_TORCH_CHECK(outputs.dim() == 2 && outputs.is_contiguous(), "fastdml: outputs is a matrix");
  Tensor out = torch::stable::new_empty(outputs, {});
  if (outputs.scalar_type() == ScalarType::Float)
    total_typed<float>(out, outputs, row_weight, weight);
  else
    total_typed<double>(out, outputs, row_weight, weight);
  return out;
}

}  // namespace fastdml
