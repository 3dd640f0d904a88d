// Large-margin softmax (Liu et al., ICML 2016) and SphereFace (Liu et al., CVPR 2017): the target's angle is
// multiplied. Rows are samples, columns proxies; row value 0 is the length r of the target's product at
// angle 0; scalars are cos(pi / margin), cos(2 pi / margin), ... .
#pragma once
#include "softmax.h"

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct MultipleAngleSoftmax {
  T scale, margin;

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const T by = scale, length = row.value(0);
    const int m = static_cast<int>(margin);
    T by_length = 0;  // derivative of the target's logit by its length
    const auto target = [&, by, length, m](T s, T) {
      const T c = length > T(0) ? s / length : T(0);
      // cos(m angle) and sin(m angle) / sin(angle): Chebyshev polynomials of c.
      T t = c, t_before = 1, u = 1, u_before = 0;
      int turns = 0;  // the angle lies in [turns, turns + 1] pi / m
      for (int k = 1; k < m; ++k) {
        const T t_next = 2 * c * t - t_before, u_next = 2 * c * u - u_before;
        t_before = t, t = t_next, u_before = u, u = u_next;
        turns += c <= row.scalar(k - 1);
      }
      const T sign = turns % 2 ? T(-1) : T(1);
      // An embedding of length 0 has no angle to be multiplied: the target stays 0.
      const T psi = sign * t - 2 * turns, slope = length > T(0) || m == 1 ? sign * m * u : T(0);
      by_length = by * (psi - c * slope);
      return values(by * length * psi, by * slope);
    };
    T d_target = 0;
    const T loss = cross_entropy<T>(row, [=](auto p) { return p.s * by; }, by, target, &d_target);
    row.d_value(0, d_target * by_length);
    return loss;
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(multiple_angle_softmax, MultipleAngleSoftmax)
