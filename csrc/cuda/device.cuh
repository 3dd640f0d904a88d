// The device of a call, for as long as it takes: the thread's own is put back.
#pragma once
#include <cuda_runtime.h>

namespace fastdml {

// Null, or what a call's error says. The runtime keeps the error as well, for whoever asks it next: he would
// take it for his own.
inline const char* text_of(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

class OnDevice {
 public:
  explicit OnDevice(int device) {
    error_ = cudaGetDevice(&before_);
    if (error_ == cudaSuccess && before_ != device) error_ = cudaSetDevice(device);
    changed_ = error_ == cudaSuccess && before_ != device;
  }
  ~OnDevice() {
    if (changed_) text_of(cudaSetDevice(before_));  // nobody is left to tell
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  // Null, or what went wrong: here, or in a launch since.
  const char* error() const {
    return text_of(error_ == cudaSuccess ? cudaGetLastError() : error_);
  }
  bool ready() const { return error_ == cudaSuccess; }

 private:
  int before_ = 0;
  bool changed_ = false;
  cudaError_t error_;
};

}  // namespace fastdml
