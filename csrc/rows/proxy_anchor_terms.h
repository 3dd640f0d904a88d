// Proxy-Anchor (Kim et al., CVPR 2020): SPEC 1.1. The row is a proxy, its candidates are the batch.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

// shift(p) is added to the exponents of a pair; the loss is multiplied by `factor`.
template <class T, class Row, class Shift>
FASTDML_FN T proxy_anchor(Row& row, T a, T delta, Shift shift, T factor = T(1)) {
  const auto exponent = [=](auto p) {
    return select(p.positive, -a * (p.s - delta), a * (p.s + delta)) + shift(p);
  };
  const auto [largest_p, largest_n] = row.reduce(
      [=](auto p) {
        auto z = exponent(p);
        return values(select(p.positive, z, T(0)), select(p.negative, z, T(0)));
      },
      Max{}, Max{});
  // log(1 + sum exp z) with the largest exponent taken out first; the 1 is exp(0).
  const T top_p = max(largest_p, T(0)), top_n = max(largest_n, T(0));
  const auto exponential = [=](auto p) { return exp(exponent(p) - select(p.positive, top_p, top_n)); };
  const auto [sum_p, sum_n] = row.reduce(
      [=](auto p) {
        auto e = exponential(p);
        return values(select(p.positive, e, T(0)), select(p.negative, e, T(0)));
      },
      Sum{}, Sum{});
  const T total_p = exp(-top_p) + sum_p, total_n = exp(-top_n) + sum_n;
  // The positive term is averaged over the classes present in the batch, the negative over all.
  const T share = factor * row.scalar(0);  // proxies / classes present
  const T pull = -a * share / total_p, push = factor * a / total_n;
  row.map([=](auto p) {
    auto e = exponential(p);
    return select(p.positive, e * pull, e * push);
  });
  return share * (top_p + log(total_p)) + factor * (top_n + log(total_n));
}

}  // namespace FASTDML_ISA
}  // namespace fastdml
