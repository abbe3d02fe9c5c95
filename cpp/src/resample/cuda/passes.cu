#include "resample/cuda/passes.h"

#include "cuda_launch.h"

namespace swsl::resample {
namespace {

__global__ void __launch_bounds__(threads_per_block) first_pass_kernel(PackedBatch batch) {
  first_pass(batch, blockIdx.x, static_cast<int>(threadIdx.x));
}

__global__ void __launch_bounds__(threads_per_block) second_pass_kernel(PackedBatch batch) {
  switch (batch.element) {
    case Element::float32: second_pass(batch, batch.normalization->float32, blockIdx.x, static_cast<int>(threadIdx.x)); break;
    case Element::bfloat16: second_pass(batch, batch.normalization->bfloat16, blockIdx.x, static_cast<int>(threadIdx.x)); break;
    case Element::float16: second_pass(batch, batch.normalization->float16, blockIdx.x, static_cast<int>(threadIdx.x)); break;
  }
}

}  // namespace

const char* run_passes(const PackedBatch& batch, std::int64_t first_pass_blocks, cudaStream_t stream) {
  const std::int64_t second_pass_total = second_pass_blocks(batch) * batch.count;
  if (first_pass_blocks > most_blocks || second_pass_total > most_blocks) return "the batch has more pixels than one launch can take";
  if (batch.count == 0) return nullptr;
  const char* error = launch(first_pass_kernel, static_cast<unsigned>(first_pass_blocks), threads_per_block, 0, stream, batch);
  return error ? error : launch(second_pass_kernel, static_cast<unsigned>(second_pass_total), threads_per_block, 0, stream, batch);
}

}  // namespace swsl::resample
