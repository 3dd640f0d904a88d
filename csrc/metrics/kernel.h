#pragma once
// The sweep for one instruction set: FASTDML_ISA and FASTDML_VECTOR_BYTES come from the build.
#include "fold.h"

#define FASTDML_JOIN_(a, b) a##_##b
#define FASTDML_JOIN(a, b) FASTDML_JOIN_(a, b)

namespace fastdml {
extern const SweepKernel FASTDML_JOIN(sweep_kernel, FASTDML_ISA);
const SweepKernel FASTDML_JOIN(sweep_kernel, FASTDML_ISA) = {
    {fold<float>, pack<float>, pair_scores<float>, kQueryRows, kPanel<float>},
    {fold<double>, pack<double>, pair_scores<double>, kQueryRows, kPanel<double>}};
}  // namespace fastdml
