// A libFuzzer target for each format, whose files begin with FIRST_BYTE: a part of an image against the
// whole, and the sanitizers against both. See cpp/tests/CMakeLists.txt.
#include <cstdio>
#include <cstdlib>

#include "image_fixtures.h"
#include "model/archive.h"

namespace {

void check(const std::uint8_t* bytes, std::size_t size) {
  const std::string wrong = fixtures::part_against_whole(bytes, size);
  if (wrong.empty()) return;
  std::fprintf(stderr, "%s\n", wrong.c_str());
  std::abort();
}

// No fuzzer finds a checksum: every chunk of a PNG gets its own. False where all had it.
bool state_checksums(fixtures::Bytes& file) {
  bool changed = false;
  const auto number = [&](std::size_t at) {
    return std::size_t{file[at]} << 24 | file[at + 1] << 16 | file[at + 2] << 8 | file[at + 3];
  };
  for (std::size_t at = 8; file.size() >= at + 12 && number(at) <= file.size() - at - 12;) {
    const std::size_t end = at + 8 + number(at);
    const auto crc = swsl::crc32(std::as_bytes(std::span(file)).subspan(at + 4, end - at - 4));
    changed |= number(end) != crc;
    for (int i = 0; i < 4; ++i) file[end + i] = static_cast<std::uint8_t>(crc >> (24 - 8 * i));
    at = end + 4;
  }
  return changed;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  if (size == 0 || bytes[0] != FIRST_BYTE) return -1;  // keeps the other format out of this one's corpus
  check(bytes, size);
  fixtures::Bytes file(bytes, bytes + size);
  if (FIRST_BYTE == 0x89 && state_checksums(file)) check(file.data(), file.size());
  return 0;
}
