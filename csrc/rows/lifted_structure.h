// Lifted structure (Oh Song et al., CVPR 2016) and its generalised form (Hermans et al., 2017).
#pragma once
#include "exponentials.h"

namespace fastdml {
inline namespace FASTDML_ISA {

// A positive pair against the negatives of both its members; p.column(0) has the other member's log of
// sum, through which no derivative goes here.
template <class T>
struct LiftedStructure {
  T sign;  // 1: on similarities, -1: on distances
  T pos_margin, neg_margin;
  T pull;  // weight of the positive pairs' own derivative and of the value
  T push;  // weight of the derivative through the row's log of sum

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const T by = sign, plus = pos_margin, minus = neg_margin, share = row.scalar(0);
    const auto exponent = [=](auto p) {
      return select(p.negative, by * (p.s - minus), lowest<T>());
    };
    const LogSum<T> negatives = log_sum<T>(row, exponent);
    const T level = negatives.log_of_sum();
    const auto excess = [=](auto p) {
      auto other = p.column(0);
      auto both = max(other, level) + softplus(-abs(other - level));
      return max(select(both > T(0.5) * lowest<T>(), both - by * (p.s - plus), T(0)), T(0));
    };
    const auto [squares, slope] = row.reduce(
        [=](auto p) {
          if (!any(p.positive)) return values(p.s * T(0), p.s * T(0));  // most vectors of pairs
          auto x = excess(p);
          return values(select(p.positive, x * x * T(0.5), T(0)),
                        select(p.positive, x * sigmoid(level - p.column(0)), T(0)));
        },
        Sum{}, Sum{});
    const T attract = -by * pull * share, top = negatives.top;
    const T repel = negatives.empty() ? T(0) : by * push * share * slope / negatives.total;
    row.map([=](auto p) {
      auto e = select(p.negative, exp(exponent(p) - top) * repel, T(0));
      if (!any(p.positive)) return e;
      return select(p.positive, excess(p) * attract, e);
    });
    return pull * share * squares;
  }
};

// All positives of a row against all its negatives.
template <class T>
struct GeneralizedLiftedStructure {
  T sign;  // 1: on similarities, -1: on distances
  T pos_margin, neg_margin;
  T needs_both;  // 1: a row that lacks either kind has a loss of 0

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const T by = sign, plus = pos_margin, minus = neg_margin;
    const auto exponent = [=](auto p) {
      return select(p.positive, by * (plus - p.s),
                    select(p.negative, by * (p.s - minus), lowest<T>()));
    };
    const LogSums<T> sums = log_sums<T>(row, exponent);
    const T pulls = sums.positive.empty() ? T(0) : sums.positive.log_of_sum();
    const T pushes = sums.negative.empty() ? T(0) : sums.negative.log_of_sum();
    const bool open = pulls + pushes > T(0) &&
                      (needs_both == 0 || !(sums.positive.empty() || sums.negative.empty()));
    const T pull = open && !sums.positive.empty() ? -by / sums.positive.total : T(0);
    const T push = open && !sums.negative.empty() ? by / sums.negative.total : T(0);
    const T top_p = sums.positive.top, top_n = sums.negative.top;
    row.map([=](auto p) {
      auto e = exp(exponent(p) - select(p.positive, top_p, top_n));
      return e * select(p.positive, pull, select(p.negative, push, T(0)));
    });
    return open ? pulls + pushes : T(0);
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(lifted_structure, LiftedStructure)
FASTDML_ROW_LOSS(generalized_lifted_structure, GeneralizedLiftedStructure)
