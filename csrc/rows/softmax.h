// Cross-entropy over proxies, which many losses share: only what they make of the target differs.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

// The loss of the row's one positive, its target, against the negatives.
//   logit(p)          of a pair, as a lane; its derivative by p.s is `scale`
//   target(s, z)      values(logit, derivative) of the target; s and z = logit(p) are its own
//   d_target          where to put the derivative by the target's logit, or null
// 0 for a row without a target, or without negatives.
template <class T, class Row, class Logit, class Target>
FASTDML_FN T cross_entropy(Row& row, Logit logit, T scale, Target target, T* d_target = nullptr) {
  const auto [top, own, own_logit, found] = row.reduce(
      [=](auto p) {
        auto z = logit(p);
        return values(select(p.negative, z, lowest<T>()), select(p.positive, p.s, T(0)),
                      select(p.positive, z, T(0)), select(p.positive, T(1), T(0)));
      },
      Max{}, Sum{}, Sum{}, Sum{});
  if (found == T(0) || !(top > lowest<T>())) {
    row.map([](auto p) { return p.s * T(0); });
    return T(0);
  }
  const auto [sum] = row.reduce(
      [=](auto p) { return values(select(p.negative, exp(logit(p) - top), T(0))); }, Sum{});
  const auto [t, slope] = target(own, own_logit);
  const T gap = top + log(sum) - t;  // of the negatives' log-sum-exp above the target
  const T missing = sigmoid(gap);  // probability that the target lacks
  const T push = scale * missing / sum, pull = -slope * missing;
  if (d_target) *d_target = -missing;
  row.map([=](auto p) { return select(p.positive, pull, exp(logit(p) - top) * push); });
  return softplus(gap);
}

}  // namespace FASTDML_ISA
}  // namespace fastdml
