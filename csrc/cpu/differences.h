// Distances of near pairs.
#pragma once
#include <cstdint>

#include "block.h"

namespace fastdml {

// Squared distances below this share of the squared norms lose digits in |x|^2 + |y|^2 - 2 x.y: they are
// made again from differences.
constexpr double kNear = 1.0 / 1024;

// The squared distance of row i and column j of a block, found as d2 from squared norms of the sum
// `total`, from the differences of their scaled embeddings. What is left of it by the rounding of two
// scales counts as 0; where the block does not know its embeddings, what is left by that of products.
// Compiled once, not per instruction set: few pairs are near.
float near_distance(const Block<float>& b, std::int64_t i, std::int64_t j, float d2, float total);
double near_distance(const Block<double>& b, std::int64_t i, std::int64_t j, double d2, double total);

}  // namespace fastdml
