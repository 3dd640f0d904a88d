// Functors that a running process adds to the compiled ones: a user's loss, printed and compiled for this
// machine.
#pragma once
#include "block.h"

namespace fastdml {

constexpr int kMostFurther = 4096;

// The number of a functor whose kernel is for this processor and lives as long as the process; -1 where
// there are too many.
int add_functor(const char* name, const Kernel* kernel);

}  // namespace fastdml
