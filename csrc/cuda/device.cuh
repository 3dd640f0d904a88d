// The device of a call, for as long as it takes: the thread's own is put back.
#pragma once
#include <cuda_runtime.h>

namespace fastdml {

class OnDevice {
 public:
  explicit OnDevice(int device) {
    error_ = cudaGetDevice(&before_);
    if (error_ == cudaSuccess && before_ != device) error_ = cudaSetDevice(device);
    changed_ = error_ == cudaSuccess && before_ != device;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  // Null, or what went wrong: here, or in a launch since.
  const char* error() const {
    const cudaError_t error = error_ == cudaSuccess ? cudaGetLastError() : error_;
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
  }
  bool ready() const { return error_ == cudaSuccess; }

 private:
  int before_ = 0;
  bool changed_ = false;
  cudaError_t error_;
};

}  // namespace fastdml
