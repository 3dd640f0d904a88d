// Sums of exponentials over a row, with the largest exponent taken out first.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

// The sum is total * exp(top); total is 0 where nothing takes part.
template <class T>
struct LogSum {
  T top, total;

  FASTDML_FN bool empty() const { return !(total > T(0)); }
  FASTDML_FN T log_of_sum() const { return empty() ? lowest<T>() : top + log(total); }
};

// Over all pairs whose exponent(p) is not lowest<T>().
template <class T, class Row, class F>
FASTDML_FN LogSum<T> log_sum(Row& row, F exponent) {
  const auto [top] = row.reduce([=](auto p) { return values(exponent(p)); }, Max{});
  const auto [total] = row.reduce(
      [=](auto p) {
        auto z = exponent(p);
        return values(select(z > lowest<T>(), exp(z - top), T(0)));
      },
      Sum{});
  return {top, total};
}

}  // namespace FASTDML_ISA
}  // namespace fastdml
