// N-pair (Sohn, NIPS 2016): SPEC 2.9. The similarity of the anchor's one positive is a value of the row.
#pragma once
#include "exponentials.h"

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct NPair {
  T sign;        // 1: on similarities, -1: on distances
  T one_vs_one;  // 1: every negative against the positive alone, 0: all at once

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const T by = sign, from = by * row.value(0);
    const auto gap = [=](auto p) { return by * p.s - from; };
    if (one_vs_one != 0) {
      const auto [loss, slope] = row.reduce(
          [=](auto p) {
            return values(select(p.negative, softplus(gap(p)), T(0)),
                          select(p.negative, sigmoid(gap(p)), T(0)));
          },
          Sum{}, Sum{});
      row.d_value(0, -by * slope);
      row.map([=](auto p) { return select(p.negative, by * sigmoid(gap(p)), T(0)); });
      return loss;
    }
    const LogSum<T> sum =
        log_sums<T>(row, [=](auto p) { return select(p.negative, gap(p), lowest<T>()); }, true).negative;
    const T push = by / sum.total, top = sum.top;
    row.d_value(0, -by * (T(1) - exp(-top) / sum.total));
    row.map([=](auto p) { return select(p.negative, exp(gap(p) - top) * push, T(0)); });
    return sum.log_of_sum();
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(n_pair, NPair)
