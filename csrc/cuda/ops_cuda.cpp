// The operators of fastdml_native on CUDA tensors. Plain C++: kernels are launched through launch.h.
// Nothing here waits for the device, and memory comes from torch's allocator, so that calls can be
// captured in a CUDA graph.
#include <dlfcn.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>

#include "cuda/launch.h"
#include "row_arguments.h"

namespace {

using fastdml::CudaCall;
using fastdml::CudaKernel;
using fastdml::Element;
using fastdml::RowArguments;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Torch's current stream. The symbol is in torch's CUDA library, which is not there to link against
// where torch was built for the CPU: it is looked up in the library that torch has loaded.
void* current_stream(int32_t device) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const Function function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return reinterpret_cast<Function>(
        dlsym(library ? library : RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream"));
  }();
  STD_TORCH_CHECK(function, "fastdml: this torch has no aoti_torch_get_current_cuda_stream");
  void* stream = nullptr;
  STD_TORCH_CHECK(function(device, &stream) == 0, "fastdml: no current CUDA stream");
  return stream;
}

void check(const char* error) {
  STD_TORCH_CHECK(!error, "fastdml: CUDA error: ", error ? error : "");
}

// Room for sorting the rows of a block, in one piece.
template <class T>
Tensor sorting_room(const Tensor& s, int sorts, bool columns, fastdml::Sorting& room, void* stream) {
  const int64_t rows = s.size(0), pairs = rows * s.size(1);
  fastdml::SegmentedSort asked{{}, {}, rows, s.size(1), sizeof(T)};
  int32_t some = 0;
  if (columns) asked.columns[0] = asked.columns[1] = &some;  // only its size is asked for
  check(fastdml::cuda_sort_rows(asked, stream));
  room.temporary_bytes = asked.temporary_bytes;
  int64_t used = 0;
  const auto take = [&](int64_t bytes) {
    const int64_t at = used;
    used += (bytes + 255) / 256 * 256;
    return at;
  };
  int64_t keys[fastdml::kMostSorts + 1], indices[fastdml::kMostSorts + 1];
  for (int k = 0; k <= sorts; ++k) {
    keys[k] = take(pairs * static_cast<int64_t>(sizeof(T)));
    indices[k] = columns ? take(pairs * 4) : 0;
  }
  const int64_t kept = take(fastdml::kMostSorts * rows * 4);
  const int64_t temporary = take(static_cast<int64_t>(room.temporary_bytes));
  Tensor made = torch::stable::new_empty(s, {used}, ScalarType::Byte);
  char* base = static_cast<char*>(made.mutable_data_ptr());
  for (int k = 0; k <= sorts; ++k) {
    room.keys[k] = base + keys[k];
    room.columns[k] = columns ? reinterpret_cast<int32_t*>(base + indices[k]) : nullptr;
  }
  room.kept = reinterpret_cast<int32_t*>(base + kept);
  room.temporary = base + temporary;
  return made;
}

template <class T>
void rows_typed(const CudaKernel& kernel, const fastdml::Functor& f, const RowArguments& a) {
  const fastdml::Block<T> b = fastdml::block_of<T>(a, f.weights());
  CudaCall call;
  call.device = a.s.get_device_index();
  call.stream = current_stream(call.device);
  if (a.weights.has_value()) {
    STD_TORCH_CHECK(a.weights->scalar_type() == ScalarType::BFloat16 && sizeof(T) == 4 &&
                        a.weights->size(0) == b.rows && a.weights->size(1) == b.cols &&
                        (b.cols <= 1 || a.weights->stride(1) == 1),
                    "fastdml: weights must be bfloat16, of the shape of s");
    call.target = {a.weights->mutable_data_ptr(), a.weights->stride(0),
                   fastdml::WeightType::bfloat16};
  }
  std::optional<Tensor> arena;
  const int64_t longest = kernel.whole_rows ? std::max(a.longest, b.cols) : a.longest;
  if (kernel.lists && b.class_start && longest > fastdml::kShortList) {
    const int64_t values = fastdml::long_launches(call.long_lists, longest, b.rows, b.cols,
                                                  kernel.sorts_long(b.parameters), sizeof(T));
    arena = torch::stable::new_empty(a.s, {values});
    call.arena = arena->mutable_data_ptr();
  }
  std::optional<Tensor> room;
  if (const int sorts = kernel.sorts(b.parameters); sorts > 0 && b.rows > 0)
    room = sorting_room<T>(a.s, sorts, kernel.columns, call.sorting, call.stream);
  if constexpr (sizeof(T) == 4)
    check(kernel.f32(b, call));
  else
    check(kernel.f64(b, call));
}

void rows_cuda(const fastdml::Functor& f, const RowArguments& a) {
  const CudaKernel* kernel = fastdml::cuda_kernel(&f);
  STD_TORCH_CHECK(kernel, "fastdml: ", f.name, " is not compiled for CUDA");
  if (a.s.scalar_type() == ScalarType::Float)
    rows_typed<float>(*kernel, f, a);
  else
    rows_typed<double>(*kernel, f, a);
}

Element element(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return Element::float32;
    case ScalarType::Double:
      return Element::float64;
    case ScalarType::BFloat16:
      return Element::bfloat16;
    case ScalarType::Half:
      return Element::float16;
    default:
      STD_TORCH_CHECK(false, "fastdml: expected a floating-point matrix");
      return Element::float32;
  }
}

void remove_radial_cuda(Tensor g, Tensor x, Tensor scale) {
  const Element type = element(x.scalar_type());
  const ScalarType result = type == Element::float64 ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(g.is_contiguous() && (x.size(1) <= 1 || x.stride(1) == 1) && g.scalar_type() == result &&
                      scale.scalar_type() == result && scale.is_contiguous() &&
                      g.size(0) == x.size(0) && g.size(1) == x.size(1) && scale.numel() == x.size(0),
                  "fastdml: remove_radial_ takes matrices of one shape");
  const int32_t device = g.get_device_index();
  check(fastdml::cuda_remove_radial(g.mutable_data_ptr(), x.const_data_ptr(), type,
                                    scale.const_data_ptr(), x.size(0), x.size(1), x.stride(0), device,
                                    current_stream(device)));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastdml_native, CUDA, m) {
  m.impl("rows_", TORCH_BOX(&fastdml::rows_<rows_cuda>));
  m.impl("remove_radial_", TORCH_BOX(&remove_radial_cuda));
}
