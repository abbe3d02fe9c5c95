// A runner, with swsl's LibTorch part loaded where the options or the model ask for what the core has not.
#pragma once

#include <swsl/runner.h>

#include <string>

// Throws what swsl::Runner throws; NeedsLibTorch says why that part could not be loaded.
swsl::Runner make_any_runner(const std::string& model, const swsl::RunnerOptions& options);
