// Binomial deviance (Yi et al., ICPR 2014): SPEC 2.11.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct BinomialDeviance {
  T alpha, beta, base;
  T max_positive;  // positives at or above are dropped

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const T a = alpha, b = beta, centre = base, ceiling = max_positive;
    const auto exponent = [=](auto p) {
      return select(p.positive, -a * (p.s - centre), b * (p.s - centre));
    };
    const auto kept = [=](auto p) { return p.positive & (p.s < ceiling); };
    const auto [loss_p, loss_n, positives, negatives] = row.reduce(
        [=](auto p) {
          auto cost = softplus(exponent(p));
          return values(select(kept(p), cost, T(0)), select(p.negative, cost, T(0)),
                        select(kept(p), T(1), T(0)), select(p.negative, T(1), T(0)));
        },
        Sum{}, Sum{}, Sum{}, Sum{});
    const T per_p = T(1) / max(positives, T(1)), per_n = T(1) / max(negatives, T(1));
    const T pull = -a * per_p, push = b * per_n;
    row.map([=](auto p) {
      auto slope = sigmoid(exponent(p));
      return select(kept(p), slope * pull, select(p.negative, slope * push, T(0)));
    });
    return loss_p * per_p + loss_n * per_n;
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(binomial_deviance, BinomialDeviance)
