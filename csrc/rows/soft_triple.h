// SoftTriple (Qian et al., ICCV 2019): SPEC 3.4. Rows are samples, columns proxies, `size` consecutive
// ones per class.
#pragma once
#include "softmax.h"
#include "softmax_mean.h"

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct SoftTriple {
  T size, scale, sharpness, margin;

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const T by = scale, less = scale * margin;
    auto classes = row.group(static_cast<int>(size), SoftmaxMean<T>{sharpness});
    return cross_entropy<T>(
        classes, [=](auto p) { return p.s * by; }, by, [=](T, T z) { return values(z - less, by); });
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(soft_triple, SoftTriple)
