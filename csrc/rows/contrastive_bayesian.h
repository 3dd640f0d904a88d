// Contrastive Bayesian loss (Kan et al., TPAMI 2022): SPEC 2.5.
#pragma once
#include "exponentials.h"

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct ContrastiveBayesian {
  T pos_a, pos_b, neg_a, neg_b;
  T mining_margin;    // width of the mining band
  T variance_weight;  // of the variance of the negatives
  T mean_mix;         // share of the positives in the mean it is taken around
  T form;             // 0: log, 1: sqrt, 2: constant
  T max_positive;     // positives at or above are dropped

  // What a sum f of 1 and exponentials adds to the loss, and its derivative by exp(z - top).
  FASTDML_FN Values<T, 2> term(LogSum<T> f) const {
    if (form == 0) return values(f.log_of_sum(), T(1) / f.total);
    if (form == 1) {
      const T root = exp(f.log_of_sum() / 2);
      return values(root, exp(f.top - f.log_of_sum() / 2) / 2);
    }
    const T quarter = exp(f.top) / 4;
    return values(T(0.75) + quarter * f.total, quarter);
  }

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const T a_p = pos_a, b_p = T(1) / pos_b, a_n = neg_a, b_n = T(1) / neg_b, ceiling = max_positive;
    const auto [count_p, count_n, sum_p, sum_n] = row.reduce(
        [=](auto p) {
          auto kept = p.positive & (p.s < ceiling);
          return values(select(kept, T(1), T(0)), select(p.negative, T(1), T(0)),
                        select(kept, p.s, T(0)), select(p.negative, p.s, T(0)));
        },
        Sum{}, Sum{}, Sum{}, Sum{});
    const auto [hardest_p, hardest_n] = row.reduce(
        [=](auto p) {
          return values(select(p.positive & (p.s < ceiling), p.s, highest<T>()),
                        select(p.negative, p.s, lowest<T>()));
        },
        Min{}, Max{});
    if (!(count_p > T(0)) || !(count_n > T(0)) || !(hardest_p - mining_margin < hardest_n)) {
      row.map([](auto p) { return p.s * T(0); });
      return T(0);
    }
    const T below = min(hardest_n + mining_margin, ceiling), above = hardest_p - mining_margin;
    const auto exponent = [=](auto p) {
      auto z_p = select(p.s < below, (a_p - p.s) * b_p, lowest<T>());
      auto z_n = select(p.s > above, (p.s - a_n) * b_n, lowest<T>());
      return select(p.positive, z_p, select(p.negative, z_n, lowest<T>()));
    };
    const LogSums<T> sums = log_sums<T>(row, exponent, true);
    const auto own = term(sums.positive), others = term(sums.negative);

    const T h = mean_mix, mean_n = sum_n / count_n;
    const T mean = h * sum_p / count_p + (T(1) - h) * mean_n;
    const auto [variance] = row.reduce(
        [=](auto p) {
          auto d = p.s - mean;
          return values(select(p.negative, d * d, T(0)));
        },
        Sum{});
    const T offset = T(2) * variance_weight * count_n * (mean_n - mean);
    const T offset_p = -offset * h / count_p, offset_n = -offset * (T(1) - h) / count_n;
    const T top_p = sums.positive.top, top_n = sums.negative.top, spread = T(2) * variance_weight;
    const T pull = -b_p * own[1], push = b_n * others[1];
    row.map([=](auto p) {
      auto z = exponent(p);
      auto e = exp(z - select(p.positive, top_p, top_n)) * select(p.positive, pull, push);
      auto g = select(z > lowest<T>(), e, T(0));
      auto kept = p.positive & (p.s < ceiling);
      auto v = select(p.negative, spread * (p.s - mean) + offset_n, T(0));
      return g + select(kept, offset_p, v);
    });
    return own[0] + others[0] + variance_weight * variance;
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(contrastive_bayesian, ContrastiveBayesian)
