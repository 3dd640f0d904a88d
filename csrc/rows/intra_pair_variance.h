// Intra-pair variance (Yu and Tao, ICCV 2019): pairs beyond the mean similarity of their kind.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct IntraPairVariance {
  T pos_eps, neg_eps;

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    // The means are values of the call, whose derivative goes back through them.
    const T keep = T(1) - pos_eps, stretch = T(1) + neg_eps;
    const T from_p = keep * row.scalar(0), from_n = stretch * row.scalar(1);
    const T share_p = row.scalar(2), share_n = row.scalar(3);  // rows / pairs of the kind
    const auto excess = [=](auto p) {
      return max(select(p.positive, from_p - p.s, p.s - from_n), T(0));
    };
    const auto sums = row.reduce(
        [=](auto p) {
          auto x = excess(p);
          return values(select(p.positive, x * x, T(0)), select(p.negative, x * x, T(0)),
                        select(p.positive, x, T(0)), select(p.negative, x, T(0)));
        },
        Sum{}, Sum{}, Sum{}, Sum{});
    row.d_scalar(0, T(2) * share_p * keep * sums[2]);
    row.d_scalar(1, T(-2) * share_n * stretch * sums[3]);
    row.d_scalar(2, T(0));
    row.d_scalar(3, T(0));
    row.map([=](auto p) {
      return excess(p) * select(p.positive, T(-2) * share_p, select(p.negative, T(2) * share_n, T(0)));
    });
    return share_p * sums[0] + share_n * sums[1];
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(intra_pair_variance, IntraPairVariance)
