// List-wise self-distillation (Zeng et al., 2022): SPEC 2.12. The divergence of a row's softmax from the
// teacher's.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

template <class T>
struct ListwiseDistillation {
  T temperature;

  template <class Row>
  FASTDML_FN T operator()(Row& row) const {
    const T sharpness = T(1) / temperature;
    const auto tops = row.reduce([](auto p) { return values(p.s, p.teacher()); }, Max{}, Max{});
    const T top = tops[0], top_t = tops[1];
    const auto mine = [=](auto p) { return exp((p.s - top) * sharpness); };
    const auto theirs = [=](auto p) { return exp((p.teacher() - top_t) * sharpness); };
    const auto sums = row.reduce(
        [=](auto p) {
          auto t = theirs(p);
          return values(mine(p), t, t * ((p.teacher() - top_t) - (p.s - top)));
        },
        Sum{}, Sum{}, Sum{});
    if (!(sums[0] > T(0))) {  // no candidate
      row.map([](auto p) { return p.s * T(0); });
      return T(0);
    }
    const T push = sharpness / sums[0], pull = sharpness / sums[1];
    row.map([=](auto p) { return mine(p) * push - theirs(p) * pull; });
    return sums[2] * pull + log(sums[0]) - log(sums[1]);
  }
};

}  // namespace FASTDML_ISA
}  // namespace fastdml
FASTDML_ROW_LOSS(listwise_distillation, ListwiseDistillation)
