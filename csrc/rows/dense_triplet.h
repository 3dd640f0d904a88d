// Dense triplets (Kim et al., CVPR 2019): SPEC 1.3. The mean of [s_j - s_k + margin]_+ over the pairs
// (j, k) of a row with a smaller label distance of j.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct DenseTriplet {
  T margin;
  T given;  // 1: label distances are column value 0 (one anchor), 0: they are the teacher's

  static constexpr bool whole_rows = true;
  FASTDML_HOST_FN Sorts sorts() const { return Sorts::all; }
  template <class P>
  FASTDML_FN Values<T, 2> sort_keys(const P& p) const {
    return values(given != T(0) ? p.column(0) : p.teacher(), p.s);
  }

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    return given != T(0) ? run(row, [](auto p) { return p.column(0); })
                         : run(row, [](auto p) { return p.teacher(); });
  }

  template <class Row, class Label>
  FASTDML_FN T run(Row& row, Label label) const {
    const auto order = row.order(label, margin);
    const T share = order.pairs() > T(0) ? T(1) / order.pairs() : T(0);
    const auto [total] = row.reduce([](auto p) { return values(p.s); }, Sum{});
    const T mean = total / max(static_cast<T>(row.candidates()), T(1));
    // The sum of active s_j - s_k is that of s times slopes, which sum to 0: the mean is taken out.
    const auto [sum] =
        row.reduce([=](auto p) { return values((p.s - mean) * order.slope(p)); }, Sum{});
    row.map([=](auto p) { return order.slope(p) * share; });
    return (sum + margin * order.active()) * share;
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(dense_triplet, DenseTriplet)
