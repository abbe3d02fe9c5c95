// The files that make_test_data.py made.
#pragma once

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include <swsl/engine.h>

inline std::string data(const std::string& name) {
  const char* folder = std::getenv("SWSL_TEST_DATA");
  if (!folder)
    throw std::runtime_error("set SWSL_TEST_DATA to the folder that make_test_data.py filled (ctest does)");
  return std::string(folder) + '/' + name;
}

inline std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline const swsl::FrozenModel& tiny() {
  static const auto loaded = swsl::FrozenModel::load(data("tiny.pt"));
  return loaded;
}

// Numbers that eager PyTorch has written.
inline std::vector<float> floats(const std::string& name) {
  const std::string bytes = contents(data(name));
  std::vector<float> numbers(bytes.size() / sizeof(float));
  std::memcpy(numbers.data(), bytes.data(), bytes.size());
  return numbers;
}

// A batch with its memory.
struct Images {
  std::vector<float> numbers;
  swsl::Batch batch;
};

inline Images make_images(std::int64_t count, std::int64_t height = 64, std::int64_t width = 64) {
  const std::array<std::int64_t, 4> shape{count, 3, height, width};
  Images images{swsl::golden_input(shape), {}};
  for (float& number : images.numbers) number /= 2;
  images.batch = swsl::Batch::contiguous(images.numbers.data(), shape);
  return images;
}

inline std::vector<float> forward(swsl::Engine& engine, const swsl::Batch& batch) {
  std::vector<float> logits(static_cast<std::size_t>(batch.shape[0]) * engine.info().classes);
  engine.forward(batch, logits.data());
  return logits;
}

inline std::vector<float> embed(swsl::Engine& engine, const swsl::Batch& batch) {
  std::vector<float> features(static_cast<std::size_t>(batch.shape[0]) * engine.info().features);
  engine.embed(batch, features.data());
  return features;
}
