// swsl-classify: image files to predictions, on a machine without Python.

#include <swsl/runner.h>
#include <swsl/stream.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <deque>
#include <filesystem>
#include <iostream>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "any_runner.h"
#include "interruption.h"
#include "output.h"
#include "partial_file.h"
#include "progress.h"
#include "sources.h"
#include "target.h"

namespace {

constexpr std::string_view usage = R"(usage: swsl-classify MODEL [IMAGE ...] [options]

MODEL is a frozen module (made by: swsl export). IMAGE is a file, a folder (searched recursively, in sorted
order; hidden files and folders are skipped) or - for a list of paths on stdin, one a line. What is printed
for a list comes as soon as it is computed; folders and files of rows are computed in full batches.

  --top-k N          predictions an image (5)
  --format FORMAT    of stdout: table, json (an object a line) or csv (a row an image) (table)
  -o, --output FILE  write to FILE.csv or FILE.jsonl instead; until it is complete, its rows are in
                     FILE.partial; what made it is in FILE.run.json. A device or a pipe is written into, as
                     stdout is
  --resume           go on with the FILE.partial that an interrupted run of the same model and options has
                     left, or with a whole FILE if there are more images now
  --device DEVICE    cpu, cuda, cuda:N, or auto: a GPU if there is one (cpu)
  --dtype DTYPE      float32, bfloat16, float16, auto (the faster of the first two) or, on CUDA, tf32 (float32
                     with products of numbers rounded to TF32), of weights and activations (float32)
  --cores N          that forward pass and decoding share (as many as the process may use: by its affinity,
                     its cgroup's CPU quota and OMP_NUM_THREADS, the smallest of them)
  --threads N        that compute the forward pass on a CPU, at most --cores (as many)
  --workers N        threads that read and decode images; they and the forward pass share the cores, so more
                     only help where reading is slow (as many as --cores)
  --batch-size N     images in one forward pass at most (16; on a GPU 64)
  --max-pixels N     of an image; one of more is an error, for a small file can hold a great many (89478485)
  --exif-orientation turn images as their EXIF tag says
  --info             print what the model says about itself, and stop; with --format json, its metadata as
                     they are
  --version          print swsl's version, and stop
  --help             print this, and stop

CUDA devices and float16 need libswsl_torch.so, swsl's LibTorch part.
An image that cannot be used is one line on stderr, and the rest go on.
Bytes of a file's name that are no UTF-8 are written \xff, in every output.
Exit code: 0 all went well, 1 an image or the model could not be used, 2 wrong usage, 130 or 143 stopped by a
signal.
)";

struct WrongUsage : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Arguments {
  std::string model;
  std::vector<std::string> images;
  swsl::RunnerOptions options;
  int top_k = 5;
  int workers = 0;
  Format format = Format::table;
  std::string output;
  std::optional<Target> target;  // of the output
  bool resume = false;
  bool info = false;
  bool version = false;
  bool help = false;
};

int positive(const std::string& option, const std::string& text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1)
    throw WrongUsage(option + ": expected a whole number of 1 or more, got \"" + text + '"');
  return value;
}

Format parse_format(const std::string& format, const std::string& output, bool special) {
  if (output.ends_with(".csv") || output.ends_with(".jsonl")) {
    if (!format.empty()) throw WrongUsage("--format: the name after --output decides; give one of them");
    return output.ends_with(".csv") ? Format::csv : Format::json;
  }
  if (!output.empty() && !special)
    throw WrongUsage("--output: expected a name ending in .csv or .jsonl, got \"" + output + '"');
  if (format.empty() || format == "table") return Format::table;
  if (format == "json") return Format::json;
  if (format == "csv") return Format::csv;
  throw WrongUsage("--format: expected table, json or csv, got \"" + format + '"');
}

Arguments parse(const std::vector<std::string>& words) {
  Arguments out;
  std::vector<std::string> positional;
  bool options_end = false;
  std::string format;
  for (std::size_t i = 0; i < words.size(); ++i) {
    std::string name = words[i], value;
    if (options_end || name == "-" || !name.starts_with('-')) {
      positional.push_back(name);
      continue;
    }
    const auto equals = name.starts_with("--") ? name.find('=') : std::string::npos;
    const bool joined = equals != std::string::npos;
    if (joined) value = name.substr(equals + 1), name.resize(equals);
    const auto argument = [&]() -> const std::string& {
      if (!joined) {
        if (++i == words.size()) throw WrongUsage(name + ": expected a value after it");
        value = words[i];
      }
      return value;
    };
    if (name == "--top-k")
      out.top_k = positive(name, argument());
    else if (name == "--format")
      format = argument();
    else if (name == "--output" || name == "-o")
      out.output = argument();
    else if (name == "--workers")
      out.workers = positive(name, argument());
    else if (name == "--device")
      out.options.device = argument();
    else if (name == "--dtype")
      out.options.dtype = argument();
    else if (name == "--cores")
      out.options.cores = positive(name, argument());
    else if (name == "--threads")
      out.options.threads = positive(name, argument());
    else if (name == "--batch-size")
      out.options.batch_size = positive(name, argument());
    else if (name == "--max-pixels")
      out.options.max_pixels = positive(name, argument());
    else if (joined)
      throw WrongUsage("unknown option " + words[i]);
    else if (name == "--exif-orientation")
      out.options.exif_orientation = true;
    else if (name == "--resume")
      out.resume = true;
    else if (name == "--info")
      out.info = true;
    else if (name == "--version")
      out.version = true;
    else if (name == "--help" || name == "-h")
      out.help = true;
    else if (name == "--")
      options_end = true;
    else
      throw WrongUsage("unknown option " + name);
  }
  if (out.help || out.version) return out;
  if (!out.output.empty()) out.target = resolve_target(out.output);
  const bool special = out.target && out.target->special;
  out.format = parse_format(format, out.output, special);
  if (out.resume && special)
    throw WrongUsage("--resume: expected a file, got a pipe or device, \"" + out.output + '"');
  if (out.resume && out.output.empty())
    throw WrongUsage("--resume: expected the --output of the interrupted run beside it");
  if (positional.empty()) throw WrongUsage("expected a model");
  out.model = positional.front();
  out.images.assign(positional.begin() + 1, positional.end());
  if (out.images.empty() && !out.info)
    throw WrongUsage("expected an image, a folder, or - for a list on stdin");
  return out;
}

void print_info(const Arguments& arguments) {
  const auto m = swsl::FrozenModel::read_metadata(arguments.model);
  if (arguments.format == Format::json) {
    std::cout << m.json << '\n';
    return;
  }
  const auto& spec = m.preprocess;
  std::cout << "variant      " << m.variant.value_or("none of the published ones") << "\nclasses      "
            << m.labels.size() << "\nblocks       ";
  for (std::size_t i = 0; i < m.architecture.layers.size(); ++i)
    std::cout << (i ? "," : "") << m.architecture.layers[i];
  std::cout << ", groups × width " << m.architecture.groups << " × " << m.architecture.width_per_group
            << "\ninput        " << spec.height << "×" << spec.width << ", crop_pct " << spec.crop_pct << ", "
            << (spec.interpolation == swsl::Interpolation::bilinear ? "bilinear" : "bicubic")
            << "\nlicence      " << m.license.value_or("not stated") << "\nweights      SHA-256 "
            << m.weights_sha256.value_or("not known") << "\nexported by  swsl " << m.swsl_version
            << ", torch " << m.torch_version << "\nformat       " << m.format << '\n';
}

std::int64_t count_images(const std::vector<std::string>& images) {
  std::int64_t count = 0;
  for_each_image(images, [&](const std::string&) { ++count; });
  return count;
}

struct Interrupted {};

// What an interrupted run leaves.
std::string kept(const std::optional<OutputLock>& lock, const std::optional<PartialFile>& file,
                 const std::string& target) {
  const std::string partial = PartialFile::path_of(target);
  if (!lock) return "only what was printed is kept; a run with -o FILE can go on with --resume";
  if (file && file->is_complete()) return target + " is complete";
  if (file && file->rows() > 0)
    return std::to_string(file->rows()) + " rows are in " + partial + "; go on with --resume";
  if (!file && std::filesystem::exists(partial)) return partial + " is as it was; go on with --resume";
  return "nothing was kept, for there was no row yet";
}

int run(const Arguments& arguments) {
  const bool to_file = arguments.target && !arguments.target->special;
  const std::string target = arguments.target ? arguments.target->path : "";
  std::optional<OutputLock> lock;
  std::optional<PartialFile> file;
  const auto interrupted = [&] {
    std::cerr << "swsl-classify: interrupted: " << kept(lock, file, target) << '\n';
    return 128 + Interruption::signal();
  };
  Interruption::watch();
  if (to_file) lock.emplace(target);
  const int out = to_file ? -1 : arguments.target ? open_special(*arguments.target) : STDOUT_FILENO;
  const std::string out_name = arguments.target ? target : "stdout";

  const swsl::Runner runner = make_any_runner(arguments.model, arguments.options);
  if (Interruption::signal()) return interrupted();
  const auto print = [&](const std::string& text) { write_whole(out, out_name, text); };
  if (to_file) {
    file.emplace(target, arguments.format, arguments.top_k, runner.batch_size(),
                 run_record(runner, arguments.options, arguments.top_k), arguments.resume);
    if (file->rows() && !file->is_complete())
      std::cerr << "swsl-classify: " << file->rows() << " rows are in " << PartialFile::path_of(target)
                << ", going on\n";
  } else {
    print(header(arguments.format, arguments.top_k));
  }

  const bool from_stdin = std::count(arguments.images.begin(), arguments.images.end(), "-") > 0;
  std::optional<std::int64_t> total;
  const bool shows_progress = arguments.target || !isatty(STDOUT_FILENO);
  if (shows_progress && Progress::on_terminal() && !from_stdin)
    total = count_images(arguments.images) - (file ? file->rows() : 0);
  Progress progress(shows_progress, total);
  bool failed = false;
  const auto fail = [&](const std::string& message) {
    failed = true;
    progress.message("swsl-classify: error: " + written_error(message));
  };

  swsl::StreamOptions options{.workers = arguments.workers, .top_k = arguments.top_k};
  if (to_file || !from_stdin)
    options.max_wait = {};  // full batches: what is in a file does not depend on timing
  swsl::Stream stream(runner, options);
  std::deque<std::string> under_way;
  std::string rows;
  std::int64_t count = 0;
  const auto add = [&](swsl::Result result) {
    if (!result.ok()) {
      if (const std::string why = why_no_images(arguments.images, under_way.front()); !why.empty())
        result.error = why;
      fail(result.error);
    }
    rows += row(arguments.format, arguments.top_k, under_way.front(), result);
    ++count;
    under_way.pop_front();
    progress.advance(!result.ok());
  };
  const auto write = [&] {
    if (file)
      file->append(rows, count);
    else
      print(rows);
    rows.clear();
    count = 0;
  };
  const auto is_due = [&] { return stream.wait_for(std::chrono::milliseconds(0)); };
  const auto next = [&] {
    while (!stream.wait_for(std::chrono::seconds(1))) progress.tick();
    return stream.pop();
  };
  const auto write_what_is_there = [&] {
    while (is_due()) add(*stream.pop());
    if (!rows.empty()) write();
    progress.tick();
    return !under_way.empty();
  };
  const auto take = [&](const std::string& path) {
    if (Interruption::signal()) throw Interrupted();
    if (file && file->has_next(path)) return;
    if (stream.under_way() == stream.capacity()) add(*next());
    write_what_is_there();
    under_way.push_back(path);
    stream.push(path);
  };
  const auto report = [&](const std::string& line) {
    progress.message("swsl-classify: " + written_error(line));
  };
  try {
    for_each_image(arguments.images, take, report, write_what_is_there);
    if (Interruption::signal()) throw Interrupted();
    stream.finish();
    while (auto result = next()) {
      add(std::move(*result));
      if (Interruption::signal()) throw Interrupted();
      if (!is_due()) write();
    }
  } catch (const Interrupted&) {  // what is computed is kept
    while (!under_way.empty() && is_due()) add(*stream.pop());
    if (!rows.empty()) write();
    return interrupted();
  }
  write();
  if (file) {
    const bool was_complete = file->is_complete();
    file->complete();
    if (was_complete) std::cerr << "swsl-classify: " << target << " is complete\n";
  }
  return failed;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Arguments arguments = parse({argv + 1, argv + argc});
    if (arguments.help) {
      std::cout << usage;
      return 0;
    }
    if (arguments.version) {
      std::cout << "swsl-classify " << swsl::build_info().swsl_version << '\n';
      return 0;
    }
    if (arguments.info) {
      print_info(arguments);
      return 0;
    }
    return run(arguments);
  } catch (const WrongUsage& error) {
    std::cerr << "swsl-classify: error: " << written_error(error.what()) << '\n' << usage;
    return 2;
  } catch (const std::invalid_argument& error) {  // a value of an option
    std::cerr << "swsl-classify: error: " << written_error(error.what()) << '\n';
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "swsl-classify: error: " << written_error(error.what()) << '\n';
    return 1;
  }
}
