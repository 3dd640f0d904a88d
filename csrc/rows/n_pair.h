// N-pair (Sohn, NIPS 2016): SPEC 2.9.
#pragma once
#include "exponentials.h"

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct NPair {
  T sign;        // 1: on similarities, -1: on distances
  T one_vs_one;  // 1: every negative against the positive alone, 0: all at once
  T paired;      // 1: the positive is a candidate of the row, 0: its similarity is a value of the row
  T padded;      // 1: columns whose value is 0 are none

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    T own;
    if (paired != 0)
      own = row.reduce([](auto p) { return values(select(p.positive, p.s, T(0))); }, Sum{})[0];
    else
      own = row.value(0);
    const T by = sign, from = by * own;
    const bool some = padded != 0;
    const auto negative = [=](auto p) {
      auto is = p.negative;
      if (some) is = is & (p.column(0) > T(0));
      return is;
    };
    const auto gap = [=](auto p) { return by * p.s - from; };
    if (one_vs_one != 0) {
      const auto [loss, slope] = row.reduce(
          [=](auto p) {
            return values(select(negative(p), softplus(gap(p)), T(0)),
                          select(negative(p), sigmoid(gap(p)), T(0)));
          },
          Sum{}, Sum{});
      const T pull = -by * slope;
      if (paired == 0) row.d_value(0, pull);
      const T kept = paired * pull;
      row.map([=](auto p) {
        return select(negative(p), by * sigmoid(gap(p)), select(p.positive, kept, T(0)));
      });
      return loss;
    }
    const LogSum<T> sum =
        log_sums<T>(row, [=](auto p) { return select(negative(p), gap(p), lowest<T>()); }, true).negative;
    const T push = by / sum.total, top = sum.top;
    const T pull = -by * (T(1) - exp(-top) / sum.total);
    if (paired == 0) row.d_value(0, pull);
    const T kept = paired * pull;
    row.map([=](auto p) {
      return select(negative(p), exp(gap(p) - top) * push, select(p.positive, kept, T(0)));
    });
    return sum.log_of_sum();
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(n_pair, NPair)
