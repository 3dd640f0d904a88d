// Pairs of two embeddings that coincide, where something is added to squared distances.
#pragma once

namespace fastdml {
inline namespace FASTDML_ISA {

// The derivative w by the distance of a pair; 0 for two embeddings that coincide, which pull neither. Left
// in, their two large shares of the gradient would cancel badly. (With nothing added a block sees to that.)
template <class P, class W>
FASTDML_FN W where_apart(const P& p, W w) {
  const auto floor = p.block->epsilon;
  const auto nearest = p.block->metric == Metric::distance ? sqrt(floor) : floor;
  return select(p.s > nearest, w, decltype(floor + floor)(0));
}

}  // namespace FASTDML_ISA
}  // namespace fastdml
