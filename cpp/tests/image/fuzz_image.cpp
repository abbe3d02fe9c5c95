// libFuzzer: a part of an image against the whole, and the sanitizers against both.
//
//   CC=clang CXX=clang++ cmake -B fuzz -G Ninja -DSWSL_FUZZ=ON && cmake --build fuzz --target fuzz_image
//   mkdir corpus && fuzz/cpp/tests/fuzz_image -max_len=4096 -max_total_time=180 corpus FOLDER_OF_SMALL_IMAGES
#include <cstdio>
#include <cstdlib>

#include "image_fixtures.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  const std::string wrong = fixtures::part_against_whole(bytes, size);
  if (wrong.empty()) return 0;
  std::fprintf(stderr, "%s\n", wrong.c_str());
  std::abort();
}
