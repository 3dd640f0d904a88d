// Ranked list loss (Wang et al., CVPR 2019): weighted hinges of the positives and of the negatives.
// The row holds distances.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct RankedList {
  T inner, outer;  // positives beyond `inner` and negatives within `outer` count
  T positive_temperature, negative_temperature;
  T imbalance;     // share of the negatives
  T follow;        // 1: the weights' own derivative counts, 0: they are constants
  T floor;         // added to a sum of weights, per candidate

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const T near = inner, far = outer, tp = positive_temperature, tn = negative_temperature;
    const auto excess = [=](auto p) {
      return select(p.positive, p.s - near, select(p.negative, far - p.s, T(-1)));
    };
    // The largest exponent of either kind is taken out of all of them.
    const auto [top_p, top_n] = row.reduce(
        [=](auto p) {
          auto v = excess(p);
          return values(select(p.positive, v, T(0)), select(p.negative, v, T(0)));
        },
        Max{}, Max{});
    // (Of a negative temperature that of a pair at the margin, which is 0.)
    const T most_p = tp > T(0) ? max(top_p, T(0)) : T(0), most_n = tn > T(0) ? max(top_n, T(0)) : T(0);
    const auto weight = [=](auto p, auto v) {
      return select(v > T(0), exp(select(p.positive, (v - most_p) * tp, (v - most_n) * tn)), T(0));
    };
    const auto [sum_p, sum_n, hinge_p, hinge_n] = row.reduce(
        [=](auto p) {
          auto v = excess(p);
          auto w = weight(p, v);
          return values(select(p.positive, w, T(0)), select(p.negative, w, T(0)),
                        select(p.positive, w * v, T(0)), select(p.negative, w * v, T(0)));
        },
        Sum{}, Sum{}, Sum{}, Sum{});
    const T cells = floor * static_cast<T>(row.candidates() + (row.has_own() ? 1 : 0));
    const T total_p = sum_p + cells * exp(-most_p * tp), total_n = sum_n + cells * exp(-most_n * tn);
    const T loss_p = total_p > T(0) ? hinge_p / total_p : T(0);
    const T loss_n = total_n > T(0) ? hinge_n / total_n : T(0);
    const T pull = total_p > T(0) ? (T(1) - imbalance) / total_p : T(0);
    const T push = total_n > T(0) ? -imbalance / total_n : T(0);
    const T own_tp = follow * tp, own_tn = follow * tn;
    row.map([=](auto p) {
      auto v = excess(p);
      auto w = weight(p, v);
      return w * select(p.positive, (T(1) + own_tp * (v - loss_p)) * pull,
                        (T(1) + own_tn * (v - loss_n)) * push);
    });
    return (T(1) - imbalance) * loss_p + imbalance * loss_n;
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(ranked_list, RankedList)
