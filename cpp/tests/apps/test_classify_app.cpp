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

#include "run_app.h"

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

TEST(an_empty_folder_is_called_empty) {
  namespace fs = std::filesystem;
  const std::string empty = data("no images"), other = data("no images") + "/inner";
  fs::remove_all(empty);
  fs::create_directories(other);
  std::ofstream(other + "/a.heic");
  const auto run = classify(model + " '" + empty + "' '" + other + '/' + "' --format csv --top-k 1");
  CHECK_EQ(run.code, 1);
  CHECK(has(run.errors, "error: " + empty + ": holds no image of a format that is read\n"));
  CHECK(has(run.out, '\n' + other + "/," + other + "/: holds no image of a format that is read,,,\n"));
  fs::remove(other + "/a.heic");
  CHECK(has(classify(model + " '" + other + '\'').errors, "error: " + other + ": this folder is empty\n"));
  const auto listed = classify(model + " -", "echo '" + other + "' | ");
  CHECK(has(listed.errors, "error: " + other + ": is a directory"));
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

TEST(version_is_the_librarys) {
  const auto run = classify("--version");
  CHECK_EQ(run.code, 0);
  CHECK_EQ(run.out, "swsl-classify " + swsl::build_info().swsl_version + '\n');
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
