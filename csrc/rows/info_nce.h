// InfoNCE of positive pairs, over rows and, as CLIP has it, over columns: SPEC 3.7. The columns' logs of
// sums are p.column(0), their numbers of positives p.column(1); losses/info_nce.py has the mathematics.
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
    const bool columnwise = b != 0;
    // n_j exp(z_ij - C_j); 0 in a column without positives, whose C nobody asked for.
    const auto mass = [=](auto p) {
      auto none = p.s * T(0);
      if (!columnwise) return none;
      auto count = p.column(1);
      return select(count > T(0), count * exp(by * p.s - p.column(0)), none);
    };
    const auto [top, near, count, own] = row.reduce(
        [=](auto p) {
          auto level = columnwise ? p.column(0) : p.s * T(0);
          return values(by * p.s, select(p.positive, p.s, T(0)), select(p.positive, T(1), T(0)),
                        select(p.positive, level, T(0)));
        },
        Max{}, Sum{}, Sum{}, Sum{});
    // The two masses, and what they pull by the scale.
    const auto [total, pull, all, pull_all] = row.reduce(
        [=](auto p) {
          auto e = exp(by * p.s - top), m = mass(p);
          return values(e, e * p.s, m, m * p.s);
        },
        Sum{}, Sum{}, Sum{}, Sum{});
    const LogSum<T> sum{top, total};
    const T target = by * near, share = count > T(0) ? a * count / total : T(0);
    row.d_scalar(0, sign * (share * pull + b * pull_all - (a + b) * near));
    row.map([=](auto p) {
      return by * (share * exp(by * p.s - top) + b * mass(p) - select(p.positive, a + b, T(0)));
    });
    const T level = count > T(0) ? count * sum.log_of_sum() : T(0);
    return a * (level - target) + b * (own - target + all - count);
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(info_nce, InfoNCE)
