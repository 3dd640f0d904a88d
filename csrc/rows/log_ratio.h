// Log-ratio loss (Kim et al., CVPR 2019): SPEC 1.3. Twice the variance of log(distance / label distance).
#pragma once
#include "apart.h"

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct LogRatio {
  T epsilon;  // added to both distances under the logarithm
  T given;    // 1: label distances are column value 0 (one anchor), 0: they are the teacher's

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    return given != 0 ? run(row, [](auto p) { return p.column(0); })
                      : run(row, [](auto p) { return p.teacher(); });
  }

  template <class Row, class Label>
  FASTDML_FN T run(Row& row, Label label) const {
    const T small = epsilon, n = T(row.candidates());
    if (n < T(2)) {
      row.map([](auto p) { return p.s * T(0); });
      return T(0);
    }
    // Both sums in one pass over the logarithms, about a number near their mean: what is taken off the
    // squares again is small.
    const auto totals = row.reduce([=](auto p) { return values(p.s, label(p)); }, Sum{}, Sum{});
    const T centre = (totals[1] / n + small) / (totals[0] / n + small);
    const auto ratio = [=](auto p) { return log((p.s + small) / (label(p) + small) * centre); };
    const auto sums = row.reduce(
        [=](auto p) {
          auto u = ratio(p);
          return values(u, u * u);
        },
        Sum{}, Sum{});
    const T mean = sums[0] / n, spread = max(sums[1] - mean * sums[0], T(0));
    const T by = T(4) / (n - T(1));
    row.map([=](auto p) { return where_apart(p, (ratio(p) - mean) * by / (p.s + small)); });
    return T(2) * spread / (n - T(1));
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(log_ratio, LogRatio)
