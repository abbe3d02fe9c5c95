// swsl-classify as its users run it.
#include <signal.h>
#include <sys/stat.h>
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

TEST(folders_yield_regular_files_that_are_not_hidden) {
  namespace fs = std::filesystem;
  const fs::path folder = data("special");
  fs::remove_all(folder);
  for (const char* inner : {".ipynb_checkpoints", "@eaDir", "sub"}) {
    fs::create_directories(folder / inner);
    fs::copy(data("photo.jpg"), folder / inner / "a.jpg");
  }
  fs::copy(data("photo.jpg"), folder / "._a.jpg");
  fs::create_symlink("sub/a.jpg", folder / "file.jpg");
  fs::create_symlink("nowhere", folder / "lost.jpg");
  fs::create_symlink("..", folder / "up");
  CHECK_EQ(mkfifo((folder / "pipe.jpg").c_str(), 0666), 0);
  const auto cwd = fs::current_path();  // of a path too long to be listed, which even root cannot
  fs::current_path(folder);
  for (int depth = 0; depth < 20; ++depth) {
    const std::string name(250, 'z');
    fs::create_directory(name);
    fs::current_path(name);
  }
  fs::current_path(cwd);

  const auto run =
      classify(model + ' ' + quoted("special") + ' ' + quoted("special/pipe.jpg") + ' ' +
               quoted("special/@eaDir") + ' ' + quoted("special/._a.jpg") + " --format=csv --top-k=1");
  CHECK_EQ(run.code, 1);
  CHECK_EQ(std::count(run.out.begin(), run.out.end(), '\n'), 1 + 4 + 3);
  for (const char* good : {"file.jpg", "sub/a.jpg", "@eaDir/a.jpg", "._a.jpg"})
    CHECK(has(run.out, (folder / good).string() + ",,"));
  CHECK(has(run.out, "lost.jpg: cannot be opened: No such file"));
  CHECK(has(run.out, "zzz: cannot be opened: File name too long"));
  CHECK(has(run.out, "pipe.jpg: is a pipe; expected an image file"));
  CHECK(has(run.errors, "swsl-classify: skipped: 3 hidden files and folders (" +
                            (folder / "._a.jpg").string() + ", …), 1 pipes, sockets and devices (" +
                            (folder / "pipe.jpg").string() + "), 1 links to folders (" +
                            (folder / "up").string() + ")\n"));
  CHECK_EQ(std::count(run.errors.begin(), run.errors.end(), '\n'), 3 + 1);
  fs::remove_all(folder);
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
  CHECK_EQ(run.out.find("path,error,label_1,index_1,probability_1\n" + (folder / "a.png").string() + ','),
           0u);
  CHECK(has(run.out,
            ",,,\n" + (folder / "z.jpeg").string() + ",," + p.label + ',' + std::to_string(p.index) + ','));
  CHECK(has(run.out, "\n\"" + (folder / "b" / "x,y.JPG").string() + "\",," + p.label + ',' +
                         std::to_string(p.index) + ','));
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
  const auto run =
      classify(model + " - --format json --top-k 10 --batch-size 2 --threads 1",
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
  for (const char* name : {"a", "b, \"c\"", "d\ne", "f", "g"})
    fs::copy(data("photo.jpg"), folder / (std::string(name) + ".jpg"));
  fs::copy(data("empty.pt"), folder / "b.jpg");
  for (const std::string suffix : {".csv", ".jsonl"}) {
    const std::string target = data("resumed" + suffix), partial = target + ".partial";
    const auto begin = [&](const std::string& rows) {  // as an interrupted run leaves it
      std::ofstream(partial, std::ios::binary) << rows;
      fs::copy_file(target + ".run.json", partial + ".run.json", fs::copy_options::overwrite_existing);
    };
    const std::string arguments =
        model + ' ' + quoted("to resume") + " --top-k 2 --batch-size 2 -o '" + target + '\'';
    fs::remove(target), fs::remove(partial);
    const auto first = classify(arguments);
    CHECK_EQ(first.code, 1);
    CHECK_EQ(first.out, "");
    CHECK(!fs::exists(partial) && !fs::exists(partial + ".run.json") && !fs::exists(target + ".lock"));
    const std::string whole = contents(target);
    const auto again = classify(arguments + " --resume");
    CHECK_EQ(again.code, 0);
    CHECK(has(again.errors, "resumed" + suffix + " is complete\n"));
    fs::remove(target);
    for (std::size_t length = 0; length <= whole.size(); length += 61) {
      begin(whole.substr(0, length));
      const auto resumed = classify(arguments + " --resume");
      if (contents(target) != whole)
        check::fail(__FILE__, __LINE__, "other rows after ", length, " bytes: ", resumed.errors);
      fs::remove(target);
    }
    begin(whole);
    const auto others = classify(model + ' ' + quoted("photo.jpg") +
                                 " --top-k 2 --batch-size 2 --resume -o '" + target + '\'');
    CHECK_EQ(others.code, 1);
    CHECK(has(others.errors, suffix + ".partial: row 1 is of " + (folder / "a.jpg").string() +
                                 ", but input 1 is now " + data("photo.jpg")));
    const auto fewer = classify("-h > /dev/null; printf '' | \"$SWSL_CLASSIFY\" " + model +
                                " - --top-k 2 --batch-size 2 --resume -o '" + target + '\'');
    CHECK(has(fewer.errors, "row 1 is of " + (folder / "a.jpg").string() + ", but input 1 is now missing"));
    CHECK_EQ(contents(partial), whole);
    const auto other = classify(arguments + " --resume --top-k 3 --exif-orientation");
    CHECK_EQ(other.code, 1);
    CHECK(has(other.errors, suffix + ".partial: was made with exif_orientation false and not true, top_k 2 "
                                     "and not 3; give the same model"));
    fs::remove(partial + ".run.json");
    CHECK(has(classify(arguments + " --resume").errors, suffix + ".partial: does not say what made it"));
    CHECK_EQ(contents(partial), whole);
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
  const std::string arguments = model + " - --batch-size 4 -o '" + target + "' --resume",
                    input = "cat '" + list + "' | ";
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
      execl(std::getenv("SWSL_CLASSIFY"), "swsl-classify", data("tiny.pt").c_str(), "-", "--batch-size", "4",
            "-o", target.c_str(), "--resume", nullptr);
      _exit(127);
    }
    const long size = fs::exists(partial) ? static_cast<long>(fs::file_size(partial)) : 0;
    const auto goal =
        size + std::uniform_int_distribution<long>(0, static_cast<long>(whole.size()) / 12)(random);
    int status = 0;
    while (waitpid(child, &status, WNOHANG) == 0) {  // until it has written so much more
      std::error_code ignored;
      if (fs::exists(partial) && static_cast<long>(fs::file_size(partial, ignored)) >= goal)
        kill(child, SIGKILL);
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

TEST(a_finished_output_is_complete_only_if_it_is) {
  namespace fs = std::filesystem;
  const std::string target = data("finished.csv");
  const auto of = [&](const std::string& names, const std::string& more = "") {
    return classify(model + ' ' + names + " --batch-size 2 --resume -o '" + target + '\'' + more);
  };
  fs::remove(target);
  const std::string photo = quoted("photo.jpg");
  const std::string four = photo + ' ' + photo + ' ' + photo + ' ' + photo;
  CHECK_EQ(of(four).code, 0);
  const std::string expected = contents(target),
                    one = expected.substr(expected.rfind('\n', expected.size() - 2) + 1);
  fs::permissions(target, fs::perms::owner_read | fs::perms::owner_write);
  CHECK(has(of(four).errors, "finished.csv is complete\n"));
  CHECK(!has(of(four + ' ' + photo).errors, "is complete"));
  CHECK_EQ(contents(target), expected + one);
  CHECK_EQ(static_cast<unsigned>(fs::status(target).permissions()), 0600u);
  CHECK(has(of(four).errors,
            "finished.csv: row 5 is of " + data("photo.jpg") + ", but input 5 is now missing"));
  CHECK(has(of(four + ' ' + photo, " --dtype bfloat16").errors,
            "finished.csv: was made with dtype float32 and not bfloat16"));
  CHECK_EQ(contents(target), expected + one);
  CHECK(!fs::exists(target + ".partial"));
}

TEST(any_name_is_written_as_utf8_and_gone_on_with) {
  namespace fs = std::filesystem;
  const fs::path folder = data("names");
  fs::remove_all(folder);
  fs::create_directories(folder);
  const std::vector<std::pair<std::string, std::string>> names = {
      // in sorted order
      {"\t\r\n,\".jpg", "\t\r\n,\".jpg"},
      {"\\x41\\x4\\xFF.jpg", "\\x5cx41\\x4\\xFF.jpg"},
      {"\xc3\xa9\xe2\x82.jpg", "é\\xe2\\x82.jpg"},
      {"\xed\xa0\x80\xc0\xaf.jpg", "\\xed\\xa0\\x80\\xc0\\xaf.jpg"},
      {"\xff.jpg", "\\xff.jpg"}};
  for (const auto& name : names) fs::copy_file(data("empty.pt"), folder / name.first);
  for (const std::string suffix : {".csv", ".jsonl"}) {
    const std::string target = data("names" + suffix),
                      arguments = model + ' ' + quoted("names") + " --resume -o '" + target + '\'';
    fs::remove(target);
    CHECK_EQ(classify(arguments).code, 1);
    const std::string rows = contents(target);
    for (const auto& [name, written] : names) {
      std::string expected = (folder / written).string();
      for (std::size_t i = 0; i < expected.size(); ++i) {
        const auto letter = std::string_view("\t\r\n").find(expected[i]);
        const std::string json =
            std::string("\\") + (letter == std::string_view::npos ? expected[i] : "trn"[letter]);
        const bool csv = suffix == ".csv";
        if (csv ? expected[i] != '"' : std::string("\t\r\n\"\\").find(expected[i]) == std::string::npos)
          continue;
        expected.replace(i, 1, csv ? "\"\"" : json);
        ++i;
      }
      if (!has(rows, expected)) check::fail(__FILE__, __LINE__, expected, " is not in ", rows);
    }
    CHECK(has(classify(arguments).errors, "is complete"));
  }
}

TEST(the_second_writer_of_an_output_is_refused_and_an_interrupted_one_says_what_it_kept) {
  namespace fs = std::filesystem;
  const std::string target = data("locked.csv"), link = data("link.csv"), errors = data("interrupted.txt");
  for (const auto& old : {target, target + ".partial", link, errors}) fs::remove(old);
  fs::create_symlink(target, link);
  std::ofstream(target + ".lock") << "12 on another host\n";  // left by a run that was killed
  for (const int signal : {SIGINT, SIGTERM}) {
    int ends[2];
    CHECK_EQ(pipe(ends), 0);
    const pid_t child = fork();
    if (child == 0) {
      dup2(ends[0], STDIN_FILENO);
      close(ends[0]), close(ends[1]);
      std::freopen(errors.c_str(), "w", stderr);
      execl(std::getenv("SWSL_CLASSIFY"), "swsl-classify", data("tiny.pt").c_str(), "-", "--batch-size", "1",
            "-o", target.c_str(), "--resume", nullptr);
      _exit(127);
    }
    close(ends[0]);
    if (signal == SIGTERM) {
      const std::string name = data("photo.jpg") + '\n';
      for (int i = 0; i < 20; ++i)
        CHECK_EQ(write(ends[1], name.data(), name.size()), static_cast<ssize_t>(name.size()));
    }
    const auto enough = [&] {
      if (signal == SIGINT) return fs::exists(target + ".partial.run.json");  // it waits for a first name
      const std::string rows = fs::exists(target + ".partial") ? contents(target + ".partial") : "";
      return std::count(rows.begin(), rows.end(), '\n') > 3;
    };
    for (int i = 0; i < 3000 && !enough(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    for (const std::string options : {"", " --resume"}) {
      const auto second = classify(model + ' ' + quoted("photo.jpg") + options + " -o '" + link + '\'');
      CHECK_EQ(second.code, 1);
      CHECK(has(second.errors, "locked.csv: is being written by process " + std::to_string(child) + " on "));
    }
    kill(child, signal);
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    close(ends[1]);
    CHECK(WIFEXITED(status));
    CHECK_EQ(WEXITSTATUS(status), 128 + signal);
    CHECK(!fs::exists(target + ".lock"));
    if (signal == SIGINT) {
      CHECK(has(contents(errors), "swsl-classify: interrupted: nothing was kept"));
      CHECK(!fs::exists(target + ".partial") && !fs::exists(target + ".partial.run.json"));
    } else {
      const std::string rows = contents(target + ".partial");
      const auto kept = std::count(rows.begin(), rows.end(), '\n') - 1;
      CHECK(kept > 2);
      CHECK(has(contents(errors), "interrupted: " + std::to_string(kept) + " rows are in " + target +
                                      ".partial; go on with --resume\n"));
    }
  }
}

TEST(an_output_goes_through_a_link_and_into_a_pipe) {
  namespace fs = std::filesystem;
  const std::string target = data("linked.csv"), link = data("a link.csv"), pipe = data("a pipe"),
                    taken = data("taken.txt");
  for (const auto& old : {target, link, pipe, taken}) fs::remove(old);
  fs::create_symlink("linked.csv", link);
  const std::string arguments = model + ' ' + quoted("photo.jpg") + " --top-k 1 ";
  CHECK_EQ(classify(arguments + "-o '" + link + '\'').code, 0);
  CHECK(fs::is_symlink(link) && fs::is_regular_file(fs::symlink_status(target)));
  const std::string rows = contents(target);
  CHECK_EQ(classify(arguments + "--format csv -o /dev/stdout").out, rows);
  CHECK_EQ(classify(arguments + "-o /dev/stdout | cat; exit 3").code, 3);
  CHECK_EQ(mkfifo(pipe.c_str(), 0600), 0);
  CHECK_EQ(
      classify(arguments + "--format csv -o '" + pipe + '\'', "cat '" + pipe + "' > '" + taken + "' & ").code,
      0);
  for (int i = 0; i < 1000 && contents(taken) != rows; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  CHECK_EQ(contents(taken), rows);
  CHECK(fs::is_fifo(pipe) && !fs::exists(pipe + ".partial"));
  CHECK_EQ(classify(arguments + "--resume -o '" + pipe + '\'').code, 2);
  CHECK_EQ(classify(arguments + "-o '" + data("folder") + "'").code, 1);
}

// A result comes before the next path is written: a program that waited for a full batch would wait for ever.
TEST(a_live_list_on_stdin_gets_each_result_when_it_is_computed) {
  int to[2], from[2];
  CHECK(pipe(to) == 0 && pipe(from) == 0);
  const pid_t child = fork();
  if (child == 0) {
    dup2(to[0], STDIN_FILENO), dup2(from[1], STDOUT_FILENO);
    for (const int end : {to[0], to[1], from[0], from[1]}) close(end);
    const char* program = std::getenv("SWSL_CLASSIFY");
    execl(program, program, data("tiny.pt").c_str(), "-", "--format", "json", "--top-k", "1", nullptr);
    _exit(127);
  }
  close(to[0]), close(from[1]);
  alarm(120);
  std::FILE* out = fdopen(from[0], "r");
  const std::string photo = data("photo.jpg");
  for (const std::string& part : {photo + '\n', data("nothing.jpg") + "\r\n", photo + "\n\n" + photo + '\n',
                                  photo.substr(0, 3), photo.substr(3) + '\n'}) {
    CHECK_EQ(write(to[1], part.data(), part.size()), static_cast<ssize_t>(part.size()));
    for (auto lines = std::count(part.begin(), part.end(), '\n') - has(part, "\n\n"); lines > 0; --lines) {
      char line[4096];
      CHECK(std::fgets(line, sizeof line, out) != nullptr);
      CHECK_EQ(has(line, "\"error\""), has(part, "nothing"));
      CHECK(has(line, "{\"path\": \"" + data(has(part, "nothing") ? "nothing.jpg" : "photo.jpg") + '"'));
    }
  }
  CHECK_EQ(write(to[1], photo.data(), photo.size()),
           static_cast<ssize_t>(photo.size()));  // without a newline
  close(to[1]);
  char line[4096];
  CHECK(std::fgets(line, sizeof line, out) != nullptr && has(line, photo));
  CHECK(std::fgets(line, sizeof line, out) == nullptr);
  std::fclose(out);
  int status = 0;
  CHECK_EQ(waitpid(child, &status, 0), child);
  alarm(0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 1);
}

TEST(info_prints_the_metadata) {
  const auto run = classify(model + " --info");
  CHECK_EQ(run.code, 0);
  CHECK(has(run.out, "classes      10\n") && has(run.out, "input        64×64, crop_pct 0.875, bilinear\n"));
  CHECK_EQ(classify(model + " --info --format json").out,
           swsl::FrozenModel::read_metadata(data("tiny.pt")).json + '\n');
}

TEST(wrong_usage_is_2_and_a_wrong_model_1) {
  CHECK_EQ(classify("--help").code, 0);
  for (const std::string& arguments :
       {std::string(), model, model + " x --top-k", model + " x --top-k 0", model + " x --top-k 2x",
        model + " x --format xml", model + " x --nonsense", model + " x --info=1", model + " x -o x.txt",
        model + " x --resume", model + " x -o x.csv --format csv", model + " x --workers 0",
        model + " x --max-pixels 0", model + " x --dtype int8", model + " x --device gpu",
        model + " x --threads -1"}) {
    const auto run = classify(arguments);
    if (run.code != 2 || run.errors.find("swsl-classify: error: ") != 0)
      check::fail(__FILE__, __LINE__, '"', arguments, "\" gave ", run.code, " and \"", run.errors, '"');
  }
  const auto run = classify(quoted("nothing.pt") + " x");
  CHECK_EQ(run.code, 1);
  CHECK(has(run.errors, "nothing.pt: no such file"));
}
