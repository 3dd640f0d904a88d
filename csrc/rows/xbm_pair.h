// The pair loss of cross-batch memory (Wang et al., CVPR 2020): SPEC 2.10 and 3.9. Sums, not means.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct XBMPair {
  T margin;
  T offset;        // a negative above the margin costs s - offset
  T max_positive;  // positives at or above are dropped (duplicates)

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const T m = margin, from = offset, ceiling = max_positive;
    const auto kept = [=](auto p) { return p.positive & (p.s < ceiling); };
    const auto hit = [=](auto p) { return p.negative & (p.s > m); };
    const auto [loss] = row.reduce(
        [=](auto p) {
          return values(select(kept(p), T(1) - p.s, select(hit(p), p.s - from, T(0))));
        },
        Sum{});
    row.map([=](auto p) { return select(kept(p), T(-1), select(hit(p), T(1), T(0))); });
    return loss;
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(xbm_pair, XBMPair)
