// The pair loss beside a cross-batch memory, as released with ROADMAP: SPEC 2.10.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct XbmPair {
  T margin;        // negatives above it cost their similarity
  T max_positive;  // positives at or above are dropped (duplicates)

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const T above = margin, ceiling = max_positive;
    const auto slope = [=](auto p) {
      return select(p.positive & (p.s < ceiling), T(-1), select(p.negative & (p.s > above), T(1), T(0)));
    };
    const auto [loss] = row.reduce(
        [=](auto p) {
          auto g = slope(p);
          return values(select(g < T(0), T(1) - p.s, select(g > T(0), p.s, T(0))));
        },
        Sum{});
    const T total = loss;
    row.map(slope);
    return total;
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(xbm_pair, XbmPair)
