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

template <class T>
struct LogSums {
  LogSum<T> positive, negative;

  FASTDML_FN LogSum<T> merged() const {
    if (positive.empty()) return negative;
    if (negative.empty()) return positive;
    const T top = max(positive.top, negative.top);
    return {top, positive.total * exp(positive.top - top) + negative.total * exp(negative.top - top)};
  }
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

// Over the positives and over the negatives. exponent(p) is that of a pair; lowest<T>() leaves it out.
// with_one: both sums have a further term of 1 = exp(0).
template <class T, class Row, class F>
FASTDML_FN LogSums<T> log_sums(Row& row, F exponent, bool with_one = false) {
  const auto largest = row.reduce(
      [=](auto p) {
        auto z = exponent(p);
        return values(select(p.positive, z, lowest<T>()), select(p.negative, z, lowest<T>()));
      },
      Max{}, Max{});
  const T top_p = with_one ? max(largest[0], T(0)) : largest[0];
  const T top_n = with_one ? max(largest[1], T(0)) : largest[1];
  const auto sums = row.reduce(
      [=](auto p) {
        auto z = exponent(p);
        auto e = select(z > lowest<T>(), exp(z - select(p.positive, top_p, top_n)), T(0));
        return values(select(p.positive, e, T(0)), select(p.negative, e, T(0)));
      },
      Sum{}, Sum{});
  const T one_p = with_one ? exp(-top_p) : T(0), one_n = with_one ? exp(-top_n) : T(0);
  return {{top_p, sums[0] + one_p}, {top_n, sums[1] + one_n}};
}

}  // namespace FASTDML_ISA
}  // namespace fastdml
