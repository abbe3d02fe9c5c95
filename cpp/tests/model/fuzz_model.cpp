// A libFuzzer target: whatever the bytes, loading them as a frozen module gives one or a ModelError.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include <swsl/frozen_model.h>
#include "model/archive.h"

namespace {

// No fuzzer finds a checksum, and without it nothing below the archive would ever be reached: the directory
// gets those of what is there.
void state_checksums(std::string& file) {
  const auto number = [&](std::size_t at, std::size_t bytes) {
    std::uint32_t value = 0;
    if (at < file.size() && file.size() - at >= bytes) std::memcpy(&value, file.data() + at, bytes);
    return std::size_t{value};
  };
  for (std::size_t at = file.find("PK\1\2"); at != file.npos; at = file.find("PK\1\2", at + 1)) {
    const std::size_t local = number(at + 42, 4), size = number(at + 20, 4);
    const std::size_t begin = local + 30 + number(local + 26, 2) + number(local + 28, 2);
    if (begin > file.size() || file.size() - begin < size || file.size() - at < 46) continue;
    const std::uint32_t crc = swsl::crc32(std::as_bytes(std::span(file)).subspan(begin, size));
    std::memcpy(file.data() + at + 16, &crc, sizeof crc);
  }
}

void load(const std::string& bytes) {
  const int file = memfd_create("model", 0);
  if (write(file, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size())) {
    try {
      swsl::FrozenModel::load("/proc/self/fd/" + std::to_string(file));
    } catch (const swsl::ModelError&) {
    }
  }
  close(file);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  std::string file(reinterpret_cast<const char*>(bytes), size);
  load(file);
  state_checksums(file);
  load(file);
  return 0;
}
