// Weights in the order in which the kernels read them, packed once when a network is loaded.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/kernels/kernels.h"
#include "engine/plan/fuse.h"
#include "engine/plan/memory.h"

namespace swsl::cpu {

class ThreadPool;

enum class ConvolutionKernel {
  tile,         // sums over whole lines of input channels
  first,        // the same kernel over the batch itself, channels interleaved: a block is one kernel row
  grouped_row,  // 3×3 with groups narrower than a vector
};

// The weights of 1 or 2 vectors of output channels, one after another through the sum.
struct Panel {
  int vectors;
  int first_channel;       // of the output
  int first_block;         // input channel block where the sum starts
  int first_step;          // step of that block's lines
  int blocks;              // of the sum: channel blocks × taps
  int steps;               // of each block
  std::ptrdiff_t weights;  // bytes from the start of the packed memory
};

struct PackedConvolution {
  ConvolutionKernel kernel;
  std::vector<Panel> panels;
  std::vector<float> bias;                 // zeros beyond out_channels
  std::vector<std::int32_t> permutations;  // grouped_row: [vector of the line][step][16]
  std::ptrdiff_t bytes = 0;                // of all panels
};

struct PackedNetwork {
  const KernelSet* kernels;
  FusedNetwork network;                         // its weights released
  std::vector<PackedConvolution> convolutions;  // by layer; empty ones for pools
  Memory weights;
  std::size_t weight_bytes = 0;
};

PackedNetwork pack(FusedNetwork network, const KernelSet& kernels, ThreadPool& threads);

}  // namespace swsl::cpu
