// Page-aligned memory in huge pages where the system has them: the weights and activations of a network span
// far more 4 KiB pages than the processor's translation caches hold.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace swsl::cpu {

struct FreeMemory {
  void operator()(char* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<char[], FreeMemory>;

// Not initialised.
inline Memory allocate(std::size_t bytes) {
  constexpr std::size_t huge_page = std::size_t{2} << 20, page = 4096;
  const std::size_t alignment = bytes >= huge_page ? huge_page : page;
  const std::size_t rounded =
      (bytes + page) / page * page;  // not to a huge page, which would be resident as a whole
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, rounded) != 0) throw std::bad_alloc();
#ifdef __linux__
  if (alignment == huge_page) madvise(memory, rounded, MADV_HUGEPAGE);
#endif
  return Memory(static_cast<char*>(memory));
}

}  // namespace swsl::cpu
