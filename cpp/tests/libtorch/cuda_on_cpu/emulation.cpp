#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <sanitizer/asan_interface.h>
#include <ucontext.h>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime_api.h"

dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace swsl::cuda {

// `extern __shared__` of the kernels.
constexpr std::size_t shared_memory_bytes = std::size_t{48} << 10;
alignas(32) unsigned char shared_memory[shared_memory_bytes];

}  // namespace swsl::cuda

namespace cuda_on_cpu {
namespace {

using swsl::cuda::shared_memory, swsl::cuda::shared_memory_bytes;

constexpr std::size_t stack_bytes = std::size_t{32} << 10;
constexpr unsigned warp_size = 32;

cudaError_t last_error = cudaSuccess;
std::string failure;  // of the last launch

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[stack_bytes]};
};

enum class State { ready, at_warp, at_block, ended };

struct Thread {
  State state = State::ready;
  Fiber* fiber = nullptr;   // once it has begun
  std::uint64_t trace = 0;  // of the warp's operations it took part in
};

// Runs the threads of one block after another. Threads that never wait share a fiber, without a switch
// between them.
class Block {
 public:
  void run(unsigned threads, const std::function<void()>& kernel) {
    threads_.assign(threads, {});
    kernel_ = &kernel;
    while (gather()) {
      std::shuffle(round_.begin(), round_.end(), random_);
      for (next_ = 0; next_ < round_.size();) {
        if (Fiber* const fiber = threads_[round_[next_]].fiber) {
          become(round_[next_++]);
          enter(*fiber);
        } else {
          enter(idle_fiber());
        }
      }
    }
  }

  void wait(State at) {
    current_->state = at;
    swapcontext(&current_->fiber->context, &scheduler_);
  }

  void note(std::uint64_t what) { current_->trace = (current_->trace + what + 1) * 0x9e3779b97f4a7c15; }

  // Of one fiber.
  void run_threads() {
    Fiber* const fiber = entered_;
    while (next_ < round_.size() && threads_[round_[next_]].fiber == nullptr) {
      become(round_[next_++]);
      current_->fiber = fiber;
      (*kernel_)();
      current_->state = State::ended;
    }
    idle_.push_back(fiber);
  }

 private:
  bool all(unsigned begin, unsigned end, State state) const {
    return std::all_of(threads_.begin() + begin, threads_.begin() + end, [&](const Thread& thread) {
      return thread.state == state || thread.state == State::ended;
    });
  }

  void release(unsigned begin, unsigned end) {
    for (unsigned i = begin; i < end; ++i)
      if (threads_[i].state != State::ended) {
        threads_[i].state = State::ready;
        round_.push_back(i);
      }
  }

  // The threads of the next round, those that no barrier holds any more. False if there are none.
  bool gather() {
    round_.clear();
    const auto count = static_cast<unsigned>(threads_.size());
    for (unsigned begin = 0; begin < count; begin += warp_size) {
      const unsigned end = std::min(count, begin + warp_size);
      for (unsigned i = begin; i < end; ++i)
        if (threads_[i].trace != threads_[begin].trace)
          fail("threads of a warp do not take part in the same operations");
      if (all(begin, end, State::ready) || all(begin, end, State::at_warp)) release(begin, end);
    }
    if (round_.empty() && all(0, count, State::at_block)) release(0, count);
    if (!round_.empty()) return true;
    if (!all(0, count, State::ended)) {
      fail("threads wait at a barrier that others do not reach");
      idle_.clear();
      fibers_.clear();
    }
    return false;
  }

  void become(unsigned index) {
    current_ = &threads_[index];
    threadIdx = {index % blockDim.x, index / blockDim.x % blockDim.y, index / blockDim.x / blockDim.y};
  }

  void enter(Fiber& fiber) {
    entered_ = &fiber;
    swapcontext(&scheduler_, &fiber.context);
  }

  Fiber& idle_fiber();

  std::vector<Thread> threads_;
  std::vector<unsigned> round_;
  std::size_t next_ = 0;  // in the round
  Thread* current_ = nullptr;
  const std::function<void()>* kernel_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
  Fiber* entered_ = nullptr;
  ucontext_t scheduler_;
  std::mt19937 random_;
};

Block block;

Fiber& Block::idle_fiber() {
  if (idle_.empty()) idle_.push_back(fibers_.emplace_back(std::make_unique<Fiber>()).get());
  Fiber& fiber = *idle_.back();
  idle_.pop_back();
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = stack_bytes;
  fiber.context.uc_link = &scheduler_;
  makecontext(&fiber.context, [] { block.run_threads(); }, 0);
  return fiber;
}

}  // namespace

void fail(const char* message) {
  if (failure.empty()) failure = message;
}

void together(const void* pointer, std::size_t stride_bytes, std::size_t alignment) {
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  if (address % alignment != 0) fail("misaligned matrix");
  if (stride_bytes % 16 != 0) fail("the rows of a matrix are no multiple of 16 bytes apart");
  block.note(address);
  block.note(stride_bytes);
}

cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& kernel) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  const auto within = [](const dim3& size, unsigned x, unsigned y, unsigned z) {
    return size.x - 1 < x && size.y - 1 < y && size.z - 1 < z;  // none is 0
  };
  const auto threads = std::uint64_t{blockDim.x} * blockDim.y * blockDim.z;
  if (!within(gridDim, 2147483647, 65535, 65535) || !within(blockDim, 1024, 1024, 64) || threads > 1024)
    return last_error = cudaErrorInvalidConfiguration;
  if (config.dynamicSmemBytes > shared_memory_bytes) return last_error = cudaErrorInvalidValue;
  failure.clear();
  for (unsigned z = gridDim.z; z-- > 0;)
    for (unsigned y = gridDim.y; y-- > 0;)
      for (unsigned x = gridDim.x; x-- > 0;) {
        blockIdx = {x, y, z};
        std::memset(shared_memory, 0xff, config.dynamicSmemBytes);  // NaN
        ASAN_POISON_MEMORY_REGION(shared_memory + config.dynamicSmemBytes,
                                  shared_memory_bytes - config.dynamicSmemBytes);
        block.run(static_cast<unsigned>(threads), kernel);
        ASAN_UNPOISON_MEMORY_REGION(shared_memory, shared_memory_bytes);
      }
  return failure.empty() ? cudaSuccess : last_error = cudaErrorLaunchFailure;
}

}  // namespace cuda_on_cpu

void __syncthreads() { cuda_on_cpu::block.wait(cuda_on_cpu::State::at_block); }
void __syncwarp() { cuda_on_cpu::block.wait(cuda_on_cpu::State::at_warp); }
void __trap() { cuda_on_cpu::fail("trap"); }

cudaError_t cudaGetLastError() { return std::exchange(cuda_on_cpu::last_error, cudaSuccess); }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorLaunchFailure: return cuda_on_cpu::failure.c_str();
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
  }
  return "unknown error";
}

cudaError_t cudaMallocManaged(void** memory, std::size_t size) {
  *memory = operator new(size, std::align_val_t{256});
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  operator delete(memory, std::align_val_t{256});
  return cudaSuccess;
}

float __half2float(__half x) { return c10::Half(x.bits, c10::Half::from_bits()); }
__half __float2half_rn(float x) { return {c10::Half(x).x}; }
float __bfloat162float(__nv_bfloat16 x) { return c10::BFloat16(x.bits, c10::BFloat16::from_bits()); }
__nv_bfloat16 __float2bfloat16_rn(float x) { return {c10::BFloat16(x).x}; }
