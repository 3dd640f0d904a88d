// Relational knowledge distillation (Park et al., CVPR 2019): SPEC 1.2. Huber's cost of the difference
// between the student's number of a pair and the teacher's.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {


// Distances in units of their means: scalars are one over the student's mean and the teacher's.
template <class T>
struct RKDDistance {
  T unused;

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const T a = row.scalar(0), b = row.scalar(1);
    const T share = T(1) / (row.candidates() + (row.has_own() ? 1 : 0));
    const auto difference = [=](auto p) { return p.s * a - p.teacher() * b; };
    const auto sums = row.reduce(
        [=](auto p) {
          auto x = difference(p);
          auto c = min(max(x, T(-1)), T(1));
          return values(c * (x - c * T(0.5)), c * p.s, c * p.teacher());
        },
        Sum{}, Sum{}, Sum{});
    row.d_scalar(0, sums[1] * share);
    row.d_scalar(1, -sums[2] * share);
    row.map([=](auto p) { return min(max(difference(p), T(-1)), T(1)) * (a * share); });
    return sums[0] * share;
  }
};

// Cosines as they are.
template <class T>
struct RKDAngle {
  T unused;

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const auto [total] = row.reduce(
        [](auto p) {
          auto x = p.s - p.teacher();
          auto c = min(max(x, T(-1)), T(1));
          return values(c * (x - c * T(0.5)));
        },
        Sum{});
    row.map([](auto p) { return min(max(p.s - p.teacher(), T(-1)), T(1)); });
    return total;
  }
};

// The mean of the distances above 0, whose inverse the first of these takes.
template <class T>
struct MeanDistance {
  T unused;

  template <class Row>
  FASTDML_FN auto operator()(Row& row) const {
    const auto [total, count] = row.reduce(
        [](auto p) { return values(p.s, select(p.s > T(0), T(1), T(0))); }, Sum{}, Sum{});
    row.map([](auto p) { return select(p.s > T(0), T(1), T(0)); });
    return Counted<T>{total, count};
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(rkd_distance, RKDDistance)
FASTDML_ROW_LOSS(rkd_angle, RKDAngle)
FASTDML_ROW_LOSS(mean_distance, MeanDistance)
