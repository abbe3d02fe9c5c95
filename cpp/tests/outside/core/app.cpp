#include <swsl/runner.h>

#include <iostream>

int main(int, char** argv) {
  swsl::Runner runner(argv[1], {.device = "cpu"});
  for (const auto& p : runner.classify_file(argv[2], /*top_k=*/5))
    std::cout << p.label << ' ' << p.probability << '\n';
  try {
    runner.classify_file("/no/such/file.jpg");
  } catch (const swsl::ImageError&) {  // the library's exceptions are those of the header
    return 0;
  }
  return 1;
}
