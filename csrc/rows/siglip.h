// Sigmoid loss of pairs (Zhai et al., ICCV 2023): SPEC 3.7.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct SigLIP {
  T unused;  // scale and bias are learnable: row.scalar(0) and row.scalar(1)

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const T scale = row.scalar(0), bias = row.scalar(1);
    // softplus(-z u), u = scale s + bias, z = 1 for positives and -1 for negatives.
    const auto sums = row.reduce(
        [=](auto p) {
          auto u = p.s * scale + bias;
          auto v = select(p.positive, -u, u);
          auto slope = sigmoid(v);
          auto du = select(p.positive, -slope, slope);
          return values(softplus(v), du * p.s, du);
        },
        Sum{}, Sum{}, Sum{});
    row.d_scalar(0, sums[1]);
    row.d_scalar(1, sums[2]);
    row.map([=](auto p) {
      auto u = p.s * scale + bias;
      auto slope = sigmoid(select(p.positive, -u, u)) * scale;
      return select(p.positive, -slope, slope);
    });
    return sums[0];
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(siglip, SigLIP)
