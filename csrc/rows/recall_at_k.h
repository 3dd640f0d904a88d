// Recall@k surrogate (Patel et al., CVPR 2022): SPEC 3.2. Sigmoid ranks, then a sigmoid count of the
// ranks within k.
#pragma once
#include "smooth_step.h"

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct RecallAtK {
  static constexpr int kSlots = 12;
  T rank_temperature, recall_temperature;
  T sort;        // see sort_from
  T own_counts;  // 1: the query itself takes a place in the ranking
  T used;        // of k
  T k[kSlots];

  FASTDML_HOST_FN Sorts sorts() const { return sorts_by(sort); }
  template <class P>
  FASTDML_FN Values<T, 1> sort_keys(const P& p) const {
    return values(p.s);
  }

  template <class Row>
  FASTDML_FN Counted<T> operator()(Row& row) const {
    const T sharpness = T(1) / rank_temperature;
    const Tail<T> tail = step_tail(rank_temperature, false, sort_from(sort, 48));
    auto positives = row.positives();
    const int n = positives.size();
    if (n == 0) {
      row.map([](auto p) { return p.s * T(0); });
      return {T(0), T(0)};
    }
    const auto all = row.compare(positives, smooth_step(sharpness), tail);
    const bool placed = own_counts != T(0) && row.has_own();
    const T own = placed ? row.own() : T(0);
    const auto own_step = [=](int i) {
      const T sigma = placed ? sigmoid((own - positives[i]) * sharpness) : T(0);
      return values(sigma, sigma - sigma * sigma);
    };
    auto rank = row.array(n), push = row.array(n), direct = row.array(n);
    positives.each([=](int i) {
      // The pair j = i adds sigma(0) = 1/2: half of the leading 1 of a rank.
      rank[i] = T(0.5) + all[i][0] + own_step(i)[0];
      push[i] = T(0);
    });
    const T near = T(1) / recall_temperature;
    const T places = static_cast<T>(row.candidates() + (row.has_own() ? 1 : 0));
    const int levels = static_cast<int>(used);
    T recall = T(0);
    for (int l = 0; l < levels; ++l) {
      const T within = min(k[l], places), full = min(within, static_cast<T>(n));
      const T found = positives.sum([=](int i) { return sigmoid((within - rank[i]) * near); });
      recall += (found > within ? within : found) / full;  // a NaN stays one
      // At equality the subgradient of min is one half.
      const T open = found < within ? T(1) : found > within ? T(0) : T(0.5);
      const T weight = open * near * sharpness / (full * levels);
      positives.each([=](int i) {
        const T u = sigmoid((within - rank[i]) * near);
        push[i] += weight * u * (T(1) - u);
      });
    }
    // The pair j = i appears in both sums of slopes and cancels.
    positives.each([=](int i) { direct[i] = -push[i] * (all[i][1] + own_step(i)[1]); });
    const T own_weight = positives.sum([=](int i) { return push[i] * own_step(i)[1]; });
    row.map_compare(positives, push, smooth_slope(sharpness), tail);
    positives.add(direct);
    if (placed) row.add_own(own_weight);
    return {T(1) - recall / levels, T(1)};
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(recall_at_k, RecallAtK)
