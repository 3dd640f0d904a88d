// Average precision from soft histograms: FastAP (Cakir et al., CVPR 2019; SPEC 3.3) and SoftBin-AP
// (Revaud et al., ICCV 2019; SPEC 3.5), which differ in their bins and in the place of the query.
//
// A triangular histogram is a difference of ramps: with ramp_l(s) rising from 0 to 1 as s falls from
// bin centre l to bin centre l + 1, the count of bin l is the sum of ramp_{l-1} - ramp_l and the count
// up to bin l the number of pairs less the sum of ramp_l. So the centres are a list of thresholds.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct HistogramAP {
  T bins;  // distances between neighbouring centres on [-1, 1]: one less than the centres

  template <class Row>
  FASTDML_FN Counted<T> operator()(Row& row) const {
    const int m = static_cast<int>(bins);
    const T width = T(2) / m, rate = T(1) / width;
    const auto ramp = [=](auto t, auto) { return values(min(max(t * -rate, T(0)), T(1))); };
    // t in [-width, 0): the derivative of a ramp, -rate.
    const auto slope = [=](auto t, auto) {
      return select((t < T(0)) & (t >= -width), -rate, T(0));
    };
    auto positives = row.positives();
    const T own = static_cast<T>(positives.size());
    if (positives.size() == 0) {
      row.map([](auto p) { return p.s * T(0); });
      return {T(0), T(0)};
    }
    const T all = static_cast<T>(row.candidates());
    auto centres = row.list(m, [=](int l) { return T(1) - width * l; });
    const auto below = row.compare(centres, ramp);
    const auto own_below = positives.compare(centres, ramp);
    // AP = (1/own) sum_l h+_l H+_l / H_l, by the ramps' sums.
    auto push = row.array(m), pull = row.array(m);
    T ap = T(0), before = own, last = T(0);
    for (int l = 0; l <= m; ++l) {
      const T rest = l < m ? own_below[l][0] : T(0);
      const T count = before - rest, upto = own - rest, total = all - (l < m ? below[l][0] : T(0));
      const T share = total > T(0) ? T(1) / total : T(0);
      ap += count * upto * share;
      // Ramp l - 1 of the positives enters bin l with +1; ramp l leaves its count and its total.
      if (l > 0) pull[l - 1] = (last - upto * share) / own;
      last = (upto + count) * share;
      if (l < m) push[l] = -count * upto * share * share / own;
      before = rest;
    }
    row.map_compare(centres, push, slope);
    positives.add_compare(centres, pull, slope);
    return {T(1) - ap / own, T(1)};
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(fast_ap, HistogramAP)
FASTDML_ROW_LOSS(soft_bin_ap, HistogramAP)
