// Average precision from soft histograms: FastAP (Cakir et al., CVPR 2019; SPEC 3.3) and SoftBin-AP
// (Revaud et al., ICCV 2019; SPEC 3.5), which differ in their bins and in the place of the query.
//
// A triangular histogram is a difference of ramps: with ramp_l(s) rising from 0 to 1 as s rises from
// bin centre l + 1 to bin centre l, the count up to bin l is the sum of ramp_l, which is the sum of the shares
// in its centres. Only ramp_l has a slope between centres l + 1 and l. 1 - AP is added up from what each bin
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
    const T rate = m / T(2);
    // A sample is at similarity 1 to itself and to its copies however the last digits fell.
    const T top = T(1) - T(8) * epsilon<T>();
    const auto value = [=](auto p) { return select(p.s > top, T(1), p.s); };
    const auto strange = [=](auto p) { return select(p.negative, value(p), lowest<T>()); };
    const auto moves = [=](auto p) { return select(p.s > top, lowest<T>(), p.s); };
    const auto strange_moves = [=](auto p) { return select(p.negative, moves(p), lowest<T>()); };
    auto positives = row.positives();
    const T own = static_cast<T>(positives.size());
    if (positives.size() == 0) {
      row.map([](auto p) { return p.s * T(0); });
      return {T(0), T(0)};
    }
    const T opposed = static_cast<T>(row.candidates() - positives.size());
    const auto strangers = row.shares(m, strange);
    const auto friends = positives.shares(m, value);
    // 1 - AP = (1/own) sum_l (P_l - P_{l-1}) N_l / (P_l + N_l): positives and negatives up to bin l.
    // One thread: what a bin adds to the one before it needs that one's.
    // push[b], pull[b]: of the pairs between centres b and b + 1, counted from below.
    auto push = row.array(m), pull = row.array(m);
    const T loss = row.list(1, [&](int) {
      T sum = T(0), before = T(0), up_p = T(0), up_n = T(0);
      for (int l = 0; l <= m; ++l) {
        up_p += friends[m - l][0];
        up_n += strangers[m - l][0];
        const T p = l < m ? up_p : own, n = l < m ? up_n : opposed;
        const T share = p + n > T(0) ? T(1) / (p + n) : T(0);
        const T lost = n * share, count = p - before;
        sum += count * lost;
        if (l > 0) pull[m - l] -= lost / own * rate;
        if (l < m) {
          pull[m - 1 - l] = (T(1) - count * share) * lost / own * rate;
          push[m - 1 - l] = count * p * share * share / own * rate;
        }
        before = p;
      }
      return sum;
    })[0];
    row.map_by_bin(m, push, strange_moves);
    positives.add_by_bin(m, pull, moves);
    return {loss / own, T(1)};
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(fast_ap, HistogramAP)
FASTDML_ROW_LOSS(soft_bin_ap, HistogramAP)
