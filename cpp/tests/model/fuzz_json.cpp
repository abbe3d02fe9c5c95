// A libFuzzer target: whatever the text, it is JSON or a JsonError.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "model/json.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  try {
    swsl::Json::parse({reinterpret_cast<const char*>(bytes), size});
  } catch (const swsl::JsonError&) {
  }
  return 0;
}
