// Contrastive loss with two margins, on distances or on similarities.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct Contrastive {
  T positive_margin, negative_margin;
  T sign;                // 1: on distances, -1: on similarities
  T active_p, active_n;  // what is counted of each kind: 1: the terms above 0, 0: all pairs
  T squared;             // 1: terms are squared
  T relative;            // 1: numbers are in units of row.value(0)

  // Sums of the positive and negative terms, and how many of each are counted.
  template <class Row>
  FASTDML_FN auto operator()(Row& row) const {
    const T plus = positive_margin, minus = negative_margin, by = sign, square = squared;
    const T unit = relative != 0 ? row.value(0) : T(1);
    const T floor_p = active_p != 0 ? T(0) : lowest<T>(), floor_n = active_n != 0 ? T(0) : lowest<T>();
    const auto terms = [=](auto p) {
      auto s = p.s * unit;
      return select(p.positive, by * (s - plus), by * (minus - s));
    };
    const auto out = row.reduce(
        [=](auto p) {
          auto t = terms(p);
          auto cost = max(t, T(0));
          cost = cost * (T(1) - square + square * cost);
          auto one = select(t > select(p.positive, floor_p, floor_n), T(1), T(0));
          return values(select(p.positive, cost, T(0)), select(p.negative, cost, T(0)),
                        select(p.positive, one, T(0)), select(p.negative, one, T(0)));
        },
        Sum{}, Sum{}, Sum{}, Sum{});
    const T pull = by * row.weight(0, 4), push = -by * row.weight(1, 4);
    const auto weight = [=](auto p) {
      auto t = max(terms(p), T(0));
      auto slope = select(t > T(0), T(1) - square + T(2) * square * t, T(0));
      return slope * select(p.positive, pull, select(p.negative, push, T(0)));
    };
    if (relative != 0 && row.wants_weights())
      row.d_value(0, row.reduce([=](auto p) { return values(weight(p) * p.s); }, Sum{})[0]);
    row.map([=](auto p) { return weight(p) * unit; });
    return out;
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(contrastive, Contrastive)
FASTDML_ROW_LOSS(calibration, Contrastive)
FASTDML_ROW_LOSS(balanced_contrastive, Contrastive)
FASTDML_ROW_LOSS(signal_to_noise_contrastive, Contrastive)
