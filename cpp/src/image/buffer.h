// Bytes that are kept from one image to the next and never cleared: a std::vector would write zeros over what
// is decoded next.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace swsl::detail {

class Buffer {
 public:
  // At least `size` bytes. Contents are lost when it grows.
  std::uint8_t* reserve(std::size_t size) {
    if (size > capacity_) {
      bytes_.reset();
      capacity_ = 0;
      bytes_.reset(new std::uint8_t[size]);  // make_unique would write zeros
      capacity_ = size;
    }
    return bytes_.get();
  }
  std::uint8_t* data() { return bytes_.get(); }
  std::size_t capacity() const { return capacity_; }

 private:
  std::unique_ptr<std::uint8_t[]> bytes_;
  std::size_t capacity_ = 0;
};

}  // namespace swsl::detail
