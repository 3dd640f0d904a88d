// ArcFace (Deng et al., CVPR 2019) and sub-center ArcFace (ECCV 2020). Rows are samples, columns proxies,
// `sub_centers` consecutive ones per class: the nearest of them is the class.
#pragma once
#include "softmax.h"

namespace fastdml {
inline namespace FASTDML_ISA {

// The nearest of a group's proxies; of equal ones the first.
template <class T>
struct Nearest {
  template <class Member>
  FASTDML_FN auto operator()(Member member, int size) const {
    auto best = member(0);
    auto index = best - best;
    for (int k = 1; k < size; ++k) {
      auto s = member(k);
      index = select(best < s, T(k), index);
      best = max(best, s);
    }
    return values(best, index);
  }
  template <class V, class Kept>
  FASTDML_FN V slope(V, int k, const Kept& kept) const {
    return select(kept[1] == T(k), T(1), T(0));
  }
};

template <class T>
struct ArcFace {
  T scale;
  T cosine, sine;  // of the margin
  T offset;        // taken from the target beyond pi - margin
  T sub_centers;

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const T by = scale, a = cosine, b = sine, less = offset;
    // Where 1 - s^2 is not more than the rounding of s the angle is 0 and has no direction.
    const T tiny = sizeof(T) == 4 ? T(8 * 1.1920929e-07) : T(8 * 2.220446049250313e-16);
    const auto target = [=](T s, T) {
      if (s < -a) return values(by * (s - less), by);  // the angle and the margin exceed pi
      const T square = (T(1) - s) * (T(1) + s);
      if (!(square > tiny)) return values(by * s * a, by * a);
      const T other = sqrt(square);
      return values(by * (s * a - other * b), by * (a + s * b / other));  // cos(angle + margin)
    };
    const auto run = [&](auto& over) {
      return cross_entropy<T>(over, [=](auto p) { return p.s * by; }, by, target);
    };
    if (sub_centers == 1) return run(row);
    auto classes = row.group(static_cast<int>(sub_centers), Nearest<T>{});
    return run(classes);
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(arc_face, ArcFace)
