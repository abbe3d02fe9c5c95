// Runs swsl-classify as a shell would.
#pragma once

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "check.h"
#include "test_data.h"

struct Run {
  std::string out, errors;
  int code = -1;
};

inline Run classify(const std::string& arguments, const std::string& before = "") {
  const char* program = std::getenv("SWSL_CLASSIFY");
  if (!program) throw std::runtime_error("set SWSL_CLASSIFY to the program (ctest does)");
  const std::string errors = data("app-stderr-" + std::to_string(getpid()) + ".txt");
  const std::string command = before + '\'' + program + "' " + arguments + " 2> '" + errors + '\'';
  std::FILE* pipe = popen(command.c_str(), "r");
  Run run;
  char buffer[4096];
  for (std::size_t n; (n = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) run.out.append(buffer, n);
  const int status = pclose(pipe);
  run.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  run.errors = contents(errors);
  return run;
}

inline std::string quoted(const std::string& name) { return '\'' + data(name) + '\''; }
inline const std::string model = quoted("tiny.pt");

inline bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}
