// Triplet margin loss over all (positive, negative) pairs of every anchor: SPEC 3.8, threshold form.
#pragma once
#include "mining.h"
#include "ranking.h"

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct TripletMargin {
  T margin;
  T direction;  // 1: larger numbers are closer (similarities); -1: farther (distances)
  T smooth;     // 0: hinge, 1: softplus
  T sort;       // see sort_from
  T counted;    // what the mean is over. 0: active triplets, 1: triplets, 2: anchors
  // Which of a row take part. 0: all, 1: hardest, 2: easiest, 3: semi-hard, 4: the `near` nearest
  T positive_by, negative_by;
  T near;
  // Hinges of triplets count whose negative is from `least` to less than `most` nearer than the positive.
  T least, most;

  FASTDML_HOST_FN Sorts sorts() const {
    if (negative_by == T(4)) return sort == T(1) ? Sorts::none : Sorts::all;
    return positive_by == T(0) && negative_by == T(0) ? sorts_by(sort) : Sorts::none;
  }
  template <class P>
  FASTDML_FN Values<T, 1> sort_keys(const P& p) const {
    const T by = negative_by == T(4) ? -direction : T(1);
    return values(select(p.negative, by * p.s, highest<T>()));
  }

  template <class Row>
  FASTDML_FN Counted<T> operator()(Row& row) const {
    const T m = margin, d = direction;
    const auto one = [](T, T) { return T(1); };
    const auto hinge = [=](auto t) {
      auto excess = d * t + m;
      return values(max(excess, T(0)), select(excess > T(0), d, T(0)));
    };
    const auto within = [=, from = least, below = most](auto t) {
      auto inside = (d * t >= from) & (d * t < below);
      const auto y = hinge(t);
      return values(select(inside, y[0], T(0)), select(inside, y[1], T(0)));
    };
    const auto soft = [=](auto t) {
      auto excess = d * t + m;
      return values(softplus(excess), d * sigmoid(excess));
    };
    const T nearest_from = negative_by == T(4) ? nearest<T>(row, near, [=](auto p) {
      return select(p.negative, d * p.s, lowest<T>());
    }) : lowest<T>();
    const bool mined = positive_by != T(0) || (negative_by != T(0) && negative_by != T(4));
    if (mined)
      return smooth == T(0) ? of_chosen(row, hinge, nearest_from) : of_chosen(row, soft, nearest_from);
    if (negative_by == T(4)) return of_nearest(row, hinge, soft, nearest_from);
    // The excess is 0 where the negative is nearer by -m: the hinge bends there, the smooth form within `far`
    // of it. Triplets that count begin there or at `least`, and end at `most` or never.
    const T far = smooth == T(0) ? T(0) : flat<T>();
    const bool rising = d > T(0), ends = most < highest<T>(), chosen = ends || least > lowest<T>();
    const T begin = max(-m, least), end = ends ? max(most, begin) : begin;
    const T height = ends ? T(0) : m, rise = ends ? T(0) : d;
    const Tail<T> tail{(rising ? begin : -end) - far, (rising ? end : -begin) + far,
                       rising ? T(0) : height,        rising ? T(0) : rise,
                       rising ? height : T(0),        rising ? rise : T(0),
                       true,                          sort_from(sort, smooth == T(0) ? 96 : 32)};
    const PairSum<T> found = smooth != T(0) ? rank_pairs<T>(row, soft, tail, one)
                             : chosen       ? rank_pairs<T>(row, within, tail, one)
                                            : rank_pairs<T>(row, hinge, tail, one);
    const T all = found.positives * found.negatives;
    const T active = smooth == T(0) ? found.slopes * d : all;
    return {found.loss, number(active, all)};
  }

 private:
  FASTDML_FN T number(T active, T all) const {
    return counted == T(0) ? active : counted == T(1) ? all : T(1);
  }

  // All positives against the nearest negatives.
  template <class Row, class Hinge, class Soft>
  FASTDML_FN Counted<T> of_nearest(Row& row, Hinge hinge, Soft soft, T least) const {
    const T d = direction;
    const auto one = [](T, T) { return T(1); };
    const auto takes = [=](auto p) { return p.negative & (d * p.s >= least); };
    const T some = row.reduce(
        [=](auto p) { return values(select(takes(p), T(1), T(0))); }, Sum{})[0];
    const PairSum<T> found = smooth == T(0) ? rank_pairs<T>(row, hinge, one, some, takes)
                                            : rank_pairs<T>(row, soft, one, some, takes);
    const T all = found.positives * found.negatives, active = smooth == T(0) ? found.slopes * d : all;
    return {found.loss + (least - least), number(active, all)};
  }

  // One positive or one negative of the row, or one of each, against the other kind; of the negatives
  // those from `least` on.
  template <class Row, class Phi>
  FASTDML_FN Counted<T> of_chosen(Row& row, Phi phi, T least) const {
    const T d = direction, never = lowest<T>();
    const T toward_p = positive_by == T(2) ? d : -d, toward_n = negative_by == T(2) ? -d : d;
    const bool one_p = positive_by != T(0), one_n = negative_by != T(0) && negative_by != T(4);
    const auto of_positives = [=](T beyond) {
      return [=](auto p) {
        return select(p.positive & (d * p.s > beyond), toward_p * p.s, never);
      };
    };
    const auto of_negatives = [=](T below) {
      return [=](auto p) { return select(p.negative & (d * p.s < below), toward_n * p.s, never); };
    };
    // A semi-hard candidate is the hardest on the right side of the other kind's candidate, by more than
    // rounding.
    const auto tie = [](T v) { return T(8) * epsilon<T>() * max(abs(v), T(1)); };
    const Chosen<T> none{T(0), T(-1)};
    Chosen<T> positive = none, negative = none;
    if (one_p && positive_by != T(3)) positive = choose<T>(row, of_positives(never));
    if (one_n)
      negative = choose<T>(row, of_negatives(negative_by == T(3) ? d * positive.s - tie(positive.s) : highest<T>()));
    if (positive_by == T(3)) positive = choose<T>(row, of_positives(d * negative.s + tie(negative.s)));
    const bool complete = (!one_p || positive.found()) && (!one_n || negative.found());
    // t of a pair is the negative less the positive: what is fixed is one, the other is the pair's.
    const T fixed = one_p ? positive.s : negative.s, sign = one_p ? T(1) : T(-1);
    const T column = one_p ? positive.column : negative.column;
    // Columns of the other kind that take part: all of them, or one.
    const T from = one_p && one_n ? negative.column : T(0);
    const T upto = one_p && one_n ? negative.column : highest<T>();
    const auto takes_part = [=](auto p) {
      auto j = p.index();
      auto part = (j >= from) & (j <= upto);
      return one_p ? part & p.negative & (d * p.s >= least) : part & p.positive;
    };
    const auto [loss, slopes, pairs] = row.reduce(
        [=](auto p) {
          auto part = takes_part(p);
          const auto y = phi(sign * (p.s - fixed));
          return values(select(part, y[0], T(0)), select(part, y[1], T(0)), select(part, T(1), T(0)));
        },
        Sum{}, Sum{}, Sum{});
    if (!complete) {
      row.map([](auto p) { return p.s * T(0); });
      return {(one_p ? positive.s - positive.s : T(0)) + (one_n ? negative.s - negative.s : T(0)),
              number(T(0), T(0))};
    }
    const T all_slopes = slopes;
    row.map([=](auto p) {
      auto slope = sign * phi(sign * (p.s - fixed))[1];
      return select(takes_part(p), slope, select(p.index() == column, -sign * all_slopes, T(0)));
    });
    const T active = smooth == T(0) ? slopes * d : pairs;
    return {loss, number(active, pairs)};
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(triplet_margin, TripletMargin)
