// Comparisons by a sigmoid of the difference.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

// The comparison f(sigma, t, p) with sigma = sigmoid(t * sharpness). f must count as nothing where sigma
// does: f(0, t, p) = 0 for t < 0. An executor may factorise sigma, which is 1 / (1 + e^-ks e^kt) for a
// value s and a threshold t, and so compute one exponential per value instead of one per pair.
template <class T, class F>
struct OfSigmoid {
  T sharpness;
  F f;

  template <class V, class P>
  FASTDML_FN auto operator()(V t, P p) const {
    return f(sigmoid(t * sharpness), t, p);
  }
};

template <class T, class F>
FASTDML_FN OfSigmoid<T, F> of_sigmoid(T sharpness, F f) {
  return {sharpness, f};
}

// A step from 0 to 1, and its slope in units of sharpness.
template <class T>
FASTDML_FN auto smooth_step(T sharpness) {
  return of_sigmoid(sharpness, [](auto sigma, auto, auto) {
    return values(sigma, sigma - sigma * sigma);
  });
}
template <class T>
FASTDML_FN auto smooth_slope(T sharpness) {
  return of_sigmoid(sharpness, [](auto sigma, auto, auto) { return sigma - sigma * sigma; });
}

}  // namespace FASTDML_ISA
}  // namespace fastdml
