// A test program in one header: no framework to download, so it builds offline.
//
//   #include "check.h"
//   TEST(centre_crop_rounds_like_torchvision) { CHECK_EQ(crop_start(257, 224), 16); }
//
// Each test file is its own program. `test_image decode` runs only the tests whose names contain "decode".
#pragma once

#include <cstdio>
#include <exception>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace check {

struct Test {
  const char* name;
  std::function<void()> run;
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Registration {
  Registration(const char* name, std::function<void()> run) { tests().push_back({name, std::move(run)}); }
};

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Skipped : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename... Parts>
[[noreturn]] void fail(const char* file, int line, const Parts&... parts) {
  std::ostringstream text;
  text << file << ':' << line << ": ";
  (text << ... << parts);
  throw Failure(text.str());
}

}  // namespace check

#define TEST(name)                                                          \
  static void test_##name();                                                \
  static const check::Registration registration_##name{#name, test_##name}; \
  static void test_##name()

// LibTorch's logging has macros of these names: include this header after it.
#undef CHECK
#undef CHECK_EQ

#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) check::fail(__FILE__, __LINE__, "not true: " #condition); \
  } while (false)

// Copies: a reference into a temporary would outlive it.
#define CHECK_EQ(actual, expected)                                                                  \
  do {                                                                                              \
    const auto actual_value = (actual);                                                             \
    const auto expected_value = (expected);                                                         \
    if (!(actual_value == expected_value))                                                          \
      check::fail(__FILE__, __LINE__, #actual " is ", actual_value, ", expected ", expected_value); \
  } while (false)

// The message must contain `part`: an error that does not say what was wrong is a failure too.
#define CHECK_THROWS(type, part, expression)                                                          \
  do {                                                                                                \
    std::string message_;                                                                             \
    bool thrown_ = false;                                                                             \
    try {                                                                                             \
      (void)(expression);                                                                             \
    } catch (const type& error) {                                                                     \
      thrown_ = true;                                                                                 \
      message_ = error.what();                                                                        \
    }                                                                                                 \
    if (!thrown_) check::fail(__FILE__, __LINE__, #expression " threw no " #type);                    \
    if (message_.find(part) == std::string::npos)                                                     \
      check::fail(__FILE__, __LINE__, #expression " said \"", message_, "\", without \"", part, '"'); \
  } while (false)

int main(int argc, char** argv) {
  int passed = 0, failed = 0, skipped = 0;
  for (const auto& test : check::tests()) {
    if (argc > 1 && std::string(test.name).find(argv[1]) == std::string::npos) continue;
    try {
      test.run();
      ++passed;
    } catch (const check::Skipped& why) {
      ++skipped;
      std::printf("skipped %s: %s\n", test.name, why.what());
    } catch (const std::exception& error) {
      ++failed;
      std::printf("FAILED %s\n  %s\n", test.name, error.what());
    }
  }
  std::printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
  if (failed == 0 && skipped > 0) return 77;  // SKIP_RETURN_CODE
  return failed || passed == 0;
}
