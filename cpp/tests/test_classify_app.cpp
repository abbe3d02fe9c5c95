// swsl-classify as its users run it.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include <swsl/runner.h>

#include "check.h"
#include "test_data.h"

namespace {

struct Run {
  std::string out, errors;
  int code = -1;
};

Run classify(const std::string& arguments, const std::string& before = "") {
  const char* program = std::getenv("SWSL_CLASSIFY");
  if (!program) throw std::runtime_error("set SWSL_CLASSIFY to the program (ctest does)");
  const std::string errors = data("app-stderr.txt");
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

std::string quoted(const std::string& name) { return '\'' + data(name) + '\''; }
const std::string model = quoted("tiny.pt");

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST(a_table_shows_the_runners_predictions) {
  const auto expected = swsl::Runner(data("tiny.pt")).classify_file(data("photo.jpg"), 2);
  const auto run = classify(model + ' ' + quoted("photo.jpg") + " --top-k 2");
  CHECK_EQ(run.code, 0);
  CHECK_EQ(run.errors, "");
  std::string text = data("photo.jpg") + '\n';
  for (const auto& p : expected) {
    char line[128];
    std::snprintf(line, sizeof line, "  %7.2f%%  %s\n", 100.0 * p.probability, p.label.c_str());
    text += line;
  }
  CHECK_EQ(run.out, text);
}

TEST(folders_are_walked_in_order_and_a_bad_file_is_one_line) {
  namespace fs = std::filesystem;
  const fs::path folder = data("folder");
  fs::remove_all(folder);
  fs::create_directories(folder / "b");
  fs::copy(data("photo.jpg"), folder / "b" / "x,y.JPG");
  fs::copy(data("photo.jpg"), folder / "z.jpeg");
  fs::copy(data("empty.pt"), folder / "a.png");
  fs::copy(data("empty.pt"), folder / "notes.txt");
  const auto run = classify(model + ' ' + quoted("folder") + " --format=csv --top-k=1");
  CHECK_EQ(run.code, 1);
  const auto p = swsl::Runner(data("tiny.pt")).classify_file(data("photo.jpg"), 1).front();
  CHECK_EQ(run.out.find("path,error,label_1,index_1,probability_1\n" + (folder / "a.png").string() + ','), 0u);
  CHECK(has(run.out, ",,,\n" + (folder / "z.jpeg").string() + ",," + p.label + ',' + std::to_string(p.index) + ','));
  CHECK(has(run.out, "\n\"" + (folder / "b" / "x,y.JPG").string() + "\",," + p.label + ',' + std::to_string(p.index) + ','));
  CHECK(run.out.find("z.jpeg") < run.out.find("x,y.JPG") && !has(run.out, "notes.txt"));
  CHECK_EQ(std::count(run.errors.begin(), run.errors.end(), '\n'), 1);
  CHECK(has(run.errors, "swsl-classify: error: " + (folder / "a.png").string() + ": "));
}

TEST(max_pixels_reach_the_runner) {
  const auto run = classify(model + ' ' + quoted("photo.jpg") + " --max-pixels 99");
  CHECK_EQ(run.code, 1);
  CHECK(has(run.errors, "expected at least 1 and at most 99; raise max_pixels if you trust it"));
}

TEST(json_is_an_object_a_line_from_a_list_on_stdin) {
  const auto run = classify(model + " - --format json --top-k 10 --batch-size 2 --threads 1",
                            "printf '%s\\n' " + quoted("photo.jpg") + " '' '/no \"such\"' " + quoted("photo.jpg") + " | ");
  CHECK_EQ(run.code, 1);
  CHECK_EQ(std::count(run.out.begin(), run.out.end(), '\n'), 3);
  CHECK_EQ(run.out.find("{\"path\": \"" + data("photo.jpg") + "\", \"predictions\": [{\"label\": \""), 0u);
  CHECK(has(run.out, "\n{\"path\": \"/no \\\"such\\\"\", \"error\": \"/no \\\"such\\\": "));
  CHECK(has(run.out, "\"label\": \"a, \\\"quoted\\\" é\", \"index\": 9, \"probability\": "));
}

TEST(an_output_file_gets_its_name_when_it_is_whole_and_can_be_gone_on_with) {
  namespace fs = std::filesystem;
  const fs::path folder = data("to resume");
  fs::remove_all(folder);
  fs::create_directories(folder);
  for (const char* name : {"a", "b, \"c\"", "d\ne", "f", "g"}) fs::copy(data("photo.jpg"), folder / (std::string(name) + ".jpg"));
  fs::copy(data("empty.pt"), folder / "b.jpg");
  for (const std::string suffix : {".csv", ".jsonl"}) {
    const std::string target = data("resumed" + suffix), partial = target + ".partial";
    const std::string arguments = model + ' ' + quoted("to resume") + " --top-k 2 --batch-size 2 -o '" + target + '\'';
    fs::remove(target), fs::remove(partial);
    const auto first = classify(arguments);
    CHECK_EQ(first.code, 1);
    CHECK_EQ(first.out, "");
    CHECK(!fs::exists(partial));
    const std::string whole = contents(target);
    const auto again = classify(arguments + " --resume");
    CHECK_EQ(again.code, 0);
    CHECK(has(again.errors, "resumed" + suffix + " is complete\n"));
    fs::remove(target);
    for (std::size_t length = 0; length <= whole.size(); length += 61) {
      std::ofstream(partial, std::ios::binary) << whole.substr(0, length);
      const auto resumed = classify(arguments + " --resume");
      if (contents(target) != whole) check::fail(__FILE__, __LINE__, "other rows after ", length, " bytes: ", resumed.errors);
      fs::remove(target);
    }
    std::ofstream(partial, std::ios::binary) << whole;
    const auto others = classify(model + ' ' + quoted("photo.jpg") + " --top-k 2 --batch-size 2 --resume -o '" + target + '\'');
    CHECK_EQ(others.code, 1);
    CHECK(has(others.errors, suffix + ".partial: row 1 is of " + (folder / "a.jpg").string() + ", but input 1 is now " + data("photo.jpg")));
    const auto fewer = classify("-h > /dev/null; printf '' | \"$SWSL_CLASSIFY\" " + model + " - --top-k 2 --batch-size 2 --resume -o '" + target + '\'');
    CHECK(has(fewer.errors, "row 1 is of " + (folder / "a.jpg").string() + ", but input 1 is now missing"));
    CHECK_EQ(contents(partial), whole);
    if (suffix == ".csv") CHECK(has(classify(arguments + " --resume --top-k 3").errors, "give the same --top-k"));
    CHECK_EQ(classify(arguments).code, 1);  // without --resume it begins again
    CHECK_EQ(contents(target), whole);
  }
}

TEST(a_run_killed_at_any_moment_is_gone_on_with) {
  namespace fs = std::filesystem;
  const std::string list = data("many.txt"), target = data("killed.csv"), partial = target + ".partial";
  {
    std::ofstream file(list);
    for (int i = 0; i < 400; ++i) file << (i % 50 == 7 ? data("nothing.jpg") : data("photo.jpg")) << '\n';
  }
  const std::string arguments = model + " - --batch-size 4 -o '" + target + "' --resume", input = "cat '" + list + "' | ";
  fs::remove(target), fs::remove(partial);
  CHECK_EQ(classify(arguments, input).code, 1);
  const std::string whole = contents(target);
  CHECK_EQ(std::count(whole.begin(), whole.end(), '\n'), 401);

  std::mt19937 random(20);
  int kills = 0, under_way = 0;
  fs::remove(target);
  for (int round = 0; round < 200 && kills < 20; ++round) {
    const pid_t child = fork();
    if (child == 0) {
      std::freopen(list.c_str(), "r", stdin);
      std::freopen("/dev/null", "w", stderr);
      execl(std::getenv("SWSL_CLASSIFY"), "swsl-classify", data("tiny.pt").c_str(), "-", "--batch-size", "4", "-o", target.c_str(),
            "--resume", nullptr);
      _exit(127);
    }
    const long size = fs::exists(partial) ? static_cast<long>(fs::file_size(partial)) : 0;
    const auto goal = size + std::uniform_int_distribution<long>(0, static_cast<long>(whole.size()) / 12)(random);
    int status = 0;
    while (waitpid(child, &status, WNOHANG) == 0) {  // until it has written so much more
      std::error_code ignored;
      if (fs::exists(partial) && static_cast<long>(fs::file_size(partial, ignored)) >= goal) kill(child, SIGKILL);
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    if (WIFSIGNALED(status)) {
      ++kills;
      const std::string rows = contents(partial);
      CHECK_EQ(whole.substr(0, rows.size()), rows);
      under_way += !rows.empty();
    }
    if (fs::exists(target)) {
      CHECK_EQ(contents(target), whole);
      fs::remove(target);
    }
  }
  CHECK_EQ(kills, 20);
  CHECK(under_way >= 10);
  classify(arguments, input);
  CHECK_EQ(contents(target), whole);
}

TEST(info_prints_the_metadata) {
  const auto run = classify(model + " --info");
  CHECK_EQ(run.code, 0);
  CHECK(has(run.out, "classes      10\n") && has(run.out, "input        64×64, crop_pct 0.875, bilinear\n"));
  CHECK_EQ(classify(model + " --info --format json").out, swsl::FrozenModel::read_metadata(data("tiny.pt")).json + '\n');
}

TEST(wrong_usage_is_2_and_a_wrong_model_1) {
  CHECK_EQ(classify("--help").code, 0);
  for (const std::string& arguments :
       {std::string(), model, model + " x --top-k", model + " x --top-k 0", model + " x --top-k 2x", model + " x --format xml",
        model + " x --nonsense", model + " x --info=1", model + " x -o x.txt", model + " x --resume", model + " x -o x.csv --format csv", model + " x --workers 0", model + " x --max-pixels 0", model + " x --dtype int8", model + " x --device gpu", model + " x --threads -1"}) {
    const auto run = classify(arguments);
    if (run.code != 2 || run.errors.find("swsl-classify: error: ") != 0)
      check::fail(__FILE__, __LINE__, '"', arguments, "\" gave ", run.code, " and \"", run.errors, '"');
  }
  const auto run = classify(quoted("nothing.pt") + " x");
  CHECK_EQ(run.code, 1);
  CHECK(has(run.errors, "nothing.pt: no such file"));
}
