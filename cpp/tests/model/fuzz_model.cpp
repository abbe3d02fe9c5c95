// A libFuzzer target: whatever the bytes, loading them as a frozen module gives one or a ModelError.
//
//   CC=clang CXX=clang++ cmake -B fuzz -G Ninja -DSWSL_FUZZ=ON && cmake --build fuzz --target fuzz_model
//   mkdir corpus && fuzz/cpp/tests/fuzz_model -max_len=200000 corpus
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include <swsl/frozen_model.h>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  const int file = memfd_create("model", 0);
  if (write(file, bytes, size) == static_cast<ssize_t>(size)) {
    try {
      swsl::FrozenModel::load("/proc/self/fd/" + std::to_string(file));
    } catch (const swsl::ModelError&) {
    }
  }
  close(file);
  return 0;
}
