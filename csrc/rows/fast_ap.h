// Average precision from soft histograms: FastAP (Cakir et al., CVPR 2019; SPEC 3.3) and SoftBin-AP
// (Revaud et al., ICCV 2019; SPEC 3.5), which differ in their bins and in the place of the query.
//
// A triangular histogram is a difference of ramps: with ramp_l(s) rising from 0 to 1 as s rises from
// bin centre l + 1 to bin centre l, the count up to bin l is the sum of ramp_l and the count of bin l that
// of ramp_l - ramp_{l-1}. So the centres are a list of thresholds. 1 - AP is added up from what each bin
// loses to the negatives before it: no difference of nearly equal numbers, and exactly 0 where no
// negative is before a positive.
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
    // A sample is at similarity 1 to itself and to its copies however the last digits fell.
    const T top = T(1) - T(8) * epsilon<T>();
    const auto ramp = [=](auto t, auto p) {
      return values(select(p.s > top, T(1), min(max(T(1) + t * rate, T(0)), T(1))));
    };
    const auto slope = [=](auto t, auto p) {
      return select((t < T(0)) & (t >= -width) & (p.s <= top), rate, T(0));
    };
    const auto negative_ramp = [=](auto t, auto p) {
      return values(select(p.negative, ramp(t, p)[0], T(0)));
    };
    const auto negative_slope = [=](auto t, auto p) {
      return select(p.negative, slope(t, p), T(0));
    };
    auto positives = row.positives();
    const T own = static_cast<T>(positives.size());
    if (positives.size() == 0) {
      row.map([](auto p) { return p.s * T(0); });
      return {T(0), T(0)};
    }
    const T opposed = static_cast<T>(row.candidates() - positives.size());
    auto centres = row.list(m, [=](int l) { return T(1) - width * l; });
    const auto strangers = row.compare(centres, negative_ramp);
    const auto friends = positives.compare(centres, ramp);
    // 1 - AP = (1/own) sum_l (P_l - P_{l-1}) N_l / (P_l + N_l): positives and negatives up to bin l.
    // One thread: what a bin adds to the one before it needs that one's.
    auto push = row.array(m), pull = row.array(m);
    const T loss = row.list(1, [&](int) {
      T sum = T(0), before = T(0);
      for (int l = 0; l <= m; ++l) {
        const T p = l < m ? friends[l][0] : own, n = l < m ? strangers[l][0] : opposed;
        const T share = p + n > T(0) ? T(1) / (p + n) : T(0);
        const T lost = n * share, count = p - before;
        sum += count * lost;
        if (l > 0) pull[l - 1] -= lost / own;
        if (l < m) {
          pull[l] = (T(1) - count * share) * lost / own;
          push[l] = count * p * share * share / own;
        }
        before = p;
      }
      return sum;
    })[0];
    row.map_compare(centres, push, negative_slope);
    positives.add_compare(centres, pull, slope);
    return {loss / own, T(1)};
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(fast_ap, HistogramAP)
FASTDML_ROW_LOSS(soft_bin_ap, HistogramAP)
