// Proxy-Anchor (Kim et al., CVPR 2020): SPEC 1.1. The row is a proxy, its candidates are the batch.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct ProxyAnchor {
  T alpha, margin;

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const T a = alpha, delta = margin;
    const auto [hardest_positive, hardest_negative] = row.reduce(
        [=](auto p) {
          return values(select(p.positive, p.s, highest<T>()), select(p.negative, p.s, lowest<T>()));
        },
        Min{}, Max{});
    const bool present = hardest_positive < highest<T>();
    const bool opposed = hardest_negative > lowest<T>();
    const T top_p = max(T(0), present ? -a * (hardest_positive - delta) : T(0));
    const T top_n = max(T(0), opposed ? a * (hardest_negative + delta) : T(0));
    const auto exponential = [=](auto p) {
      return exp(select(p.positive, -a * (p.s - delta) - top_p, a * (p.s + delta) - top_n));
    };
    const auto [sum_p, sum_n] = row.reduce(
        [=](auto p) {
          auto e = exponential(p);
          return values(select(p.positive, e, T(0)), select(p.negative, e, T(0)));
        },
        Sum{}, Sum{});
    const T total_p = exp(-top_p) + sum_p, total_n = exp(-top_n) + sum_n;
    // The positive term is averaged over the classes present in the batch, the negative over all.
    const T share = row.scalar(0);  // proxies / classes present
    const T pull = -a * share / total_p, push = a / total_n;
    row.map([=](auto p) {
      auto e = exponential(p);
      return select(p.positive, e * pull, e * push);
    });
    return share * (top_p + log(total_p)) + (top_n + log(total_n));
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(proxy_anchor, ProxyAnchor)
