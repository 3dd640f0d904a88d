// Contrastive loss with two margins, on distances or on similarities.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct Contrastive {
  T positive_margin, negative_margin;
  T sign;         // 1: on distances, -1: on similarities
  T active_only;  // what is counted: 1: the terms above 0, 0: all pairs

  // Sums of the positive and negative terms, and how many of each are counted.
  template <class Row>
  FASTDML_FN auto operator()(Row& row) const {
    const T plus = positive_margin, minus = negative_margin, by = sign;
    const T floor = active_only != 0 ? T(0) : lowest<T>();
    const auto terms = [=](auto p) {
      return select(p.positive, by * (p.s - plus), by * (minus - p.s));
    };
    const auto out = row.reduce(
        [=](auto p) {
          auto t = terms(p);
          auto cost = max(t, T(0));
          auto one = select(t > floor, T(1), T(0));
          return values(select(p.positive, cost, T(0)), select(p.negative, cost, T(0)),
                        select(p.positive, one, T(0)), select(p.negative, one, T(0)));
        },
        Sum{}, Sum{}, Sum{}, Sum{});
    const T pull = by * row.weight(0, 4), push = -by * row.weight(1, 4);
    row.map([=](auto p) { return select(terms(p) > T(0), select(p.positive, pull, push), T(0)); });
    return out;
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(contrastive, Contrastive)
