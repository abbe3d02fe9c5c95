#include "any_runner.h"

#include <dlfcn.h>

namespace {

#ifdef __APPLE__
constexpr const char* libtorch_part = "libswsl_torch.dylib";
#else
constexpr const char* libtorch_part = "libswsl_torch.so";
#endif

// What stood in the way, "" if nothing did. LibTorch takes half a second and hundreds of megabytes, so it is
// not linked.
std::string load_libtorch_part() {
  if (SWSL_STATIC) return "this program was built with SWSL_STATIC, which leaves LibTorch out";
  return dlopen(libtorch_part, RTLD_NOW | RTLD_GLOBAL) ? "" : dlerror();
}

}  // namespace

swsl::Runner make_any_runner(const std::string& model, const swsl::RunnerOptions& options) {
  if (options.device == "auto") load_libtorch_part();  // which knows whether there is a GPU
  try {
    return swsl::Runner(model, options);
  } catch (const swsl::NeedsLibTorch& error) {
    const std::string why = load_libtorch_part();
    if (why.empty()) return swsl::Runner(model, options);
    throw swsl::NeedsLibTorch(std::string(error.what()) + ". It was looked for: " + why);
  }
}
