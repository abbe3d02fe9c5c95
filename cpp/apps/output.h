// What swsl-classify writes: the same rows, in the same files, as `swsl classify`.
#pragma once

#include <string>
#include <string_view>

#include <swsl/runner.h>

enum class Format { table, json, csv };

// CSV has one row an image, whatever top_k: `path,error` and then label, index and probability of each class.
std::string header(Format format, int top_k);
std::string row(Format format, int top_k, const std::string& path, const swsl::Result& result);

// A name as it is written into every output, and an error's text: valid UTF-8 whatever the name's bytes are.
// swsl/bulk/rows.py says how, and how a name is read back.
std::string written_name(std::string_view name);
std::string written_error(std::string_view error);
