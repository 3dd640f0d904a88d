// Compiles one loss for one instruction set. A generated source file per pair defines FASTDML_ISA and
// FASTDML_VECTOR_BYTES, includes this file, then the loss's header, which ends in FASTDML_ROW_LOSS.
#pragma once
#include "row.h"

namespace fastdml {
inline namespace FASTDML_ISA {

// The value of the row's own pair is a weight of 0: it only ever moves an embedding along itself.
template <class T, template <class> class Loss>
void run(const Block<T>& b, std::int64_t begin, std::int64_t end, T* arena) {
  Loss<T> loss;
  T parameters[sizeof(Loss<T>) / sizeof(T)];
  for (std::size_t k = 0; k < sizeof(Loss<T>) / sizeof(T); ++k)
    parameters[k] = static_cast<T>(b.parameters[k]);
  std::memcpy(&loss, parameters, sizeof loss);
  constexpr int W = kWidth<T>;
  const auto scale = [&](T* s, T by) __attribute__((always_inline)) {
    std::int64_t j = 0;
    if (b.col_scale) {
      for (; j + W <= b.cols; j += W) store(s + j, load(s + j) * (load(b.col_scale + j) * by));
      for (; j < b.cols; ++j) s[j] *= b.col_scale[j] * by;
    } else if (by != T(1)) {
      for (; j + W <= b.cols; j += W) store(s + j, load(s + j) * by);
      for (; j < b.cols; ++j) s[j] *= by;
    }
  };
  for (std::int64_t i = begin; i < end; ++i) {
    T* s = b.s + i * b.ld;
    const T row_scale = b.row_scale ? b.row_scale[i] : T(1);
    if (b.col_scale) scale(s, row_scale);
    Row<T> row(b, i, arena);
    b.loss[i] = loss(row);
    if (b.gradient) scale(s, row_scale * b.weight * (b.row_weight ? b.row_weight[i] : T(1)));
  }
}

}  // namespace FASTDML_ISA
}  // namespace fastdml

#define FASTDML_JOIN_(a, b, c) a##_##b##_##c
#define FASTDML_JOIN(a, b, c) FASTDML_JOIN_(a, b, c)

#define FASTDML_ROW_LOSS(name, Loss)                                         \
  namespace fastdml {                                                        \
  extern const Kernel FASTDML_JOIN(kernel, name, FASTDML_ISA);               \
  const Kernel FASTDML_JOIN(kernel, name, FASTDML_ISA) = {                   \
      run<float, Loss>, run<double, Loss>, sizeof(Loss<double>) / sizeof(double)}; \
  }
