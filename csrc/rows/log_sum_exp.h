// Log of a sum of exponentials and the number of positives: statistics that other losses read of their columns (RowLoss.presweep).
#pragma once
#include "exponentials.h"

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct LogSumExp {
  T scale, offset;
  T negatives_only;
  T learnable;  // 1: the scale is row.scalar(0) times this one

  template <class Row>
  FASTDML_FN auto operator()(Row& row) const {
    const T by = learnable != 0 ? scale * row.scalar(0) : scale, shift = offset;
    const T keep = negatives_only != 0 ? T(0) : T(1), drop = negatives_only != 0 ? lowest<T>() : T(0);
    const auto exponent = [=](auto p) {
      auto z = by * p.s + shift;
      return select(p.negative, z, select(p.positive, z * keep + drop, lowest<T>()));
    };
    const LogSum<T> sum = log_sum<T>(row, exponent);
    const auto [positives] =
        row.reduce([=](auto p) { return values(select(p.positive, T(1), T(0))); }, Sum{});
    const T inverse = sum.empty() ? T(0) : row.weight(0, 2) * by / sum.total, top = sum.top;
    row.map([=](auto p) {
      auto z = exponent(p);
      return select(z > lowest<T>(), exp(z - top) * inverse, T(0));
    });
    return values(sum.log_of_sum(), positives);
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(log_sum_exp, LogSumExp)
