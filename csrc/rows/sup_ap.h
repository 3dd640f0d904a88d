// SupAP (Ramzi et al., NeurIPS 2021): SPEC 2.10. An upper bound of 1 - AP: positives are ranked among
// themselves by a true step, negatives by a sigmoid that turns into a straight line.
#pragma once
#include "smooth_step.h"

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct SupAP {
  T temperature;
  T rho, delta, offset;  // a negative more than delta above costs rho (t - delta) + offset
  T start;               // jump at t = 0
  T sort;                // see sort_from

  FASTDML_HOST_FN Sorts sorts() const { return sorts_by(sort); }
  template <class P>
  FASTDML_FN Values<T, 1> sort_keys(const P& p) const {
    return values(select(p.negative, p.s, highest<T>()));
  }

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const T sharpness = T(1) / temperature;
    const T slant = rho, knee = delta, high = offset, jump = start;
    // Equal similarities (duplicates) tie however their last digits fell.
    const T tie = T(8) * epsilon<T>();
    const auto count = [=](auto t, auto) { return values(select(t >= -tie, T(1), T(0))); };
    const auto slope = of_sigmoid(sharpness, [=](auto sigma, auto t, auto p) {
      auto gentle = (sigma - sigma * sigma) * sharpness;
      return select(p.negative, select(t > knee, slant, gentle), T(0));
    });
    const auto step = of_sigmoid(sharpness, [=](auto sigma, auto t, auto p) {
      auto steep = t > knee;
      auto gentle = (sigma - sigma * sigma) * sharpness;
      auto height = select(steep, (t - knee) * slant + high, sigma + select(t > tie, jump, T(0)));
      return values(select(p.negative, height, T(0)),
                    select(p.negative, select(steep, slant, gentle), T(0)));
    });
    const int least = sort_from(sort, 40);
    const Tail<T> tail{-flat<T>() * temperature, knee, T(0), T(0), high - slant * knee, slant, true, least};
    const Tail<T> own_tail{-tie, tie, T(0), T(0), T(1), T(0), false, least};
    auto positives = row.positives();
    const int n = positives.size();
    if (n == 0) {
      row.map([](auto p) { return p.s * T(0); });
      return T(0);
    }
    const auto negatives = row.compare(positives, step, tail);
    const auto own = positives.compare(count, own_tail);  // the pair j = k is the leading 1 of a rank
    auto push = row.array(n), direct = row.array(n);
    const T ap = positives.sum([=](int k) {
      const T rank_own = own[k][0], rank_all = rank_own + negatives[k][0];
      push[k] = rank_own / (rank_all * rank_all * n);
      direct[k] = -push[k] * negatives[k][1];
      return rank_own / rank_all;
    });
    row.map_compare(positives, push, slope, tail);
    positives.add(direct);
    return T(1) - ap / n;
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(sup_ap, SupAP)
