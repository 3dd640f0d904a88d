// Distances of near pairs.
#pragma once
#include <cstdint>

#include "block.h"

namespace fastdml {

// Squared distances below this share of the squared norms lose digits in |x|^2 + |y|^2 - 2 x.y: they are
// made again from differences.
constexpr double kNear = 1.0 / 1024;

// Of the squared distances d2 of row i and columns j .. j + count - 1 of a block, found from squared norms
// of the sums `total`, those of near pairs are made again, from the differences of their scaled embeddings.
// What is left of one by the rounding of two scales counts as 0; where the block does not know its
// embeddings, what is left by that of products.
void near_distances(const Block<float>& b, std::int64_t i, std::int64_t j, int count, float* d2,
                    const float* total);
void near_distances(const Block<double>& b, std::int64_t i, std::int64_t j, int count, double* d2,
                    const double* total);

// The same of one pair.
template <class T>
T near_distance(const Block<T>& b, std::int64_t i, std::int64_t j, T d2, T total) {
  near_distances(b, i, j, 1, &d2, &total);
  return d2;
}

}  // namespace fastdml
