// Rows of a long run, kept as they come: FILE.partial, which becomes FILE by a rename, and beside each a
// record of what made it. As in Python: swsl/bulk/outputs.py and swsl/bulk/run_record.py; either program
// continues what the other began.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>

#include <swsl/runner.h>

#include "output.h"

// What decides the rows of a run, as one JSON object and a newline.
std::string run_record(const swsl::Runner& runner, const swsl::RunnerOptions& options, int top_k);

// Rows come in the order of the inputs, one each, so the whole rows of an interrupted run say where to go on.
// Hold an OutputLock meanwhile. Throws std::runtime_error.
class PartialFile {
 public:
  // The formats with a row for every input: json or csv. `resume` keeps the rows of whole batches that are in
  // FILE.partial: the images after them are then computed in the same batches as without an interruption, and
  // come to the same last digit. Where none are there, it keeps all that are in FILE.
  PartialFile(const std::string& target, Format format, int top_k, int batch_size, const std::string& record,
              bool resume);
  ~PartialFile();
  PartialFile(const PartialFile&) = delete;

  static std::string path_of(const std::string& target) { return target + ".partial"; }

  // For each input from the first on: whether its row is there. Another input's row in its place is an error.
  bool has_next(const std::string& input);

  // Whole rows, in one write: whatever kills the program, only the last row can be torn.
  void append(std::string_view rows, std::int64_t count);

  // Every input has been asked for and has its row.
  void complete();

  std::int64_t rows() const { return kept_ + added_; }
  bool is_complete() const { return complete_; }  // FILE is there and, so far, all that is needed

 private:
  std::int64_t open_reader(const std::string& path);
  void open_partial(bool keep, std::streamoff size);
  void copy_back();
  void remove_empty() const;
  void write_record(const std::string& path) const;
  void check_record(const std::string& path) const;
  bool read_record(std::string& record);
  std::string next_path();
  const std::string& source() const { return complete_ ? target_ : partial_; }
  [[noreturn]] void refuse_inputs(const std::string& found, const std::string& expected) const;

  const std::string target_, partial_, header_, record_;
  const Format format_;
  const int batch_size_;
  int file_ = -1;
  std::ifstream reader_;
  std::int64_t kept_ = 0, checked_ = 0, added_ = 0;
  std::streamoff whole_ = 0;  // bytes of the kept rows
  bool complete_ = false;
};
