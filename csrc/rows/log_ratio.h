// Log-ratio loss (Kim et al., CVPR 2019): SPEC 1.3. Twice the variance of log(distance / label distance).
#pragma once

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
    const T small = epsilon, n = row.candidates();
    if (n < T(2)) {
      row.map([](auto p) { return p.s * T(0); });
      return T(0);
    }
    const auto ratio = [=](auto p) { return log(p.s + small) - log(label(p) + small); };
    const auto [total] = row.reduce([=](auto p) { return values(ratio(p)); }, Sum{});
    const T mean = total / n;
    const auto [spread] = row.reduce(
        [=](auto p) {
          auto u = ratio(p) - mean;
          return values(u * u);
        },
        Sum{});
    const T by = T(4) / (n - T(1));
    row.map([=](auto p) { return (ratio(p) - mean) * by / (p.s + small); });
    return T(2) * spread / (n - T(1));
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(log_ratio, LogRatio)
