// InfoNCE of pairs, over rows and, as CLIP has it, over columns: SPEC 3.7. Row i's positive is column i.
#pragma once
#include "exponentials.h"

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct InfoNCE {
  T rows, columns;  // weights of the two softmaxes
  T sign;           // 1: on similarities, -1: on distances

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const T by = sign * row.scalar(0), a = rows, b = columns;
    const LogSum<T> sum =
        log_sums<T>(row, [=](auto p) { return by * p.s; }).merged();
    const T top = sum.top, inverse = T(1) / sum.total;
    // exp(z - C_j), C_j the log of sum of column j, is the column's softmax. Its sum over all rows and
    // columns is the number of columns, so it may stand in every row's loss, where its derivative is
    // the one through C: the whole is stationary in C.
    const auto weight = [=](auto p, auto z) {
      auto g = a * inverse * exp(z - top) - select(p.positive, a + b, T(0));
      return b != 0 ? g + b * exp(z - p.column(0)) : g;
    };
    const T has_columns = b;
    const auto [target, slope, own, mass] = row.reduce(
        [=](auto p) {
          auto z = by * p.s;
          auto c = z * T(0), e = c;
          if (has_columns != 0) {
            c = p.column(0);
            e = exp(z - c);
          }
          return values(select(p.positive, z, T(0)), weight(p, z) * p.s, select(p.positive, c, T(0)), e);
        },
        Sum{}, Sum{}, Sum{}, Sum{});
    row.d_scalar(0, sign * slope);
    row.map([=](auto p) { return by * weight(p, by * p.s); });
    return a * sum.log_of_sum() + b * (own + mass - T(1)) - (a + b) * target;
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(info_nce, InfoNCE)
