#include "engine/backend.h"

#include <atomic>

namespace swsl {
namespace {

std::atomic<const Backend*> registered = nullptr;

}  // namespace

void register_backend(std::unique_ptr<const Backend> backend) {
  const Backend* none = nullptr;
  // Never destroyed: a runner in a static variable may outlive everything that could.
  if (registered.compare_exchange_strong(none, backend.get())) (void)backend.release();
}

const Backend* backend() { return registered; }

}  // namespace swsl
