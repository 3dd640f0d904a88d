// Multi-similarity with its miner (Wang et al., CVPR 2019): SPEC 2.11.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct MultiSimilarity {
  T alpha, beta, base;
  T epsilon;      // width of the mining band
  T mined;        // 0: every pair counts, and a row needs no partner of either kind
  T max_positive; // positives at or above are dropped (duplicates); infinite: all are kept

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const T a = alpha, b = beta, centre = base, ceiling = max_positive;
    const auto [easiest_positive, hardest_negative, hardest_positive, easiest_negative] = row.reduce(
        [=](auto p) {
          auto kept = p.positive & (p.s < ceiling);
          return values(select(kept, p.s, lowest<T>()), select(p.negative, p.s, lowest<T>()),
                        select(kept, p.s, highest<T>()), select(p.negative, p.s, highest<T>()));
        },
        Max{}, Max{}, Min{}, Min{});
    const bool has_positive = hardest_positive < highest<T>();
    const bool has_negative = easiest_negative < highest<T>();
    // A pair is mined if it violates the row's hardest pair of the other kind by less than epsilon.
    const T positive_below = mined != 0 ? min(hardest_negative + epsilon, ceiling) : ceiling;
    const T negative_above = mined != 0 ? hardest_positive - epsilon : lowest<T>();
    const bool empty = mined != 0 ? !(has_positive && has_negative && hardest_positive < positive_below)
                                  : !(has_positive || has_negative);
    if (empty) {
      row.map([](auto p) { return p.s * T(0); });
      return T(0);
    }
    // log(1 + sum exp z) with the largest exponent taken out first; the 1 is exp(0).
    const T top_p = max(T(0), has_positive ? -a * (hardest_positive - centre) : T(0));
    const T top_n = max(T(0), has_negative ? b * (hardest_negative - centre) : T(0));
    const auto exponential = [=](auto p) {
      return exp(select(p.positive, -a * (p.s - centre) - top_p, b * (p.s - centre) - top_n));
    };
    const auto mined_positive = [=](auto p) { return p.positive & (p.s < positive_below); };
    const auto mined_negative = [=](auto p) { return p.negative & (p.s > negative_above); };
    const auto [sum_p, sum_n] = row.reduce(
        [=](auto p) {
          auto e = exponential(p);
          return values(select(mined_positive(p), e, T(0)), select(mined_negative(p), e, T(0)));
        },
        Sum{}, Sum{});
    const T total_p = exp(-top_p) + sum_p, total_n = exp(-top_n) + sum_n;
    const T pull = T(-1) / total_p, push = T(1) / total_n;
    row.map([=](auto p) {
      auto e = exponential(p);
      return select(mined_positive(p), e * pull, select(mined_negative(p), e * push, T(0)));
    });
    return (top_p + log(total_p)) / a + (top_n + log(total_n)) / b;
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(multi_similarity, MultiSimilarity)
